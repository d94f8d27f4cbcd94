//! A user of a simulation: one device that sends, and syncs, and is sure of what it was told.
//!
//! A request that was not answered because the server crashed is sent again as it was, as clients do. What `/sync`
//! says is checked as it comes: no position goes backwards, and no event comes twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Method, Request, header};
use serde_json::{Value, json};

use super::{chance::Chance, host::Host, trace::Trace};
use crate::{Reply, segment};

/// How often a request is sent that nobody answers.
const TRIES_MAX: usize = 20;

/// How long a client waits before it sends a request again.
const AGAIN: Duration = Duration::from_secs(7);

/// How long an answer may take: longer than all that a server asks others for it, one after the other.
const ANSWER_MAX: Duration = Duration::from_hours(1);

/// How many events of a room a client asks for at once: more than there are.
const TIMELINE_MAX: u32 = 1_000;

/// An event that a server has said it has.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) server: String,
    pub(crate) room_id: String,
    pub(crate) event_id: String,
}

/// A user with one device.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) host: Arc<Host>,
    pub(crate) id: String,
    token: String,
    trace: Arc<Trace>,
    txns: AtomicU64,
    synced: Mutex<Synced>,
    acknowledged: Mutex<Vec<Acknowledged>>,
}

#[derive(Debug, Default)]
struct Synced {
    since: Option<String>,
    /// The position in `since`.
    order: i64,
    /// By room: every event of its timeline that came.
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl User {
    /// Registers a user.
    ///
    /// # Panics
    /// When that fails.
    pub(crate) async fn register(host: Arc<Host>, trace: Arc<Trace>, name: &str) -> Self {
        let body = json!({
            "username": name, "password": "password", "auth": { "type": "m.login.dummy" },
        });
        let path = "/v3/register";
        let reply = ask(&host, None, Method::POST, path, Some(&body)).await;
        let reply = reply.expect("the server runs").ok();
        let text = |key: &str| reply[key].as_str().expect("a text").to_owned();
        Self {
            id: text("user_id"),
            token: text("access_token"),
            host,
            trace,
            txns: AtomicU64::new(0),
            synced: Mutex::default(),
            acknowledged: Mutex::default(),
        }
    }

    /// What its server has acknowledged.
    pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> {
        let acknowledged = self.acknowledged.lock();
        acknowledged.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The events of a room's timeline that came by `/sync`.
    pub(crate) fn seen(&self, room_id: &str) -> BTreeSet<String> {
        self.synced().seen.get(room_id).cloned().unwrap_or_default()
    }

    /// Asks its server; `None` when there was no answer, however often it was asked.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<Reply> {
        for _ in 0..TRIES_MAX {
            let token = Some(&*self.token);
            let asking = ask(&self.host, token, method.clone(), path, body.as_ref());
            let Ok(reply) = tokio::time::timeout(ANSWER_MAX, asking).await else {
                let id = &self.id;
                self.trace
                    .problem(format_args!("{id} {method} {path} is never answered"));
                return None;
            };
            let said = match &reply {
                None => "no answer".to_owned(),
                Some(reply) if reply.status == 200 => {
                    reply.json()["event_id"].as_str().unwrap_or("").to_owned()
                }
                Some(reply) => reply.json().to_string(),
            };
            let (id, status) = (&self.id, reply.as_ref().map_or(0, |r| r.status.as_u16()));
            self.trace
                .note(format_args!("{id} {method} {path} = {status} {said}"));
            if status == 500 {
                self.trace.problem(format_args!("{path}: {said}"));
            }
            if reply.is_some() {
                return reply;
            }
            tokio::time::sleep(AGAIN).await;
        }
        None
    }

    /// Sends an event of any type. Its ID, if the server has it.
    pub(crate) async fn send(&self, room_id: &str, kind: &str, content: Value) -> Option<String> {
        let path = format!("/v3/rooms/{}/send/{kind}", segment(room_id));
        self.put_event(room_id, &path, content).await
    }

    /// Says something.
    pub(crate) async fn say(&self, room_id: &str, text: &str) -> Option<String> {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.send(room_id, "m.room.message", content).await
    }

    /// Redacts an event.
    pub(crate) async fn redact(&self, room_id: &str, event_id: &str) -> Option<String> {
        let (room, event) = (segment(room_id), segment(event_id));
        let path = format!("/v3/rooms/{room}/redact/{event}");
        self.put_event(room_id, &path, json!({})).await
    }

    /// Sets a piece of state.
    pub(crate) async fn set(
        &self,
        room_id: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> Option<String> {
        let (room, key) = (segment(room_id), segment(key));
        let path = format!("/v3/rooms/{room}/state/{kind}/{key}");
        let reply = self.call(Method::PUT, &path, Some(content)).await?;
        self.acknowledge(room_id, &reply)
    }

    /// Puts an event under a new transaction ID, which stays the same however often it is sent.
    async fn put_event(&self, room_id: &str, path: &str, content: Value) -> Option<String> {
        let txn = self.txns.fetch_add(1, Ordering::Relaxed);
        let path = format!("{path}/txn-{txn}");
        let reply = self.call(Method::PUT, &path, Some(content)).await?;
        self.acknowledge(room_id, &reply)
    }

    fn acknowledge(&self, room_id: &str, reply: &Reply) -> Option<String> {
        let event_id = reply.json()["event_id"].as_str()?.to_owned();
        let acknowledged = self.acknowledged.lock();
        let mut acknowledged = acknowledged.unwrap_or_else(PoisonError::into_inner);
        acknowledged.push(Acknowledged {
            server: self.host.name().to_owned(),
            room_id: room_id.to_owned(),
            event_id: event_id.clone(),
        });
        Some(event_id)
    }

    /// Follows `/sync` for as long as the simulation goes on.
    pub(crate) async fn follow(self: Arc<Self>, mut chance: Chance) {
        loop {
            let wait_ms = *chance.pick(&[0, 1_000, 30_000]);
            self.sync(wait_ms).await;
            tokio::time::sleep(Duration::from_millis(chance.between(1, 15_000))).await;
        }
    }

    /// One `/sync`. Whether it was answered, and told something new of a room.
    pub(crate) async fn sync(&self, wait_ms: u64) -> bool {
        let since = self.synced().since.clone();
        let filter = json!({ "room": { "timeline": { "limit": TIMELINE_MAX } } });
        let filter = segment(&filter.to_string());
        let since = since.map(|since| format!("&since={since}"));
        let path = format!(
            "/v3/sync?timeout={wait_ms}&filter={filter}{}",
            since.unwrap_or_default()
        );
        let reply = ask(&self.host, Some(&self.token), Method::GET, &path, None).await;
        match reply {
            None => false,
            Some(reply) if reply.status == 200 => self.told(&reply.json()),
            Some(reply) => {
                let said = reply.json();
                self.trace
                    .problem(format_args!("/sync of {}: {said}", self.id));
                false
            }
        }
    }

    fn told(&self, answer: &Value) -> bool {
        let mut synced = self.synced();
        let next = answer["next_batch"].as_str().unwrap_or_default();
        let order = next.trim_start_matches('s').split(['_', '.']).next();
        let order: i64 = order.and_then(|order| order.parse().ok()).unwrap_or(-1);
        if order < synced.order {
            let (id, before) = (&self.id, synced.order);
            self.trace.problem(format_args!(
                "/sync of {id} goes back from {before} to {next}"
            ));
        }
        synced.order = order;
        synced.since = Some(next.to_owned());
        let mut news = false;
        for part in ["join", "leave"] {
            let rooms = answer["rooms"][part].as_object();
            for (room_id, room) in rooms.into_iter().flatten() {
                news = true;
                self.told_of(&mut synced, room_id, &room["timeline"]);
            }
        }
        news
    }

    fn told_of(&self, synced: &mut Synced, room_id: &str, timeline: &Value) {
        let seen = synced.seen.entry(room_id.to_owned()).or_default();
        // Who comes again may be told again what was there before they left.
        let anew = timeline["limited"] == true;
        for event_id in crate::event_ids(&timeline["events"]) {
            if !seen.insert(event_id.clone()) && !anew {
                self.trace.problem(format_args!(
                    "/sync of {} repeats {event_id} in {room_id}",
                    self.id
                ));
            }
        }
    }

    fn synced(&self) -> MutexGuard<'_, Synced> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request of a client; `path` is what follows `/_matrix/client`.
async fn ask(
    host: &Host,
    token: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Option<Reply> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/_matrix/client{path}"))
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = request.body(Body::from(body)).expect("a valid request");
    let answer = host.call(request, usize::MAX).await?;
    let (parts, bytes) = answer.expect("no limit is met").into_parts();
    Some(Reply {
        status: parts.status,
        headers: parts.headers,
        bytes: bytes.to_vec(),
    })
}
