//! The keys of other servers: kept, fetched when they are needed, and used to verify what others signed.
//!
//! What is stored is enough as long as it counts. Beyond that the server is asked itself, then the notaries of the
//! configuration; each server by one request at a time, however many wait for it, and not again for a while after it
//! failed. Which keys count for what is decided in [`federation::wire::keyring`].
//!
//! Spec: server-server API, "Retrieving server keys".

mod fetch;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use federation::wire::{
    keyring::{Key, Published, ServerKeys, Want, is_ed25519},
    lenient_base64,
};
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName, serde::Base64};
use serde::{Deserialize, Serialize};
use store::{
    Commit, StoreError,
    keys::{Keyspace, Packed, Table},
};

pub use self::verify::{verify_event, verify_events};
use super::{flights::Flights, request::SERVER_NAME_BYTES_MAX};
use crate::server::App;

/// How many servers' keys are kept in memory: a few hundred bytes each, and at most some 10 KB.
const SERVERS_IN_MEMORY_MAX: usize = 5_000;

/// For how long a server is not asked again after it answered, in milliseconds. Nobody can make this server ask more
/// often by signing with keys that there are not.
const ASK_AGAIN_MS_MIN: u64 = 60 * 1_000;

/// For how long a server is not asked again after it did not answer, in milliseconds; doubled each time.
const FAILED_MS_MIN: u64 = 60 * 1_000;

/// As [`FAILED_MS_MIN`], for a server that makes a request in the meantime; not doubled. Anybody can say to be it, so this
/// is how often anybody can make this server ask another.
const FAILED_BUT_ALIVE_MS: u64 = 10 * 1_000;

/// The longest such time, in milliseconds: an hour.
const FAILED_MS_MAX: u64 = 60 * 60 * 1_000;

/// How many servers are remembered that did not answer.
const FAILURES_MAX: usize = 10_000;

/// How long somebody who asks for the keys of others waits for those others.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(15);

const ROWS: Table<Row> = Table::new(Keyspace::SERVER_KEY);

/// What is stored of a server.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Row {
    keys: ServerKeys,
    /// Its last answer as it came, for other servers who ask this one for it.
    answer: CanonicalJsonObject,
}

/// What is needed of a server's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// For each of these, one key.
    pub wants: BTreeSet<Want>,
    /// An answer that counts until then by its own word, in milliseconds since the epoch; 0 for any or none.
    pub until_ms: u64,
}

impl Need {
    fn is_met(&self, keys: Option<&ServerKeys>) -> bool {
        keys.is_some_and(|keys| {
            keys.valid_until_ms >= self.until_ms
                && self.wants.iter().all(|want| keys.satisfies(want))
        })
    }
}

/// How urgent it is to have the keys of a server that did not answer before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hurry {
    /// The server has just made a request: it is there.
    Alive,
    /// Something that it signed, perhaps long ago.
    Perhaps,
}

/// That a server did not answer.
#[derive(Clone, Copy, Debug)]
struct Failure {
    last_ms: u64,
    times: u32,
}

impl Failure {
    fn is_over(self, now_ms: u64, hurry: Hurry) -> bool {
        let wait_ms = match hurry {
            Hurry::Alive => FAILED_BUT_ALIVE_MS,
            Hurry::Perhaps => FAILED_MS_MIN
                .saturating_mul(1 << (self.times.saturating_sub(1)).min(16))
                .min(FAILED_MS_MAX),
        };
        now_ms >= self.last_ms.saturating_add(wait_ms)
    }
}

/// The keys of other servers.
#[derive(Debug)]
pub struct Keys {
    known: quick_cache::sync::Cache<OwnedServerName, Arc<ServerKeys>>,
    failures: Mutex<BTreeMap<OwnedServerName, Failure>>,
    flights: Flights,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            known: quick_cache::sync::Cache::new(SERVERS_IN_MEMORY_MAX),
            failures: Mutex::default(),
            flights: Flights::default(),
        }
    }
}

impl Keys {
    /// The key of a request that `server` makes now.
    pub async fn of_request(
        &self,
        app: &App,
        server: &ServerName,
        key_id: &str,
    ) -> Option<Vec<u8>> {
        if !is_ed25519(key_id) {
            return None;
        }
        let want = Want {
            key_ids: BTreeSet::from([key_id.to_owned()]),
            at_ms: Some(app.clock.now_ms()),
            current: true,
        };
        let need = Need {
            wants: BTreeSet::from([want.clone()]),
            until_ms: 0,
        };
        let needs = BTreeMap::from([(server.to_owned(), need)]);
        self.obtain(app, &needs, Hurry::Alive).await;
        let keys = self.known(app, server).ok()??;
        let key = keys.fitting(&want).next()?;
        Some(key.1.to_vec())
    }

