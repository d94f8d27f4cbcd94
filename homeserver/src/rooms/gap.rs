//! What an event of another server needs and this one does not know: fetched, within bounds.
//!
//! Events between what is known and the new one come by `get_missing_events`; an event whose server does not tell what
//! it is built upon is dropped. Where those end in a gap still, the states after what the oldest are built upon are
//! asked for; what these are themselves is history then, and gets no place. Everything is asked of the server that
//! sent the event; what was there before it came itself, of some others. What cannot be had may be had
//! [later](super::later): nothing is passed over or left out of a state before that was tried some times.
//! Spec: server-server API, "Backfilling and retrieving missing events", "Retrieving events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use federation::{event::Pdu, room::StateMap};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedServerName, ServerName, UInt,
    api::federation::{
        authorization::get_event_authorization,
        event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
    },
};
use serde_json::value::RawValue;
use store::rooms::RoomView;

use super::{
    accept::{Missing, StatesAfter},
    foreign,
    receive::Receiving,
    served,
};
use crate::{
    error::{ApiError, ApiResult},
    peers,
};

/// How many events between the known ones and a new one are asked for at a time.
const MISSING_EVENTS_MAX: u32 = 50;

/// How often they are asked for: other servers tell 20 at a time.
const ROUNDS_MAX: usize = 10;

/// How many servers are asked for them that have not sent the event, once for all that comes at a time.
const OTHERS_MAX: usize = 2;

/// Before how many events at a time.
const LATEST_MAX: usize = 20;

/// Of how many events the state is asked for, to place one new event.
const STATES_MAX: usize = 20;

/// How many events are fetched one by one; when more are missing, the whole state is.
const SINGLE_EVENTS_MAX: usize = 50;

/// How many events are fetched at once.
const EVENTS_AT_ONCE: usize = 5;

/// Places an event that needs what is not known.
///
/// # Errors
/// When something cannot be had. Nothing of the event is kept then.
pub(super) async fn fill(
    receiving: &mut Receiving<'_>,
    pdu: &Arc<Pdu>,
    missing: Missing,
) -> ApiResult<()> {
    let mut filling = Filling {
        receiving,
        states: 0,
    };
    if !missing.prev_events.is_empty() {
        let history = filling.between(pdu).await?;
        for id in &missing.prev_events {
            // Who sends an event has what it is built upon, and could make up a state for it.
            if !history.contains(id) && !filling.is_placed(id)? {
                return Err(unobtainable("what it is built upon"));
            }
        }
    }
    filling.settle(pdu).await
}

/// The state before an event, as the server says that is asked.
///
/// # Errors
/// When it cannot be had.
pub(super) async fn state_before(
    receiving: &mut Receiving<'_>,
    id: &EventId,
) -> ApiResult<StateMap> {
    let mut filling = Filling {
        receiving,
        states: 0,
    };
    filling.state_before(id).await
}

/// Fetches and keeps the auth chain of an event, as the server tells it that is asked.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn auth_chain(receiving: &mut Receiving<'_>, id: &EventId) -> ApiResult<()> {
    let mut filling = Filling {
        receiving,
        states: 0,
    };
    filling.auth_chain(id).await
}

struct Filling<'a, 'b> {
    receiving: &'a mut Receiving<'b>,
    /// How many states were asked for.
    states: usize,
}

