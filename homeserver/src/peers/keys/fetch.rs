//! Asking for keys: the server itself, then the notaries.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use federation::wire::keyring::{ANSWER_BYTES_MAX, Published, Want, verify_signed};
use futures_util::{StreamExt as _, stream};
use http::Method;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName};
use serde_json::{Map, Value, json};

use super::{
    super::{
        PeerError,
        flights::Flight,
        request::{Limits, plain, send},
    },
    Hurry, Keys, Need,
};
use crate::server::App;

/// How long a server may take to say what its keys are.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How often a server is asked in a row whose answer is lost: without its keys, what it signed is left out.
const TRIES_MAX: u32 = 3;

/// For how long after the first request a lost one is sent again: who lets others wait for an answer that does not come
/// is not waited for twice.
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// How many servers are asked at once for one purpose.
const AT_ONCE_MAX: usize = 128;

/// How many servers a notary is asked for in one request.
const PER_NOTARY_REQUEST_MAX: usize = 50;

impl Keys {
    /// Sees to it that what is needed is known, as far as it can be had. Whether it is, shows what is known then.
    pub(super) async fn obtain(
        &self,
        app: &App,
        needs: &BTreeMap<OwnedServerName, Need>,
        hurry: Hurry,
    ) {
        let now_ms = app.clock.now_ms();
        let (mut flights, mut others) = (Vec::new(), Vec::new());
        for (server, need) in needs {
            if self.is_met(app, server, need) {
                continue;
            }
            let Some(flight) = self.flights.take(server) else {
                others.push(server);
                continue;
            };
            // Whoever had the flight before may have brought it, or failed, a moment ago.
            let known = self.known(app, server).ok().flatten();
            if !need.is_met(known.as_deref())
                && self.may_ask(server, known.as_deref(), now_ms, hurry)
            {
                flights.push(flight);
            }
        }
        if hurry == Hurry::Alive {
            // It says that it is there, whatever was found out before.
            for flight in &flights {
                app.peers.reached(&flight.server);
            }
        }
        let asked = flights.into_iter().map(|flight| async {
            self.ask_itself(app, &flight.server).await;
            let met = needs
                .get(&flight.server)
                .is_some_and(|need| self.is_met(app, &flight.server, need));
            (!met).then_some(flight)
        });
        let asked = stream::iter(asked).buffer_unordered(AT_ONCE_MAX);
        let mut left: Vec<Flight> = asked.filter_map(std::future::ready).collect().await;
        for notary in &app.config.federation.trusted_notaries {
            left = self.ask_notary(app, notary, needs, left).await;
        }
        for flight in &left {
            self.failed(&flight.server, now_ms);
        }
        drop(left);
        for server in others {
            self.flights.landed(server).await;
        }
    }

    fn is_met(&self, app: &App, server: &ServerName, need: &Need) -> bool {
        match self.known(app, server) {
            Ok(known) => need.is_met(known.as_deref()),
            Err(error) => {
                tracing::error!(%error, %server, "keys cannot be read");
                false
            }
        }
    }

    async fn ask_itself(&self, app: &App, server: &ServerName) {
        let limits = Limits {
            timeout: TIMEOUT,
            bytes_max: ANSWER_BYTES_MAX,
        };
        let until = app.clock.instant() + AGAIN_MAX;
        let mut tries = 1;
        let answer = loop {
            let request = plain(Method::GET, "/_matrix/key/v2/server", None);
            match send(app, server, request, Some(limits), false).await {
                Ok(answer) => break answer,
                Err(error) => {
                    tracing::debug!(%error, tries, "a server does not tell its keys");
                    let soon = app.clock.instant() < until && tries < TRIES_MAX;
                    if !soon || !matches!(error, PeerError::Unreachable { .. }) {
                        return;
                    }
                    tries += 1;
                }
            }
        };
        match Published::check(server, answer.body(), app.clock.now_ms()) {
            Ok(published) => self.keep(app, published, true).await,
            Err(error) => {
                tracing::info!(%server, %error, "a server's answer has no keys that count");
            }
        }
    }

    async fn keep(&self, app: &App, published: Published, from_itself: bool) {
        if let Err(error) = self.learn(app, published, from_itself).await {
            tracing::error!(%error, "keys cannot be stored");
        }
    }

