//! Events of the past as another server tells them, with the states that do not follow from what is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use federation::{event::Pdu, room::StateMap};
use ruma::{EventId, OwnedEventId, ServerName, UInt, api::federation::backfill::get_backfill};
use store::{rooms::RoomView, rooms::Standing};

use super::EVENTS_MAX;
use crate::{
    error::ApiResult,
    peers,
    rooms::{foreign, gap, receive::Receiving},
    server::App,
};

/// Of how many events the state or the auth chain is asked for; of a batch that needs more, half is left out.
const ASKED_MAX: usize = 20;

/// Events that were not known, oldest first.
pub(super) struct Past {
    pub(super) events: Vec<Arc<Pdu>>,
    /// The states before those of them that are built upon what is not known.
    pub(super) states: BTreeMap<OwnedEventId, StateMap>,
}

/// Some of what a server has behind some events, and was not known, oldest first; nothing, if it does not say.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn from(
    app: &App,
    view: &RoomView,
    server: &ServerName,
    ids: Vec<OwnedEventId>,
) -> ApiResult<Vec<Arc<Pdu>>> {
    let room_id = &view.room_id;
    let request = get_backfill::v1::Request::new(room_id.clone(), ids, UInt::from(EVENTS_MAX));
    let mut raw = match peers::ask(app, server, request).await {
        Ok(answer) => answer.pdus,
        Err(error) => {
            tracing::info!(%room_id, %server, %error, "history could not be had");
            return Ok(Vec::new());
        }
    };
    raw.truncate(EVENTS_MAX as usize);
    let mut new: Vec<Arc<Pdu>> = Vec::new();
    for pdu in foreign::checked(app, room_id, view.rules, &raw).await {
        let twice = new.iter().any(|other| other.event_id() == pdu.event_id());
        if !twice && !is_judged(app, pdu.event_id())? {
            new.push(pdu);
        }
    }
    new.sort_by_key(|pdu| pdu.depth());
    Ok(new)
}

/// Keeps only what some events are, or are built upon: a server may tell anything.
pub(super) fn keep_behind(events: &mut Vec<Arc<Pdu>>, wants: &[OwnedEventId]) {
    let mut wanted: BTreeSet<OwnedEventId> = wants.iter().cloned().collect();
    // What an event is built upon is less deep. One that says otherwise may be left out.
    for pdu in events.iter().rev() {
        if wanted.contains(pdu.event_id()) {
            wanted.extend(pdu.prev_events().iter().cloned());
        }
    }
    events.retain(|pdu| wanted.contains(pdu.event_id()));
}

/// The events, as many of the newest as can be placed, with the states that are needed; `None` if that is nothing.
///
/// # Errors
/// When the store cannot be read or written.
pub(super) async fn past(
    app: &App,
    view: &RoomView,
    server: &ServerName,
    mut events: Vec<Arc<Pdu>>,
) -> ApiResult<Option<Past>> {
    let mut needed = needed(app, &events)?;
    while needed.len() > ASKED_MAX {
        events.drain(..events.len() / 2);
        needed = self::needed(app, &events)?;
    }
    if events.is_empty() {
        return Ok(None);
    }
    let mut receiving = Receiving::new(app, server, view.room, &view.room_id, view.rules);
    let mut states = BTreeMap::new();
    for (pdu, needs) in needed {
        if needs.auth {
            gap::auth_chain(&mut receiving, pdu.event_id()).await?;
            receiving.flushed().await?;
        }
        if needs.state {
            match gap::state_before(&mut receiving, pdu.event_id()).await {
                Ok(state) => states.insert(pdu.event_id().to_owned(), state),
                Err(error) => {
                    let (room_id, reason) = (&view.room_id, error.message);
                    tracing::info!(%room_id, %server, %reason, "history is left out");
                    return Ok(None);
                }
            };
        }
    }
    Ok(Some(Past { events, states }))
}

/// What is to be asked for before an event can be placed.
struct Needs {
    state: bool,
    auth: bool,
}

/// Those of some events that are built upon, or allowed by, what is neither known nor among them.
fn needed(app: &App, events: &[Arc<Pdu>]) -> ApiResult<Vec<(Arc<Pdu>, Needs)>> {
    let among: BTreeSet<&EventId> = events.iter().map(|pdu| pdu.event_id()).collect();
    let mut needed = Vec::new();
    let mut passed: BTreeSet<&EventId> = BTreeSet::new();
    for pdu in events {
        let mut needs = Needs {
            state: false,
            auth: false,
        };
        for id in pdu.prev_events() {
            needs.state |= !passed.contains(&**id) && !is_placed(app, id)?;
        }
        for id in pdu.auth_events() {
            needs.auth |= !among.contains(&**id) && app.store.pdu(id)?.is_none();
        }
        if needs.state || needs.auth {
            needed.push((pdu.clone(), needs));
        }
        passed.insert(pdu.event_id());
    }
    Ok(needed)
}

/// Whether the state after an event is known.
fn is_placed(app: &App, id: &EventId) -> ApiResult<bool> {
    let aside = || app.store.aside(id);
    Ok(app.store.event(id)?.is_some() || aside()?.is_some_and(|event| event.state_after.is_some()))
}

/// Whether an event has its place, or was found to get none.
fn is_judged(app: &App, id: &EventId) -> ApiResult<bool> {
    let aside = || app.store.aside(id);
    let known = app.store.event(id)?.is_some();
    Ok(known || aside()?.is_some_and(|event| event.standing != Standing::Outlier))
}