impl Filling<'_, '_> {
    /// Fetches and places the events between what is known and `pdu`; those that are history, and get no place.
    async fn between(&mut self, pdu: &Arc<Pdu>) -> ApiResult<BTreeSet<OwnedEventId>> {
        let receiving = &*self.receiving;
        let mut history = BTreeSet::new();
        let Some(view) = receiving.app.store.room(receiving.room)? else {
            return Ok(history);
        };
        // What came with it may have its place, and wait for the flush.
        self.receiving.flushed().await?;
        let entered = view.head.entered_depth;
        let mut events: BTreeMap<OwnedEventId, Arc<Pdu>> = BTreeMap::new();
        let mut latest = vec![pdu.event_id().to_owned()];
        let mut server = self.receiving.origin.clone();
        let mut others: Option<Vec<OwnedServerName>> = None;
        for _ in 0..ROUNDS_MAX {
            let told = self.before(&server, &view.head.extremities, latest);
            let told = told.await?;
            let count = events.len();
            events.extend(
                told.into_iter()
                    .map(|event| (event.event_id().to_owned(), event)),
            );
            events.remove(pdu.event_id());
            latest = Vec::new();
            for event in events.values().filter(|event| event.depth() > entered) {
                for id in event.prev_events() {
                    if !events.contains_key(id) && !self.is_placed(id)? {
                        latest.push(event.event_id().to_owned());
                        break;
                    }
                }
            }
            if latest.is_empty() || latest.len() > LATEST_MAX {
                break;
            }
            if events.len() == count {
                // What was before the server itself came, others may know.
                let left = match &mut others {
                    Some(left) => left,
                    None => others.insert(self.others(&view)?),
                };
                let Some(other) = left.pop() else { break };
                server = other;
            }
        }
        let mut events: Vec<Arc<Pdu>> = events.into_values().collect();
        // What is older than this server's coming is history: `/messages` asks for it.
        let older = events.extract_if(.., |event| event.depth() < entered);
        history.extend(older.map(|event| event.event_id().to_owned()));
        events.sort_by_key(|event| event.depth());
        for event in events {
            // One that cannot be placed leaves a gap, which is dealt with where something is built upon it.
            if let Err(error) = self.settle(&event).await {
                tracing::info!(event = %event.event_id(), reason = %error.message, "left out");
            }
        }
        self.receiving.flushed().await?;
        Ok(history)
    }

    /// Other servers to ask what is between, the best last; none when some were asked before.
    fn others(&mut self, view: &RoomView) -> ApiResult<Vec<OwnedServerName>> {
        let receiving = &mut *self.receiving;
        if std::mem::replace(&mut receiving.asked_others, true) {
            return Ok(Vec::new());
        }
        let (own, origin) = (receiving.app.server_name(), &receiving.origin);
        let residents = served::residents(receiving.app, view)?.into_iter();
        let others = residents.filter(|server| server != own && server != origin);
        let mut others: Vec<OwnedServerName> = others.take(OTHERS_MAX).collect();
        others.reverse();
        Ok(others)
    }

    /// What comes before some events, as a server tells it: some of it.
    async fn before(
        &self,
        server: &ServerName,
        earliest: &[OwnedEventId],
        latest: Vec<OwnedEventId>,
    ) -> ApiResult<Vec<Arc<Pdu>>> {
        let receiving = &*self.receiving;
        let room_id = receiving.room_id.to_owned();
        let mut request = get_missing_events::v1::Request::new(room_id, earliest.to_vec(), latest);
        request.limit = UInt::from(MISSING_EVENTS_MAX);
        // Without the least depth that is wanted: what an event is built upon is to be told even where it is history.
        let answer = peers::ask(receiving.app, server, request).await;
        let mut raw = match answer {
            Ok(answer) => answer.events,
            Err(error) => {
                tracing::info!(%error, "missing events could not be had");
                if server != receiving.origin {
                    return Ok(Vec::new());
                }
                return self.resigned(unobtainable("what was before it"), Vec::new());
            }
        };
        raw.truncate(MISSING_EVENTS_MAX as usize);
        let parsed = |raw: &RawValue| serde_json::from_str::<CanonicalJsonObject>(raw.get());
        // Its ID cannot be told, so neither can what is built upon it: other servers take none of it either.
        if raw.iter().any(|raw| parsed(raw).is_err()) {
            return Err(unobtainable("a well-formed event before it"));
        }
        Ok(self.checked(&raw).await)
    }

