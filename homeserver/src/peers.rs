//! Other servers: finding them, knowing their keys, asking them, being asked by them.
//!
//! Reading order: [`request`] (asking) → [`transport`] and [`resolve`] (how a request gets there) → [`origin`] (being
//! asked) → [`keys`] (who signed what).
//!
//! Spec: server-server API, "Server discovery", "Authentication".

pub mod edus;
mod flights;
pub mod keys;
pub mod origin;
pub mod request;
mod resolve;
pub mod sender;
pub mod transport;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ruma::{OwnedServerName, ServerName};
use tokio::sync::Semaphore;

pub use self::{
    keys::{verify_event, verify_events},
    request::{Limits, ask, ask_within},
};
use crate::{seams::Transport, server::App};

/// How many requests to other servers are open at once; more wait.
const REQUESTS_MAX: usize = 1_000;

/// For how long a server that could not be reached is not tried again, in milliseconds: long enough that one dead server
/// does not hold up every user in turn, short enough that nobody notices when it is back.
const UNREACHABLE_MS: u64 = 30 * 1_000;

/// How many servers that could not be reached are remembered.
const UNREACHABLE_SERVERS_MAX: usize = 10_000;

/// Why another server did not answer a request, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It may not be asked: the configuration says so.
    #[error("the server `{0}` is not federated with")]
    Denied(OwnedServerName),
    /// It was not reached, did not answer in time, or answered with something that is no answer.
    #[error("`{server}` could not be asked: {cause}")]
    Unreachable {
        /// Which server.
        server: OwnedServerName,
        /// What went wrong, in words.
        cause: String,
    },
    /// It answered with an error.
    #[error("`{server}` answers {status} {errcode}: {message}")]
    Refused {
        /// Which server.
        server: OwnedServerName,
        /// The status.
        status: http::StatusCode,
        /// The errcode, `M_UNKNOWN` if there is none.
        errcode: String,
        /// The text.
        message: String,
        /// The whole body, at most 64 KiB.
        body: serde_json::Map<String, serde_json::Value>,
    },
}

/// What is known of other servers, and the way to them.
#[derive(Debug)]
pub struct Peers {
    transport: Arc<dyn Transport>,
    /// Their keys.
    pub keys: keys::Keys,
    places: Semaphore,
    /// Who could not be reached, and until when that is gone by, in milliseconds since the epoch.
    unreachable_until_ms: Mutex<BTreeMap<OwnedServerName, u64>>,
}

impl Peers {
    /// Knows nothing yet but the way.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            keys: keys::Keys::default(),
            places: Semaphore::new(REQUESTS_MAX),
            unreachable_until_ms: Mutex::default(),
        }
    }

    /// A server has shown that it is there: it need not be waited for any longer.
    pub fn reached(&self, server: &ServerName) {
        self.unreachable_servers().remove(server);
    }

    fn was_unreachable(&self, app: &App, server: &ServerName) -> bool {
        let servers = self.unreachable_servers();
        let until_ms = servers.get(server).copied().unwrap_or(0);
        app.clock.now_ms() < until_ms
    }

    fn unreachable(&self, app: &App, server: &ServerName) {
        let now_ms = app.clock.now_ms();
        let mut servers = self.unreachable_servers();
        if servers.len() >= UNREACHABLE_SERVERS_MAX {
            servers.retain(|_, until_ms| *until_ms > now_ms);
            if servers.len() >= UNREACHABLE_SERVERS_MAX {
                servers.pop_first();
            }
        }
        servers.insert(server.to_owned(), now_ms + UNREACHABLE_MS);
    }

    fn unreachable_servers(&self) -> std::sync::MutexGuard<'_, BTreeMap<OwnedServerName, u64>> {
        self.unreachable_until_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
