//! What changed for a device between two points: the engine behind `/sync` and sliding sync.
//!
//! Reading order: [`token`] (a point) → [`wake()`] (when to look) → [`touched`] (where to look) →
//! [`room`] (what a user gets of one room) → [`v3`] (all of it, as `/sync` answers) and [`sliding`]
//! (as a client picks).

pub mod filter;
pub mod room;
pub mod sliding;
pub mod token;
pub mod touched;
pub mod v3;
mod wake;

pub use self::{
    token::Token,
    wake::{Waiting, Wakeups, wake},
};