    /// Whether an event has a known state after it by now.
    fn is_placed(&self, id: &EventId) -> ApiResult<bool> {
        let store = &self.receiving.app.store;
        let aside = || store.aside(id);
        Ok(store.event(id)?.is_some() || aside()?.is_some_and(|event| event.state_after.is_some()))
    }

    /// Places an event, with the states asked for that it is built upon and that are not known.
    async fn settle(&mut self, pdu: &Arc<Pdu>) -> ApiResult<()> {
        let mut fetched = StatesAfter::new();
        let Some(missing) = self.receiving.place(pdu, &fetched).await? else {
            return Ok(());
        };
        if !missing.auth_events.is_empty() {
            self.auth_chain(pdu.event_id()).await?;
        }
        for id in missing.prev_events {
            let after = self.state_after(&id).await?;
            fetched.insert(id, after);
        }
        match self.receiving.place(pdu, &fetched).await? {
            None => Ok(()),
            Some(_) => Err(unobtainable("what it needs")),
        }
    }

    /// The state after an event that has no place here. The event itself is kept: the state may name it.
    async fn state_after(&mut self, id: &EventId) -> ApiResult<StateMap> {
        let before = self.state_before(id).await?;
        let Some(pdu) = self.event(id).await? else {
            return Err(unobtainable("an event that it is built upon"));
        };
        self.receiving.keep(vec![pdu]).await?;
        let receiving = &*self.receiving;
        let turn = receiving.app.rooms.turn(receiving.app, receiving.room_id);
        turn.await?.after_unplaced(id, before)
    }

    async fn checked(&self, raw: &[Box<RawValue>]) -> Vec<Arc<Pdu>> {
        let receiving = &*self.receiving;
        foreign::checked(receiving.app, receiving.room_id, receiving.rules, raw).await
    }

    /// Goes on with what there is, if it was tried often enough to have it all.
    fn resigned<T>(&self, error: ApiError, without: T) -> ApiResult<T> {
        if self.receiving.tries.are_many() && is_unobtainable(&error) {
            Ok(without)
        } else {
            Err(error)
        }
    }

