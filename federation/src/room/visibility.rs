//! May a user see an event? The history visibility rules, and the type that proves they were asked.
//!
//! Spec: client-server API, "Room history visibility".

use std::ops::Deref;

use ruma::{
    UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};

use crate::event::Pdu;

/// An event that a certain user may see. Replies to clients are only built from these.
#[derive(Clone, Debug)]
pub struct Visible<P>(P);

impl<P> Deref for Visible<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

/// What decides whether a user sees an event.
#[derive(Clone, Debug)]
pub struct Viewpoint {
    /// `m.room.history_visibility` in the state at the event.
    pub at_event: HistoryVisibility,
    /// The user's membership in the state at the event.
    pub membership_at_event: MembershipState,
    /// Whether the user was joined at any time after the event.
    pub joined_later: bool,
}

impl Viewpoint {
    /// Whether a user with this viewpoint may see an ordinary event.
    ///
    /// Spec: the four numbered rules under "Room history visibility", "Server behaviour".
    fn allows(&self) -> bool {
        match &self.at_event {
            HistoryVisibility::WorldReadable => true,
            _ if self.membership_at_event == MembershipState::Join => true,
            HistoryVisibility::Shared => self.joined_later,
            HistoryVisibility::Invited => {
                self.membership_at_event == MembershipState::Invite && self.joined_later
            }
            _ => false,
        }
    }
}

/// The event, if `viewer` may see it.
///
/// `pdu` is what `event` carries. `before` is the viewer's viewpoint by the state *before* the event,
/// `after` the one by the state after it. They differ only for a change of the history visibility and
/// for the viewer's own membership, where the more permissive of both counts: who leaves a room sees
/// oneself leave.
pub fn look<E>(
    event: E,
    pdu: &Pdu,
    viewer: &UserId,
    before: &Viewpoint,
    after: &Viewpoint,
) -> Option<Visible<E>> {
    use ruma::events::TimelineEventType as Kind;
    let own_membership =
        *pdu.kind() == Kind::RoomMember && pdu.state_key() == Some(viewer.as_str());
    let was_there = matches!(
        before.membership_at_event,
        MembershipState::Join | MembershipState::Invite | MembershipState::Knock
    );
    let visible = match pdu.kind() {
        // "The history visibility of the `m.room.history_visibility` event itself is the more
        // permissive of old and new."
        Kind::RoomHistoryVisibility => before.allows() || after.allows(),
        _ if own_membership => before.allows() || after.allows() || was_there,
        _ => after.allows(),
    };
    visible.then_some(Visible(event))
}

/// An event that its viewer has a right to for a reason outside the history visibility: it is part
/// of the state of a room the viewer is in, or the viewer sent it just now.
pub fn entitled<E>(event: E) -> Visible<E> {
    Visible(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // "Room history visibility", "Server behaviour"
    fn each_visibility_shows_what_it_promises() {
        use HistoryVisibility::{Invited, Joined, Shared, WorldReadable};
        use MembershipState::{Invite, Join, Leave};
        for (at_event, membership, joined_later, visible) in [
            (WorldReadable, Leave, false, true),
            (Shared, Leave, false, false),
            (Shared, Leave, true, true),
            (Shared, Join, false, true),
            (Invited, Invite, true, true),
            (Invited, Invite, false, false),
            (Invited, Leave, true, false),
            (Invited, Join, false, true),
            (Joined, Invite, true, false),
            (Joined, Leave, true, false),
            (Joined, Join, false, true),
        ] {
            let view = Viewpoint {
                at_event: at_event.clone(),
                membership_at_event: membership.clone(),
                joined_later,
            };
            assert_eq!(
                view.allows(),
                visible,
                "{at_event} {membership} {joined_later}"
            );
        }
    }
}
