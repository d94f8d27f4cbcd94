//! Looking up and claiming keys at other servers, for users of this one.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName,
    api::federation::keys::{claim_keys, get_keys},
};
use serde_json::{Map, Value, json};
use store::keys::UserNum;

use super::{device_keys, fetch, is_met, name, object, recall, signing_key, with_name};
use crate::{
    error::ApiResult,
    keys::{
        Claimed, DeviceKeys,
        signing::{self, Key, Usage},
    },
    peers::{self, PeerError},
    server::App,
};

/// How long other servers are waited for if the client does not say.
///
/// Spec: client-server API, "Key management API", `timeout`.
pub const ASK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How long other servers are waited for at most.
pub const ASK_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// How many servers are asked at the same time for one request.
const SERVERS_AT_ONCE: usize = 20;

/// Of how many users of one server the whole list of devices is fetched, to be remembered, for one request. The
/// keys of the others are asked for together, and not remembered.
const FETCHED_MAX: usize = 10;

/// Keys of users of other servers.
#[derive(Debug, Default)]
pub struct Found {
    /// Identity keys by user and device.
    pub devices: DeviceKeys,
    /// Master keys.
    pub master: BTreeMap<OwnedUserId, Key>,
    /// Self-signing keys.
    pub own: BTreeMap<OwnedUserId, Key>,
    /// Servers that did not answer, and why.
    pub failures: Map<String, Value>,
}

impl Found {
    pub(super) fn put_signing_keys(
        &mut self,
        user_id: &OwnedUserId,
        master: Option<Key>,
        own: Option<Key>,
    ) {
        self.master.extend(master.map(|key| (user_id.clone(), key)));
        self.own.extend(own.map(|key| (user_id.clone(), key)));
    }

    fn append(&mut self, mut other: Self) {
        self.devices.append(&mut other.devices);
        self.master.append(&mut other.master);
        self.own.append(&mut other.own);
        self.failures.append(&mut other.failures);
    }
}

/// By server what is asked of users who are not of this one.
fn by_server<V: Clone>(
    app: &App,
    asked: &BTreeMap<OwnedUserId, V>,
) -> BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, V>> {
    let mut servers: BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, V>> = BTreeMap::new();
    for (user_id, of_user) in asked.iter().filter(|(user_id, _)| !app.is_local(user_id)) {
        let server = servers.entry(user_id.server_name().to_owned()).or_default();
        server.insert(user_id.clone(), of_user.clone());
    }
    servers
}

/// The keys of those users who are of other servers, as `viewer` sees them.
///
/// # Errors
/// When the store cannot be read or written; a server that cannot be asked is one of the `failures`.
pub async fn query(
    app: &App,
    asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    viewer: UserNum,
    timeout: Duration,
) -> ApiResult<Found> {
    let questions = by_server(app, asked).into_iter().map(|(server, users)| {
        let app = app.clone();
        async move { query_server(&app, &server, &users, timeout).await }
    });
    let mut answers = stream::iter(questions).buffer_unordered(SERVERS_AT_ONCE);
    let mut found = Found::default();
    while let Some(answer) = answers.next().await {
        found.append(answer?);
    }
    for (user_id, key) in &mut found.master {
        let name = signing::public_key(key).map(|(_, public)| public.to_owned());
        if let (Some(name), Some(user)) = (name, app.store.find_user(user_id)?) {
            signing::add_signatures(app, key, (user, &name), Some(viewer))?;
        }
    }
    Ok(found)
}

async fn query_server(
    app: &App,
    server: &ServerName,
    users: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    timeout: Duration,
) -> ApiResult<Found> {
    let mut found = Found::default();
    let (mut fetched, mut others) = (Vec::new(), BTreeMap::new());
    for (user_id, devices) in users {
        let user = app.store.find_user(user_id)?;
        let met = match user {
            Some(user) => is_met(app, user)?,
            None => false,
        };
        match user.filter(|_| met) {
            Some(user) if recall(app, &mut found, user, user_id, devices)? => {}
            Some(user) if fetched.len() < FETCHED_MAX => fetched.push((user, user_id, devices)),
            _ => {
                others.insert(user_id.clone(), devices.clone());
            }
        }
    }
    if fetched.is_empty() && others.is_empty() {
        return Ok(found);
    }
    let work = async {
        let fetches = fetched
            .iter()
            .map(|(user, user_id, _)| fetch(app, *user, user_id));
        let fetches = futures_util::future::join_all(fetches);
        let others = async {
            if others.is_empty() {
                return Ok(Found::default());
            }
            ask_keys(app, server, others).await
        };
        futures_util::future::join(fetches, others).await
    };
    let Ok((fetches, others)) = tokio::time::timeout(timeout, work).await else {
        found.failures.insert(server.to_string(), late());
        return Ok(found);
    };
    for (outcome, (user, user_id, devices)) in fetches.into_iter().zip(fetched) {
        match outcome? {
            Ok(()) => {
                recall(app, &mut found, user, user_id, devices)?;
            }
            Err(error) => {
                found.failures.insert(server.to_string(), failure(&error));
            }
        }
    }
    match others {
        Ok(others) => found.append(others),
        Err(error) => {
            found.failures.insert(server.to_string(), failure(&error));
        }
    }
    Ok(found)
}

