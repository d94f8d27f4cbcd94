//! Keys of other servers' users: their servers are asked, all at once.
//!
//! A server that does not answer costs the keys of its users, not the request. Spec: client-server API,
//! `POST /keys/query`, `POST /keys/claim`; server-server API, "End-to-End Encryption".

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId,
    api::federation::keys::{claim_keys, get_keys},
    serde::Raw,
};
use serde_json::{Map, Value, json};

use super::{Claimed, DeviceKeys, KeysById, signing};
use crate::{asked, peers::PeerError, server::App};

/// How long other servers are waited for when the client names no time.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(10);

/// How long they are waited for at most, whatever the client asks for.
pub const WAIT_MAX: Duration = Duration::from_mins(1);

/// How many servers are asked at once for one request.
const SERVERS_AT_ONCE: usize = 20;

/// How many servers one request may make this one ask.
const SERVERS_ASKED_MAX: usize = 1_000;

/// Servers that gave no keys, and why.
pub type Unreached = Map<String, Value>;

/// What is asked of each server, by its users.
fn by_server<T: Clone>(
    app: &App,
    asked: &BTreeMap<OwnedUserId, T>,
) -> BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, T>> {
    let mut servers: BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, T>> = BTreeMap::new();
    for (user_id, what) in asked.iter().filter(|(user_id, _)| !app.is_local(user_id)) {
        let server = servers.entry(user_id.server_name().to_owned()).or_default();
        server.insert(user_id.clone(), what.clone());
    }
    servers
}

fn failure(error: &PeerError) -> Value {
    let error = asked::relayed(error);
    json!({ "status": error.status.as_u16(), "errcode": error.errcode, "error": error.message })
}

fn parsed<T, U: serde::de::DeserializeOwned>(raw: &Raw<T>) -> Option<U> {
    raw.deserialize_as_unchecked::<U>().ok()
}

/// Looks up the keys of other servers' users, and adds them to what is known of local ones.
/// Returns the servers that gave none.
pub async fn query(
    app: &App,
    asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    wait: Duration,
    devices: &mut DeviceKeys,
    signing: &mut signing::Found,
) -> Unreached {
    let servers = by_server(app, asked).into_iter().take(SERVERS_ASKED_MAX);
    let mut answers = stream::iter(servers.map(|(server, users)| async move {
        let request = get_keys::v1::Request::new(users.clone());
        let answer = asked::ask(app, &server, request, wait.min(WAIT_MAX)).await;
        (server, users, answer)
    }))
    .buffer_unordered(SERVERS_AT_ONCE);
    let mut failures = Unreached::new();
    while let Some((server, users, answer)) = answers.next().await {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                failures.insert(server.to_string(), failure(&error));
                continue;
            }
        };
        // A server speaks for its own users, and says nothing of those it was not asked about.
        for (user_id, found) in answer.device_keys {
            let Some(wanted) = users.get(&user_id) else {
                continue;
            };
            let of_user = devices.entry(user_id.clone()).or_default();
            for (device, keys) in found {
                let keys: Option<Map<String, Value>> = parsed(&keys);
                let Some(keys) = keys else { continue };
                let text = |name: &str| keys.get(name).and_then(Value::as_str);
                let right = text("user_id") == Some(user_id.as_str())
                    && text("device_id") == Some(device.as_str())
                    && (wanted.is_empty() || wanted.contains(&device));
                if right {
                    of_user.insert(device, keys);
                }
            }
        }
        for (into, found) in [
            (&mut signing.master, answer.master_keys),
            (&mut signing.own, answer.self_signing_keys),
        ] {
            for (user_id, key) in found {
                let key: Option<signing::Key> = parsed(&key);
                let key = key.filter(|key| {
                    key.get("user_id").and_then(Value::as_str) == Some(user_id.as_str())
                });
                if let (Some(key), true) = (key, users.contains_key(&user_id)) {
                    into.insert(user_id, key);
                }
            }
        }
    }
    failures
}

/// Claims keys of other servers' users, and adds them to those of local ones.
/// Returns the servers that gave none.
pub async fn claim(
    app: &App,
    asked: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    wait: Duration,
    claimed: &mut Claimed,
) -> Unreached {
    let servers = by_server(app, asked).into_iter().take(SERVERS_ASKED_MAX);
    let mut answers = stream::iter(servers.map(|(server, users)| async move {
        let wanted = users.iter().map(|(user_id, devices)| {
            let devices = devices.iter();
            let devices = devices.map(|(device, kind)| (device.clone(), kind.as_str().into()));
            (user_id.clone(), devices.collect())
        });
        let request = claim_keys::v1::Request::new(wanted.collect());
        let answer = asked::ask(app, &server, request, wait.min(WAIT_MAX)).await;
        (server, users, answer)
    }))
    .buffer_unordered(SERVERS_AT_ONCE);
    let mut failures = Unreached::new();
    while let Some((server, users, answer)) = answers.next().await {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                failures.insert(server.to_string(), failure(&error));
                continue;
            }
        };
        for (user_id, devices) in answer.one_time_keys {
            let Some(wanted) = users.get(&user_id) else {
                continue;
            };
            for (device, keys) in devices {
                if !wanted.contains_key(&device) {
                    continue;
                }
                let keys = keys.into_iter();
                let keys: KeysById = keys
                    .map(|(id, key)| (id.to_string(), key.into_json()))
                    .collect();
                let of_user = claimed.entry(user_id.clone()).or_default();
                of_user.insert(device, keys);
            }
        }
    }
    failures
}