    /// Sees to it that answers are known that others need, as far as they can be had in [`REFRESH_TIMEOUT`].
    pub async fn refresh(&self, app: &App, needs: &BTreeMap<OwnedServerName, Need>) {
        let obtained = self.obtain(app, needs, Hurry::Perhaps);
        if tokio::time::timeout(REFRESH_TIMEOUT, obtained)
            .await
            .is_err()
        {
            tracing::debug!("some servers were too slow to tell their keys");
        }
    }

    /// The last answer of `server` about its keys, as it came.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn published(
        &self,
        app: &App,
        server: &ServerName,
    ) -> Result<Option<CanonicalJsonObject>, StoreError> {
        if server.as_str().len() > SERVER_NAME_BYTES_MAX {
            return Ok(None);
        }
        let row = app.store.get(ROWS, key(server))?;
        Ok(row.map(|row| row.answer))
    }

    /// What is known of the keys of `server` without asking anybody.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn known(&self, app: &App, server: &ServerName) -> Result<Option<Arc<ServerKeys>>, StoreError> {
        if server == app.server_name() {
            return Ok(Some(Arc::new(own(app))));
        }
        if server.as_str().len() > SERVER_NAME_BYTES_MAX {
            return Ok(None);
        }
        if let Some(keys) = self.known.get(server) {
            return Ok(Some(keys));
        }
        let Some(row) = app.store.get(ROWS, key(server))? else {
            return Ok(None);
        };
        let keys = Arc::new(row.keys);
        self.known.insert(server.to_owned(), keys.clone());
        Ok(Some(keys))
    }

    /// Keeps what was published by `server`; it came from itself, or from a notary.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    async fn learn(
        &self,
        app: &App,
        published: Published,
        from_itself: bool,
    ) -> Result<(), StoreError> {
        let (server, now_ms) = (published.server_name.clone(), app.clock.now_ms());
        let mut row = app.store.get(ROWS, key(&server))?.unwrap_or_default();
        if from_itself || published.valid_until_ms >= row.keys.valid_until_ms {
            row.keys.renew(&published, now_ms);
            row.answer = published.object;
        } else {
            row.keys.remember(&published);
        }
        let mut commit = Commit::new();
        commit.put(ROWS, key(&server), &row);
        app.store.commit(commit).await?;
        self.known.insert(server.clone(), Arc::new(row.keys));
        self.failures().remove(&server);
        Ok(())
    }

    /// Whether `server` may be asked now.
    fn may_ask(
        &self,
        server: &ServerName,
        known: Option<&ServerKeys>,
        now_ms: u64,
        hurry: Hurry,
    ) -> bool {
        let asked_lately = known.is_some_and(|keys| now_ms < keys.fetched_ms + ASK_AGAIN_MS_MIN);
        let failure = self.failures().get(server).copied();
        !asked_lately && failure.is_none_or(|failure| failure.is_over(now_ms, hurry))
    }

    fn failed(&self, server: &ServerName, now_ms: u64) {
        let mut failures = self.failures();
        if failures.len() >= FAILURES_MAX && !failures.contains_key(server) {
            failures.retain(|_, failure| !failure.is_over(now_ms, Hurry::Perhaps));
            if failures.len() >= FAILURES_MAX {
                failures.pop_first();
            }
        }
        let failure = failures.entry(server.to_owned()).or_insert(Failure {
            last_ms: now_ms,
            times: 0,
        });
        failure.last_ms = now_ms;
        failure.times = failure.times.saturating_add(1);
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, BTreeMap<OwnedServerName, Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(server: &ServerName) -> Packed {
    ROWS.key().text(server.as_str())
}

/// This server's own keys: nobody needs to be asked for them.
fn own(app: &App) -> ServerKeys {
    let pair = app.key.key_pair();
    let now_ms = app.clock.now_ms();
    let current = Key {
        key: Base64::new(pair.public_key().to_vec()),
        valid_until_ms: u64::MAX,
        current: true,
    };
    let mut keys = BTreeMap::from([(format!("ed25519:{}", pair.version()), current)]);
    for old in &app.config.federation.old_verify_keys {
        if let Some(bytes) = lenient_base64(&old.public_key) {
            let key_id = old.id.clone();
            let old = Key {
                key: Base64::new(bytes),
                valid_until_ms: old.expired_unix_seconds.saturating_mul(1_000),
                current: false,
            };
            keys.entry(key_id).or_insert(old);
        }
    }
    ServerKeys {
        keys,
        fetched_ms: now_ms,
        valid_until_ms: u64::MAX,
    }
}

#[cfg(test)]
mod tests;