/// Asks a server for keys of some of its users.
async fn ask_keys(
    app: &App,
    server: &ServerName,
    users: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> Result<Found, PeerError> {
    let request = get_keys::v1::Request::new(users.clone());
    let mut answer = peers::ask(app, server, request).await?;
    let mut found = Found::default();
    for (user_id, asked) in users {
        let mut of_user = BTreeMap::new();
        for (device, raw) in answer.device_keys.remove(&user_id).unwrap_or_default() {
            if !asked.is_empty() && !asked.contains(&device) {
                continue;
            }
            let Some(keys) = object(&raw) else {
                continue;
            };
            let unsigned = keys.get("unsigned");
            let shown = unsigned.and_then(|unsigned| unsigned.get("device_display_name")?.as_str());
            let shown = name(shown);
            if let Some(keys) = device_keys(keys, &user_id, &device) {
                of_user.insert(device, with_name(keys, shown));
            }
        }
        let master = answer.master_keys.remove(&user_id);
        let master = master.as_ref().and_then(object);
        let own = answer.self_signing_keys.remove(&user_id);
        let own = own.as_ref().and_then(object);
        found.put_signing_keys(
            &user_id,
            master.and_then(|key| signing_key(key, &user_id, Usage::Master)),
            own.and_then(|key| signing_key(key, &user_id, Usage::SelfSigning)),
        );
        found.devices.insert(user_id, of_user);
    }
    Ok(found)
}

/// Claims one key of each device of users of other servers; second, the servers that did not answer.
pub async fn claim(
    app: &App,
    asked: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    timeout: Duration,
) -> (Claimed, Map<String, Value>) {
    let questions = by_server(app, asked).into_iter().map(|(server, users)| {
        let app = app.clone();
        async move {
            let asking = claim_of_server(&app, &server, users);
            let answer = tokio::time::timeout(timeout, asking).await;
            (server, answer)
        }
    });
    let mut answers = stream::iter(questions).buffer_unordered(SERVERS_AT_ONCE);
    let (mut claimed, mut failures) = (Claimed::new(), Map::new());
    while let Some((server, answer)) = answers.next().await {
        match answer {
            Ok(Ok(mut of_server)) => claimed.append(&mut of_server),
            Ok(Err(error)) => {
                failures.insert(server.to_string(), failure(&error));
            }
            Err(_) => {
                failures.insert(server.to_string(), late());
            }
        }
    }
    (claimed, failures)
}

async fn claim_of_server(
    app: &App,
    server: &ServerName,
    users: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
) -> Result<Claimed, PeerError> {
    let claims = users.into_iter().map(|(user_id, devices)| {
        let devices = devices
            .into_iter()
            .map(|(device, algorithm)| (device, algorithm.into()));
        (user_id, devices.collect())
    });
    let claims: claim_keys::v1::OneTimeKeyClaims = claims.collect();
    let request = claim_keys::v1::Request::new(claims.clone());
    let mut answer = peers::ask(app, server, request).await?;
    let mut claimed = Claimed::new();
    for (user_id, devices) in claims {
        let mut of_user = answer.one_time_keys.remove(&user_id).unwrap_or_default();
        for device in devices.into_keys() {
            let keys = of_user.remove(&device).unwrap_or_default();
            // One is what was asked for.
            if let Some((id, key)) = keys.into_iter().next() {
                let of_user = claimed.entry(user_id.clone()).or_default();
                let key = key.into_json();
                of_user
                    .entry(device)
                    .or_default()
                    .insert(id.to_string(), key);
            }
        }
    }
    Ok(claimed)
}

/// A failure as clients are told it: other servers write it like this.
fn failure(error: &PeerError) -> Value {
    match error {
        PeerError::Refused {
            status, message, ..
        } => json!({ "status": status.as_u16(), "message": message }),
        PeerError::Denied(_) => {
            json!({ "status": 403, "message": "the server is not federated with" })
        }
        PeerError::Unreachable { .. } => {
            json!({ "status": 503, "message": "the server could not be reached" })
        }
    }
}

fn late() -> Value {
    json!({ "status": 503, "message": "the server did not answer in time" })
}
