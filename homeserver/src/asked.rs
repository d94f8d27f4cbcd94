//! What other servers answered when this one asked for its users: remembered for a short while, and asked for once
//! however many wait.
//!
//! What is remembered here is in memory only, and everything in it has a bound: names come from users, and any server
//! can make up as many as it likes.

use std::{future::Future, sync::Arc, time::Duration};

use http::StatusCode;
use ruma::{
    OwnedRoomId, ServerName,
    api::{OutgoingRequest, path_builder::SinglePath},
};
use serde_json::{Map, Value};

use crate::{
    error::ApiError,
    peers::{self, Limits, PeerError},
    server::App,
};

/// How much memory remembered profiles may take, in bytes (4 MiB).
const PROFILES_BYTES_MAX: u64 = 4 << 20;

/// How much memory remembered spaces may take, in bytes (16 MiB).
const SPACES_BYTES_MAX: u64 = 16 << 20;

/// What an answer takes beside its content, in bytes, about.
const ENTRY_BYTES: u64 = 256;

/// An answer, the time until which it is gone by, and about how much memory it takes.
#[derive(Clone, Debug)]
struct Kept<V> {
    until_ms: u64,
    bytes: u64,
    answer: V,
}

#[derive(Clone, Debug)]
struct Weigh;

impl<V> quick_cache::Weighter<String, Kept<V>> for Weigh {
    fn weight(&self, question: &String, kept: &Kept<V>) -> u64 {
        ENTRY_BYTES + question.len() as u64 + kept.bytes
    }
}

/// Answers by what was asked.
#[derive(Debug)]
pub struct Fresh<V> {
    cache: quick_cache::sync::Cache<String, Kept<V>, Weigh>,
    bytes: fn(&V) -> u64,
}

impl<V: Clone> Fresh<V> {
    /// None yet, and never more than about `bytes_max` in memory; `bytes` says about how much an answer takes.
    pub fn new(bytes_max: u64, bytes: fn(&V) -> u64) -> Self {
        Self {
            cache: quick_cache::sync::Cache::with_weighter(1_024, bytes_max, Weigh),
            bytes,
        }
    }

    /// The answer to `question`; asked for now, if nobody did in the last `lasting_ms`. Who comes while it is being
    /// asked for waits for the same answer. `now_ms` is milliseconds since the epoch.
    ///
    /// # Errors
    /// Those of `ask`, which are not remembered.
    pub async fn get<E>(
        &self,
        now_ms: u64,
        question: &str,
        lasting_ms: u64,
        ask: impl Future<Output = Result<V, E>>,
    ) -> Result<V, E> {
        self.cache
            .remove_if(question, |kept| kept.until_ms <= now_ms);
        let kept = self.cache.get_or_insert_async(question, async {
            let answer = ask.await?;
            Ok(Kept {
                until_ms: now_ms.saturating_add(lasting_ms),
                bytes: (self.bytes)(&answer),
                answer,
            })
        });
        Ok(kept.await?.answer)
    }
}

/// About how much memory JSON takes, in bytes.
fn json_bytes(json: &impl serde::Serialize) -> u64 {
    serde_json::to_vec(json).map_or(0, |bytes| 2 * bytes.len() as u64)
}

/// What other servers answered lately.
#[derive(Debug)]
pub struct Asked {
    /// Profiles by user ID; `None`: there is no such user.
    pub profiles: Fresh<Option<Arc<Map<String, Value>>>>,
    /// Spaces by server and room ID; `None`: the server does not tell of it.
    pub spaces: Fresh<Option<Arc<Told>>>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            profiles: Fresh::new(PROFILES_BYTES_MAX, |profile| {
                profile.as_deref().map_or(0, json_bytes)
            }),
            spaces: Fresh::new(SPACES_BYTES_MAX, |told| {
                told.as_deref().map_or(0, json_bytes)
            }),
        }
    }
}

/// A room, and the rooms of a space, as another server tells of them. Spec: server-server API, `GET /hierarchy`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Told {
    /// The room's summary.
    pub room: Map<String, Value>,
    /// Its `m.space.child` events, stripped, with `origin_server_ts`.
    pub children_state: Vec<Value>,
    /// The summaries of the children that the server knows.
    pub children: Vec<Map<String, Value>>,
    /// The children that nobody of this server could join or read.
    pub inaccessible: Vec<OwnedRoomId>,
}

