//! Rooms at rest and in memory: timelines, states, and the published view of each room.
//!
//! A [`RoomHead`] is everything that the next event of a room is built upon; it is persistent data,
//! so a copy costs nothing. A [`RoomView`] is the head as readers may see it, after the flush, with
//! the newest events beside it.

mod aside;
mod gaps;
mod state;
mod timeline;
mod view;

pub use self::{
    aside::{AsideEvent, OUTSIDE, Standing},
    gaps::{GAPS_MAX, Gap, GapRow},
    state::StateBlock,
    timeline::{NewEvent, Rewrite, TimelineEvent, TxnRef},
    view::{Membership, MembershipRow, RoomHead, RoomView},
};
pub(crate) use self::{
    timeline::{WrittenEvent, log_row, parse_log_row, parse_timeline_row},
    view::RoomCache,
};