    /// One event, by its ID; `None` when the server has something else under it, or what cannot be an event.
    async fn event(&self, id: &EventId) -> ApiResult<Option<Arc<Pdu>>> {
        let receiving = &*self.receiving;
        let (app, room_id, rules) = (receiving.app, receiving.room_id, receiving.rules);
        if let Some(pdu) = app.store.pdu(id)? {
            return Ok(Some(pdu));
        }
        let request = get_event::v1::Request::new(id.to_owned());
        let answer = peers::ask(app, &receiving.origin, request).await;
        let answer = answer.map_err(|error| {
            tracing::info!(event = %id, %error, "an event could not be had");
            unobtainable("an event of the state before it")
        })?;
        match foreign::each_checked(app, room_id, rules, &[answer.pdu])
            .await
            .pop()
        {
            Some(Ok(pdu)) if pdu.event_id() == id => Ok(Some(pdu)),
            Some(Err(error)) if is_unobtainable(&error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Fetches and keeps the auth chain of an event.
    async fn auth_chain(&mut self, id: &EventId) -> ApiResult<()> {
        let receiving = &*self.receiving;
        let room_id = receiving.room_id.to_owned();
        let request = get_event_authorization::v1::Request::new(room_id, id.to_owned());
        match peers::ask(receiving.app, &receiving.origin, request).await {
            Ok(answer) => {
                let events = self.checked(&answer.auth_chain).await;
                self.receiving.keep(events).await
            }
            Err(error) => {
                tracing::info!(event = %id, %error, "an auth chain could not be had");
                Ok(())
            }
        }
    }

    /// Fetches the state before an event.
    async fn state_before(&mut self, id: &EventId) -> ApiResult<StateMap> {
        if self.states == STATES_MAX {
            return Err(unobtainable("more states than are asked for"));
        }
        self.states += 1;
        let receiving = &*self.receiving;
        let (app, origin) = (receiving.app, &receiving.origin);
        let request =
            get_room_state_ids::v1::Request::new(id.to_owned(), receiving.room_id.to_owned());
        let answer = peers::ask(app, origin, request).await.map_err(|error| {
            tracing::info!(event = %id, %error, "a state could not be had");
            unobtainable("the state before it")
        })?;
        let ids = answer.pdu_ids.iter().chain(&answer.auth_chain_ids);
        let mut unknown = BTreeSet::new();
        for id in ids {
            if app.store.pdu(id)?.is_none() {
                unknown.insert(id.clone());
            }
        }
        let obtained = if unknown.len() > SINGLE_EVENTS_MAX {
            self.whole_state(id).await?
        } else {
            self.single_events(&unknown).await
        };
        // What was had need not be had again, whatever became of the rest.
        let (mut events, mut whole) = (Vec::new(), Ok(()));
        for event in obtained {
            match event {
                Ok(event) => events.extend(event),
                Err(error) => whole = Err(error),
            }
        }
        if !events.is_empty() {
            self.receiving.keep(events).await?;
            self.receiving.flushed().await?;
        }
        whole.or_else(|error| self.resigned(error, ()))?;
        self.state_of(&answer.pdu_ids)
    }

    async fn whole_state(&self, id: &EventId) -> ApiResult<Vec<ApiResult<Option<Arc<Pdu>>>>> {
        let receiving = &*self.receiving;
        let room_id = receiving.room_id.to_owned();
        let request = get_room_state::v1::Request::new(id.to_owned(), room_id);
        let answer = peers::ask(receiving.app, &receiving.origin, request).await;
        let answer = answer.map_err(|error| {
            tracing::info!(event = %id, %error, "a state could not be had");
            unobtainable("the state before it")
        })?;
        let (app, room_id, rules) = (receiving.app, receiving.room_id, receiving.rules);
        let mut events = foreign::each_checked(app, room_id, rules, &answer.auth_chain).await;
        events.extend(foreign::each_checked(app, room_id, rules, &answer.pdus).await);
        let events = events.into_iter().map(|event| match event {
            Err(error) if !is_unobtainable(&error) => Ok(None),
            event => event.map(Some),
        });
        Ok(events.collect())
    }

    async fn single_events(
        &self,
        ids: &BTreeSet<OwnedEventId>,
    ) -> Vec<ApiResult<Option<Arc<Pdu>>>> {
        let fetches = ids
            .clone()
            .into_iter()
            .map(|id| async move { self.event(&id).await });
        stream::iter(fetches)
            .buffered(EVENTS_AT_ONCE)
            .collect()
            .await
    }

    /// The state that these events make; those that are not known, or rejected, are not in it.
    fn state_of(&self, ids: &[OwnedEventId]) -> ApiResult<StateMap> {
        let mut entries: BTreeMap<(String, String), OwnedEventId> = BTreeMap::new();
        for id in ids {
            let Some(pdu) = self.receiving.app.store.pdu(id)? else {
                tracing::info!(event = %id, "an event of a state could not be had");
                continue;
            };
            if let (Some(key), false) = (pdu.state_key(), pdu.is_rejected()) {
                entries.insert((pdu.kind().to_string(), key.to_owned()), id.clone());
            }
        }
        let mut state = StateMap::new();
        for ((kind, key), id) in entries {
            state.insert(&kind, &key, id);
        }
        if state.get("m.room.create", "").is_none() {
            return Err(unobtainable("a state with the room's creation"));
        }
        Ok(state)
    }
}

/// Whether it may be had another time.
fn is_unobtainable(error: &ApiError) -> bool {
    error.status == StatusCode::BAD_GATEWAY
}

fn unobtainable(what: &str) -> ApiError {
    ApiError::bad_gateway(format!("the event is dropped: {what} could not be had"))
}
