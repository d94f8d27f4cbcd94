//! Events that other servers gave: are they what they say?

use std::{collections::BTreeMap, sync::Arc};

use federation::event::{Required, Unverified, required, verify};
use ruma::{CanonicalJsonObject, OwnedServerName, room_version_rules::RoomVersionRules};

use super::{Hurry, Need};
use crate::{
    error::{ApiError, ApiResult},
    seams::heavy,
    server::App,
};

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

/// As [`verify_event`], for many events of one room version: the keys of all servers are fetched first, at the same time.
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
    heavy(app.inline, move || {
        let events = objects.into_iter().zip(wanted);
        let verified = events.map(|(object, required)| {
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
            verify(&object, &rules, &keys).map_err(refuse)
        });
        verified.collect()
    })
    .await
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err wants")]
fn refuse(error: Unverified) -> ApiError {
    ApiError::invalid_param(error.to_string())
}
