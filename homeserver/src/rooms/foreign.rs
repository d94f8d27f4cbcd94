//! Events that other servers give: from their JSON to a [`Pdu`] (checks 1 to 3), and into an order in which
//! each comes after those that allow it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use federation::{event::Pdu, room::auth::allowed_by_auth_events};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, RoomId, events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use store::{Commit, rooms::Standing};

use super::Turn;
use crate::{
    error::{ApiError, ApiResult},
    peers,
    server::App,
};

/// The events of an answer that pass checks 1 to 3 and belong to the room; others are left out, and noted in the log.
pub async fn checked(
    app: &App,
    room_id: &RoomId,
    rules: &RoomVersionRules,
    raw: &[Box<RawValue>],
) -> Vec<Arc<Pdu>> {
    let each = each_checked(app, room_id, rules, raw).await;
    each.into_iter().flatten().collect()
}

/// Each of these events that passes checks 1 to 3 and belongs to the room, in their order.
///
/// What is wrong with an event is noted in the log: 502 when it could not be checked for want of a key, which may be
/// had later; anything else stays as it is.
pub async fn each_checked(
    app: &App,
    room_id: &RoomId,
    rules: &RoomVersionRules,
    raw: &[Box<RawValue>],
) -> Vec<ApiResult<Arc<Pdu>>> {
    let mut objects = Vec::with_capacity(raw.len());
    let are_canonical: Vec<bool> = raw
        .iter()
        .map(|raw| {
            let object = serde_json::from_str::<CanonicalJsonObject>(raw.get()).ok();
            let is_canonical = object.is_some();
            objects.extend(object);
            is_canonical
        })
        .collect();
    let verified = peers::verify_events(app, objects, rules).await;
    let mut verified = verified.into_iter();
    let pdus = are_canonical.into_iter().map(|is_canonical| {
        let verified = is_canonical.then(|| verified.next()).flatten();
        let verified = verified.ok_or_else(|| ApiError::invalid_param("not canonical JSON"))?;
        let pdu = Pdu::from_canonical(&verified?, rules)
            .map_err(|malformed| ApiError::invalid_param(malformed.to_string()))?;
        if pdu.room_id() != room_id {
            return Err(ApiError::invalid_param("it is of another room"));
        }
        Ok(Arc::new(pdu))
    });
    let noted = pdus.inspect(|pdu| {
        if let Err(error) = pdu {
            tracing::info!(%room_id, reason = %error.message, "an event is dropped");
        }
    });
    noted.collect()
}

/// The events, each behind those of its `auth_events` that are among them. Duplicates go.
pub fn by_auth(events: Vec<Arc<Pdu>>) -> Vec<Arc<Pdu>> {
    let all: BTreeMap<OwnedEventId, Arc<Pdu>> = events
        .into_iter()
        .map(|pdu| (pdu.event_id().to_owned(), pdu))
        .collect();
    let mut sorted = Vec::with_capacity(all.len());
    let mut seen: BTreeSet<&EventId> = BTreeSet::new();
    // Since version 12 every event is allowed by the room's creation without naming it.
    let is_create = |pdu: &&Arc<Pdu>| *pdu.kind() == TimelineEventType::RoomCreate;
    let creates = all.values().filter(is_create);
    let others = all.values().filter(|pdu| !is_create(pdu));
    for first in creates.chain(others) {
        // What is on the way down, with how many of its auth events are behind it.
        let mut path: Vec<(&Arc<Pdu>, usize)> = Vec::new();
        if seen.insert(first.event_id()) {
            path.push((first, 0));
        }
        while let Some((pdu, next)) = path.last_mut() {
            let pdu: &Arc<Pdu> = pdu;
            let Some(auth) = pdu.auth_events().get(*next) else {
                sorted.push(pdu.clone());
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(auth) = all.get(auth)
                && seen.insert(auth.event_id())
            {
                path.push((auth, 0));
            }
        }
    }
    sorted
}

impl Turn {
    /// Keeps events whose place is not known: of auth chains, of states. Check 4 is done here; an event that
    /// fails it is kept as rejected, one whose auth events are not all known is not kept at all.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn keep_outliers(&mut self, commit: &mut Commit, events: Vec<Arc<Pdu>>) -> ApiResult<()> {
        for pdu in by_auth(events) {
            if self.pdu(pdu.event_id())?.is_some() {
                continue;
            }
            let mut known = true;
            for id in pdu.auth_events() {
                known &= self.pdu(id)?.is_some();
            }
            if !known {
                tracing::info!(event = %pdu.event_id(), "an event is dropped: its auth chain has a gap");
                continue;
            }
            let allowed = allowed_by_auth_events(&pdu, &self.rules.authorization, |id| {
                self.pdu(id).ok().flatten()
            });
            let standing = match allowed {
                Ok(()) => Standing::Outlier,
                Err(reason) => {
                    tracing::info!(event = %pdu.event_id(), %reason, "an outlier is rejected");
                    Standing::Rejected
                }
            };
            let pdu = match standing {
                Standing::Rejected => Arc::new(pdu.as_rejected()),
                _ => pdu,
            };
            self.put_aside(commit, &pdu, standing, None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, auth: &[&Arc<Pdu>]) -> Arc<Pdu> {
        let auth: Vec<&str> = auth.iter().map(|pdu| pdu.event_id().as_str()).collect();
        let object = serde_json::json!({
            "type": "m.room.topic", "state_key": "", "sender": "@a:hs1", "room_id": "!r:hs1",
            "content": { "topic": name }, "origin_server_ts": 1, "depth": 1,
            "prev_events": [], "auth_events": auth, "hashes": {}, "signatures": {},
        });
        let object = serde_json::from_value(object).unwrap();
        let rules = ruma::RoomVersionId::V11.rules().unwrap();
        Arc::new(Pdu::from_canonical(&object, &rules).unwrap())
    }

    #[test]
    fn each_event_comes_behind_those_that_allow_it() {
        let a = event("a", &[]);
        let b = event("b", &[&a]);
        let c = event("c", &[&a, &b]);
        let d = event("d", &[&c, &event("not among them", &[])]);
        let sorted = by_auth(vec![d.clone(), c.clone(), a.clone(), b.clone(), d.clone()]);
        let place = |pdu: &Arc<Pdu>| {
            sorted
                .iter()
                .position(|one| one.event_id() == pdu.event_id())
        };
        assert_eq!(sorted.len(), 4);
        assert!(place(&a) < place(&b) && place(&b) < place(&c) && place(&c) < place(&d));
    }
}
