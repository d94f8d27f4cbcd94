//! Events that other servers gave: are they what they say?

use std::{collections::BTreeMap, sync::Arc};

use federation::{
    event::{Required, Unverified, required, verify},
    wire::keyring::ServerKeys,
};
use futures_util::future::join_all;
use ruma::{CanonicalJsonObject, OwnedServerName, room_version_rules::RoomVersionRules};

use super::{Hurry, Need};
use crate::{
    error::{ApiError, ApiResult},
    seams::heavy,
    server::App,
};

/// How many events are worth a thread of their own.
const PART_EVENTS_MIN: usize = 64;

/// Verifies the signatures and the content hash of an event that another server gave, and gives it without `unsigned`:
/// redacted, when its content is not the one that was signed.
///
/// # Errors
/// `M_INVALID_PARAM`, when it is not an event, or not signed by all who must sign it; 502, when a key could not be had
/// that would show it.
pub async fn verify_event(
    app: &App,
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> ApiResult<CanonicalJsonObject> {
    let mut verified = verify_events(app, vec![object.clone()], rules).await;
    verified
        .pop()
        .unwrap_or_else(|| Err(ApiError::invalid_param("there is no event")))
}

/// As [`verify_event`], for many events of one room version: the keys of all servers are fetched first, at the same time, and
/// the work is shared among the processors.
///
/// One outcome for each event, in their order.
pub async fn verify_events(
    app: &App,
    objects: Vec<CanonicalJsonObject>,
    rules: &RoomVersionRules,
) -> Vec<ApiResult<CanonicalJsonObject>> {
    let rules = Arc::new(rules.clone());
    let (objects, wanted) = {
        let rules = rules.clone();
        heavy(app.inline, move || {
            let wanted: Vec<Result<Required, Unverified>> = objects
                .iter()
                .map(|object| required(object, &rules))
                .collect();
            (objects, wanted)
        })
        .await
    };
    let mut needs: BTreeMap<OwnedServerName, Need> = BTreeMap::new();
    for (server, want) in wanted
        .iter()
        .flatten()
        .flat_map(|required| &required.servers)
    {
        let need = needs.entry(server.clone()).or_default();
        need.wants.insert(want.clone());
    }
    app.peers.keys.obtain(app, &needs, Hurry::Perhaps).await;
    let mut known = BTreeMap::new();
    for server in needs.into_keys() {
        if let Ok(Some(keys)) = app.peers.keys.known(app, &server) {
            known.insert(server, keys);
        }
    }
    let known = Arc::new(known);
    let mut events: Vec<_> = objects.into_iter().zip(wanted).collect();
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    let size = events.len().div_ceil(parts).max(PART_EVENTS_MIN);
    let mut jobs = Vec::new();
    while !events.is_empty() {
        let part: Vec<_> = events.drain(..size.min(events.len())).collect();
        let (known, rules) = (known.clone(), rules.clone());
        jobs.push(heavy(app.inline, move || {
            let verified = part
                .into_iter()
                .map(|(object, required)| verify_by(&object, required, &known, &rules));
            verified.collect::<Vec<_>>()
        }));
    }
    join_all(jobs).await.into_iter().flatten().collect()
}

/// Verifies one event with those of the `known` keys that count for it.
fn verify_by(
    object: &CanonicalJsonObject,
    required: Result<Required, Unverified>,
    known: &BTreeMap<OwnedServerName, Arc<ServerKeys>>,
    rules: &RoomVersionRules,
) -> ApiResult<CanonicalJsonObject> {
    let required = required.map_err(refuse)?;
    let mut keys = BTreeMap::new();
    for (server, want) in required.servers {
        let fitting: BTreeMap<String, Vec<u8>> = known
            .get(&server)
            .map(|keys| keys.fitting(&want))
            .into_iter()
            .flatten()
            .map(|(key_id, key)| (key_id.to_owned(), key.to_vec()))
            .collect();
        if fitting.is_empty() {
            let text = format!("no key of `{server}` counts for the event");
            return Err(ApiError::bad_gateway(text));
        }
        keys.insert(server, fitting);
    }
    verify(object, rules, &keys).map_err(refuse)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err wants")]
fn refuse(error: Unverified) -> ApiError {
    ApiError::invalid_param(error.to_string())
}