    /// Asks a notary for everything that is left; gives what is left then.
    async fn ask_notary(
        &self,
        app: &App,
        notary: &ServerName,
        needs: &BTreeMap<OwnedServerName, Need>,
        mut left: Vec<Flight>,
    ) -> Vec<Flight> {
        // It cannot vouch for itself, and whom nobody has the keys of vouches for nothing.
        if left.is_empty()
            || left.iter().any(|flight| flight.server == notary)
            || notary == app.server_name()
        {
            return left;
        }
        let Some(notary_keys) = self.keys_of_notary(app, notary).await else {
            tracing::warn!(%notary, "the keys of a trusted notary cannot be had");
            return left;
        };
        let servers: Vec<OwnedServerName> =
            left.iter().map(|flight| flight.server.clone()).collect();
        for servers in servers.chunks(PER_NOTARY_REQUEST_MAX) {
            for object in query(app, notary, servers, needs).await {
                let name = object
                    .get("server_name")
                    .and_then(CanonicalJsonValue::as_str);
                let Some(server) = servers.iter().find(|server| Some(server.as_str()) == name)
                else {
                    continue;
                };
                let signed = verify_signed(&object, notary, &notary_keys).is_ok();
                match Published::check_object(server, object, app.clock.now_ms()) {
                    Ok(published) if signed => self.keep(app, published, false).await,
                    Ok(_) => {
                        tracing::warn!(%notary, %server, "a notary does not sign what it says");
                    }
                    Err(error) => {
                        tracing::info!(%notary, %server, %error, "a notary knows no keys");
                    }
                }
            }
        }
        left.retain(|flight| {
            let need = needs.get(&flight.server);
            !need.is_some_and(|need| self.is_met(app, &flight.server, need))
        });
        left
    }

    /// The keys that a notary signs with now. It is asked itself, never through another notary.
    async fn keys_of_notary(
        &self,
        app: &App,
        notary: &ServerName,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let now_ms = app.clock.now_ms();
        let current = || {
            let known = self.known(app, notary).ok()??;
            let want = Want {
                key_ids: known.keys.keys().cloned().collect(),
                at_ms: Some(now_ms),
                current: true,
            };
            let keys: BTreeMap<String, Vec<u8>> = known
                .fitting(&want)
                .map(|(key_id, key)| (key_id.to_owned(), key.to_vec()))
                .collect();
            (!keys.is_empty()).then_some(keys)
        };
        if let Some(keys) = current() {
            return Some(keys);
        }
        let known = self.known(app, notary).ok().flatten();
        match self.flights.take(notary) {
            // Whoever has it may wait for one that is taken here: not for ever, then.
            None => {
                let landed = self.flights.landed(notary);
                drop(tokio::time::timeout(TIMEOUT, landed).await);
            }
            Some(flight) => {
                if self.may_ask(notary, known.as_deref(), now_ms, Hurry::Alive) {
                    self.ask_itself(app, notary).await;
                    if current().is_none() {
                        self.failed(notary, now_ms);
                    }
                }
                drop(flight);
            }
        }
        current()
    }
}

/// What a notary says of these servers; nothing, if it does not answer.
async fn query(
    app: &App,
    notary: &ServerName,
    servers: &[OwnedServerName],
    needs: &BTreeMap<OwnedServerName, Need>,
) -> Vec<CanonicalJsonObject> {
    let now_ms = app.clock.now_ms();
    let criteria = |server: &OwnedServerName| {
        let need = needs.get(server).cloned().unwrap_or_default();
        let key_ids: BTreeSet<String> = need
            .wants
            .iter()
            .flat_map(|want| want.key_ids.iter().cloned())
            .collect();
        let until_ms = need.wants.iter().filter_map(|want| want.at_ms).max();
        let until_ms = until_ms.unwrap_or(now_ms).max(need.until_ms);
        let criteria: Map<String, Value> = key_ids
            .into_iter()
            .map(|key_id| (key_id, json!({ "minimum_valid_until_ts": until_ms })))
            .collect();
        (server.to_string(), Value::Object(criteria))
    };
    let criteria: Map<String, Value> = servers.iter().map(criteria).collect();
    let body = json!({ "server_keys": criteria });
    let request = plain(Method::POST, "/_matrix/key/v2/query", Some(&body));
    let limits = Limits {
        timeout: TIMEOUT,
        bytes_max: ANSWER_BYTES_MAX * servers.len(),
    };
    let answer = match send(app, notary, request, Some(limits), false).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::info!(%error, "a notary does not answer");
            return Vec::new();
        }
    };
    let answer: Option<Map<String, Value>> = serde_json::from_slice(answer.body()).ok();
    let keys = answer.and_then(|mut answer| match answer.remove("server_keys") {
        Some(Value::Array(keys)) => Some(keys),
        _ => None,
    });
    let objects = keys.unwrap_or_default().into_iter();
    objects
        .filter_map(|object| serde_json::from_value(object).ok())
        .collect()
}
