//! Auth chains: an event's auth events, theirs, and so on up to the create event.
//!
//! Spec: server-server API, "Retrieves the auth chain of an event", `GET /state`, `GET /state_ids`.

use std::{collections::BTreeMap, sync::Arc};

use federation::event::Pdu;
use ruma::{EventId, OwnedEventId};
use store::rooms::RoomView;

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many events a chain has at most before it is not told: the member events of a very large room have
/// about this many.
pub const CHAIN_EVENTS_MAX: usize = 200_000;

/// An event of a room, in its timeline or not.
///
/// # Errors
/// When the store cannot be read.
pub fn known(app: &App, view: &RoomView, event_id: &EventId) -> ApiResult<Option<Arc<Pdu>>> {
    let pdu = app.store.pdu(event_id)?;
    Ok(pdu.filter(|pdu| pdu.room_id() == view.room_id))
}

/// The union of the auth chains of some events, each event once, those that others rest on first.
///
/// The events themselves are in it where they are in the chain of another one. What is not known here is
/// left out.
///
/// # Errors
/// `M_TOO_LARGE` when there are more than [`CHAIN_EVENTS_MAX`].
pub fn auth_chain<'a>(
    app: &App,
    view: &RoomView,
    of: impl IntoIterator<Item = &'a Pdu>,
) -> ApiResult<Vec<Arc<Pdu>>> {
    let mut todo: Vec<OwnedEventId> = Vec::new();
    let mut found: BTreeMap<OwnedEventId, Arc<Pdu>> = BTreeMap::new();
    let follow = |todo: &mut Vec<OwnedEventId>, pdu: &Pdu| {
        todo.extend(pdu.auth_events().iter().cloned());
        // Since version 12 every event rests on the create event, and none names it.
        let implied = view.rules.authorization.room_create_event_id_as_room_id;
        let create = view.head.state.get("m.room.create", "");
        todo.extend(
            create
                .filter(|create| implied && *create != pdu.event_id())
                .cloned(),
        );
    };
    for pdu in of {
        follow(&mut todo, pdu);
    }
    while let Some(event_id) = todo.pop() {
        if found.contains_key(&event_id) {
            continue;
        }
        let Some(pdu) = known(app, view, &event_id)? else {
            continue;
        };
        if found.len() == CHAIN_EVENTS_MAX {
            return Err(ApiError::too_large(format!(
                "the auth chain has more than {CHAIN_EVENTS_MAX} events"
            )));
        }
        follow(&mut todo, &pdu);
        found.insert(event_id, pdu);
    }
    let mut chain: Vec<Arc<Pdu>> = found.into_values().collect();
    chain.sort_by(|one, other| {
        (one.depth(), one.event_id()).cmp(&(other.depth(), other.event_id()))
    });
    Ok(chain)
}