/// The largest answer that is not a file, in bytes (4 MiB).
const BYTES_MAX: usize = 4 << 20;

/// Asks another server while somebody waits for the answer.
///
/// # Errors
/// See [`PeerError`]; no answer within `wait` is one that did not come.
pub async fn ask<R>(
    app: &App,
    server: &ServerName,
    request: R,
    wait: Duration,
) -> Result<R::IncomingResponse, PeerError>
where
    R: OutgoingRequest<PathBuilder = SinglePath> + Send,
{
    ask_for(app, server, request, wait, BYTES_MAX).await
}

/// As [`ask`], for an answer of up to `bytes_max`.
///
/// # Errors
/// As [`ask`].
pub async fn ask_for<R>(
    app: &App,
    server: &ServerName,
    request: R,
    wait: Duration,
    bytes_max: usize,
) -> Result<R::IncomingResponse, PeerError>
where
    R: OutgoingRequest<PathBuilder = SinglePath> + Send,
{
    let limits = Limits {
        timeout: wait,
        bytes_max,
    };
    // Waiting for a place among all requests to other servers counts, too.
    let answer = tokio::time::timeout(wait, peers::ask_within(app, server, request, limits));
    answer.await.unwrap_or_else(|_| {
        Err(PeerError::Unreachable {
            server: server.to_owned(),
            cause: format!("no answer within {} s", wait.as_secs()),
        })
    })
}

/// What a client is told when another server did not answer, or not with what was asked for.
pub fn relayed(error: &PeerError) -> ApiError {
    match error {
        PeerError::Denied(_) => ApiError::not_found(error.to_string()),
        PeerError::Refused {
            status, message, ..
        } if *status == StatusCode::NOT_FOUND => ApiError::not_found(message.clone()),
        PeerError::Refused {
            status, message, ..
        } if *status == StatusCode::FORBIDDEN => ApiError::forbidden(message.clone()),
        _ => ApiError::bad_gateway(error.to_string()),
    }
}

/// Whether another server answered that there is no such thing.
pub fn is_not_found(error: &PeerError) -> bool {
    matches!(error, PeerError::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_remembered_until_its_time_is_over() {
        let fresh = Fresh::new(10_000, |_| 100);
        let ask = |answer: u8| async move { Ok::<_, ()>(answer) };
        assert_eq!(fresh.get(1_000, "a", 500, ask(1)).await, Ok(1));
        assert_eq!(fresh.get(1_499, "a", 500, ask(2)).await, Ok(1));
        assert_eq!(fresh.get(1_500, "a", 500, ask(3)).await, Ok(3));
        assert_eq!(fresh.get(1_500, "b", 500, ask(4)).await, Ok(4));
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let fresh = Fresh::new(10_000, |_| 100);
        assert_eq!(
            fresh.get(0, "a", 500, async { Err(()) }).await,
            Err::<u8, ()>(())
        );
        assert_eq!(
            fresh.get(0, "a", 500, async { Ok::<_, ()>(1) }).await,
            Ok(1)
        );
    }

    #[tokio::test]
    async fn who_comes_while_it_is_asked_for_waits_for_the_same_answer() {
        let fresh = Fresh::new(10_000, |_| 100);
        let (answer, answered) = tokio::sync::oneshot::channel::<u8>();
        let first = fresh.get(0, "a", 500, async { answered.await.map_err(drop) });
        let second = fresh.get(0, "a", 500, async { Ok::<u8, ()>(2) });
        let answering = async {
            answer.send(1).unwrap();
        };
        let (first, second, ()) = tokio::join!(biased; first, second, answering);
        assert_eq!((first, second), (Ok(1), Ok(1)));
    }

    #[tokio::test]
    async fn no_more_is_remembered_than_there_is_room_for() {
        let fresh = Fresh::new(10_000, |_| 100);
        for number in 0..1_000 {
            let question = number.to_string();
            fresh
                .get(0, &question, 500, async { Ok::<_, ()>(number) })
                .await
                .unwrap();
        }
        assert!(fresh.cache.len() <= 40, "{}", fresh.cache.len());
    }
}
