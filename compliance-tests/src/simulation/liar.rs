//! A server of a simulation that does not keep to the rules: it joins a room as it should, and then forks it, sends
//! what is not allowed, signs badly, names auth events that nobody has, keeps back what its events are built upon.
//!
//! It answers what it is asked, truly or not at all: what it says of the state before an event of its own would be
//! believed by whoever asks it and by nobody else, which no server can make good.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post, put},
};
use bytes::Bytes;
use homeserver::seams::Outgoing;
use http::{Method, StatusCode, header};
use ruma::{CanonicalJsonObject, RoomVersionId, ServerName, signatures::reference_hash};
use serde_json::{Value, json};

use super::{LIAR, Simulation, chance::Chance, internet::Internet, trace::Trace, workload::Room};
use crate::{Network, Stranger, segment, world::BEGINNING_MS};

/// How much it does.
const ACTIONS: usize = 30;

/// The longest time between two things that it does, in milliseconds.
const PAUSE_MS_MAX: u64 = 20_000;

/// How many events it makes up for a long auth chain.
const CHAIN_EVENTS: usize = 60;

/// Its user.
const USER: &str = "@mallory:liar";

/// The server, as it knows itself.
pub(crate) struct Liar {
    seed: u64,
    stranger: Stranger,
    internet: Arc<Internet>,
    trace: Arc<Trace>,
    known: Arc<Mutex<Known>>,
}

/// What it knows.
#[derive(Default)]
struct Known {
    rooms: BTreeMap<String, Entered>,
    events: BTreeMap<String, Value>,
    /// What it answers nobody.
    withheld: BTreeSet<String>,
    /// What nobody may show: its sender had no right to it.
    forbidden: BTreeSet<String>,
    txns: u64,
}

/// A room that it is in.
#[derive(Clone)]
struct Entered {
    version: RoomVersionId,
    /// The newest events, oldest first.
    newest: Vec<String>,
    depth: u64,
    /// What allows an ordinary event.
    auth: Vec<String>,
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Liar")
    }
}

impl Liar {
    pub(crate) fn new(seed: u64, internet: &Arc<Internet>, trace: &Arc<Trace>) -> Self {
        let stranger = Network::new().stranger(LIAR);
        let known = Arc::new(Mutex::new(Known::default()));
        internet.serve(LIAR, routes(&stranger, known.clone()));
        Self {
            seed,
            stranger,
            internet: internet.clone(),
            trace: trace.clone(),
            known,
        }
    }

    /// Its events that nobody may show.
    pub(crate) fn never_shown(&self) -> BTreeSet<String> {
        self.known().forbidden.clone()
    }

    /// It lives: joins what it can, and does its worst.
    pub(crate) async fn live(self: Arc<Self>, simulation: Arc<Simulation>) {
        let mut chance = Chance::of(self.seed, LIAR);
        for _ in 0..ACTIONS {
            let pause_ms = chance.between(1, PAUSE_MS_MAX);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let rooms = simulation.rooms();
            let room = chance.pick(&rooms).clone();
            let entered = self.known().rooms.get(&room.id).cloned();
            match entered {
                None => self.join(&room, &mut chance).await,
                Some(entered) => self.misbehave(&room, entered, &mut chance).await,
            }
        }
    }

    async fn join(&self, room: &Room, chance: &mut Chance) {
        let via = chance.pick(&room.via).clone();
        let (id, user) = (segment(&room.id), segment(USER));
        let make = format!(
            "/_matrix/federation/v1/make_join/{id}/{user}?ver={}",
            room.version
        );
        let Some(proposed) = self.ask(&via, Method::GET, &make, None).await else {
            return;
        };
        let version = RoomVersionId::try_from(room.version.as_str()).expect("a room version");
        let template = proposed["event"].clone();
        let depth = template["depth"].as_u64().unwrap_or(1);
        let (joined, event) = self.stranger.sign_event(template, &version);
        let send = format!("/_matrix/federation/v2/send_join/{id}/{}", segment(&joined));
        let answer = self.ask(&via, Method::PUT, &send, Some(event.clone()));
        let Some(answer) = answer.await else { return };
        let mut known = self.known();
        let mut auth = vec![joined.clone()];
        for part in ["auth_chain", "state"] {
            for event in answer[part].as_array().into_iter().flatten() {
                let id = id_of(event, &version);
                let kind = event["type"].as_str().unwrap_or_default();
                let creates = kind == "m.room.create" && room.version != "12";
                if part == "state" && (creates || kind == "m.room.power_levels") {
                    auth.push(id.clone());
                }
                known.events.insert(id, event.clone());
            }
        }
        known.events.insert(joined.clone(), event);
        let entered = Entered {
            version,
            newest: vec![joined],
            depth,
            auth,
        };
        known.rooms.insert(room.id.clone(), entered);
    }

    async fn misbehave(&self, room: &Room, entered: Entered, chance: &mut Chance) {
        let newest = entered.newest.last().cloned().unwrap_or_default();
        let old = chance.pick(&entered.newest).clone();
        let version = &entered.version;
        let sound = |text: &str, prev: &[&String]| {
            let content = json!({ "msgtype": "m.text", "body": text });
            self.event(room, &entered, "m.room.message", None, &content, prev)
        };
        let mut events = Vec::new();
        let what = match chance.between(0, 15) {
            0..3 => {
                events.push(sound("a message", &[&newest]));
                "says something"
            }
            3 => {
                let count = chance.between(2, 6);
                events.extend((0..count).map(|number| sound(&format!("fork {number}"), &[&old])));
                "forks the room"
            }
            4 | 11 => {
                let event = self.forbidden(room, &entered, &old, chance);
                self.known().forbidden.insert(id_of(&event, version));
                events.push(event);
                "sends what is not allowed"
            }
            5 => {
                let mut event = sound("signed", &[&newest]);
                event["content"]["body"] = "and changed".into();
                event["origin_server_ts"] = 1.into();
                events.push(event);
                "signs badly"
            }
            6 => {
                let mut event = sound("by unknown authority", &[&newest]);
                let chain = self.chain(room, &entered);
                event["auth_events"] = json!([chain]);
                events.push(self.stranger.sign_event(event, version).1);
                "names a long auth chain"
            }
            7 => {
                let hidden = sound("hidden", &[&newest]);
                let id = id_of(&hidden, version);
                self.known().withheld.insert(id.clone());
                events.push(sound("built upon it", &[&id]));
                "keeps an event back"
            }
            8 => {
                // Nobody signs what is too large; nobody need look at the signature either.
                let mut event = sound("large", &[&newest]);
                event["content"]["body"] = "large ".repeat(11_000).into();
                events.push(event);
                "sends a large event"
            }
            9 => {
                // The state of the room allows it, the events that it names do not.
                let mut event = sound("by no authority", &[&newest]);
                event["auth_events"] = json!([]);
                let (id, event) = self.stranger.sign_event(event, version);
                self.known().forbidden.insert(id);
                events.push(event);
                "names no authority"
            }
            10 | 12..15 => {
                // The events that it names allow it, the state of the room does not.
                let content = json!({ "membership": "leave" });
                let kind = "m.room.member";
                let leave = self.event(room, &entered, kind, Some(USER), &content, &[&newest]);
                let left = id_of(&leave, version);
                let late = sound("after it left", &[&left]);
                let mut known = self.known();
                known.forbidden.insert(id_of(&late, version));
                known.events.insert(left, leave.clone());
                known.rooms.remove(&room.id);
                events.extend([leave, late]);
                "speaks after it left"
            }
            _ => {
                let nobody = format!("${}", "A".repeat(43));
                events.push(sound("upon nothing", &[&nobody]));
                "builds upon nothing"
            }
        };
        self.trace.note(format_args!("{LIAR} {what}"));
        let keeps = matches!(what, "says something" | "forks the room");
        if keeps {
            let mut known = self.known();
            for event in &events {
                known.learn(&room.id, event);
            }
        }
        let all = room.via.clone();
        let to = if chance.percent(50) {
            all
        } else {
            vec![chance.pick(&all).clone()]
        };
        for server in to {
            self.transact(&server, &events).await;
        }
    }

    /// What it has no right to do.
    fn forbidden(
        &self,
        room: &Room,
        entered: &Entered,
        prev: &String,
        chance: &mut Chance,
    ) -> Value {
        let victim = format!("@ann:{}", chance.pick(&room.via));
        let (kind, key, content) = match chance.between(0, 4) {
            0 => {
                let content = json!({ "users": { USER: 100 } });
                ("m.room.power_levels", Some(""), content)
            }
            1 => {
                let content = json!({ "membership": "ban" });
                ("m.room.member", Some(&*victim), content)
            }
            2 => {
                // What no user makes cheap.
                let content = json!({ "url": "mxc://liar/mine" });
                ("m.room.avatar", Some(""), content)
            }
            3 => {
                let content = json!({ "membership": "join" });
                ("m.room.member", Some(&*victim), content)
            }
            _ => {
                let content = json!({ "msgtype": "m.text", "body": "I owe you" });
                let event = self.event(room, entered, "m.room.message", None, &content, &[prev]);
                let mut event = event;
                event["sender"] = victim.into();
                return self.stranger.sign_event(event, &entered.version).1;
            }
        };
        self.event(room, entered, kind, key, &content, &[prev])
    }

    /// Events that rest on each other, beginning with one that nobody allowed. The ID of the last one.
    fn chain(&self, room: &Room, entered: &Entered) -> String {
        let mut last = format!("${}", "B".repeat(43));
        for number in 0..CHAIN_EVENTS {
            let content = json!({ "users": { USER: 100 }, "number": number });
            let mut event = self.event(
                room,
                entered,
                "m.room.power_levels",
                Some(""),
                &content,
                &[&last],
            );
            event["auth_events"] = json!([last]);
            let (id, event) = self.stranger.sign_event(event, &entered.version);
            self.known().events.insert(id.clone(), event);
            last = id;
        }
        last
    }

    fn event(
        &self,
        room: &Room,
        entered: &Entered,
        kind: &str,
        key: Option<&str>,
        content: &Value,
        prev: &[&String],
    ) -> Value {
        let mut event = json!({
            "type": kind, "room_id": room.id, "sender": USER, "content": content,
            "origin_server_ts": BEGINNING_MS, "depth": entered.depth + 1,
            "prev_events": prev, "auth_events": entered.auth,
        });
        if let Some(key) = key {
            event["state_key"] = key.into();
        }
        self.stranger.sign_event(event, &entered.version).1
    }

    async fn transact(&self, to: &str, events: &[Value]) {
        let number = {
            let mut known = self.known();
            known.txns += 1;
            known.txns
        };
        let path = format!("/_matrix/federation/v1/send/{number}");
        let body = json!({
            "origin": LIAR, "origin_server_ts": BEGINNING_MS, "pdus": events, "edus": [],
        });
        self.ask(to, Method::PUT, &path, Some(body)).await;
    }

    /// Asks a server something; the answer, if it is a good one.
    async fn ask(
        &self,
        to: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<Value> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let stranger = &self.stranger;
        let authorization = stranger.authorization(to, &method, path, body.as_bytes());
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, authorization)
            .body(Bytes::from(body));
        let outgoing = Outgoing {
            server: ServerName::parse(to).expect("a server name"),
            request: request.expect("a valid request"),
            timeout: Duration::from_mins(1),
            bytes_max: usize::MAX,
        };
        let answer = self.internet.carry(LIAR, outgoing).await.ok()?;
        let good = answer.status() == StatusCode::OK;
        good.then(|| serde_json::from_slice(answer.body()).unwrap_or_default())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes an event into a room.
    fn learn(&mut self, room_id: &str, event: &Value) {
        let Some(entered) = self.rooms.get_mut(room_id) else {
            return;
        };
        let id = id_of(event, &entered.version);
        if self.events.insert(id.clone(), event.clone()).is_none() {
            entered.newest.push(id);
            let depth = event["depth"].as_u64().unwrap_or(0);
            entered.depth = entered.depth.max(depth);
        }
    }

    /// Everything from these events back, but not beyond those that are known and not what is withheld.
    fn back(&self, from: &Value, known: &Value, over: &str) -> Vec<Value> {
        let ids = |list: &Value| -> Vec<String> {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(|id| id.as_str().map(str::to_owned))
                .collect()
        };
        let mut done: BTreeSet<String> = ids(known).into_iter().collect();
        let mut todo = ids(from);
        let mut found = Vec::new();
        while let Some(id) = todo.pop() {
            if self.withheld.contains(&id) || !done.insert(id.clone()) {
                continue;
            }
            if let Some(event) = self.events.get(&id) {
                found.push(event.clone());
                todo.extend(ids(&event[over]));
            }
        }
        found
    }
}

type Shared = State<Arc<Mutex<Known>>>;

fn routes(stranger: &Stranger, known: Arc<Mutex<Known>>) -> Router {
    let signer = stranger.clone();
    let keys = move || std::future::ready(Json(signer.sign(signer.keys())));
    let base = "/_matrix/federation/v1";
    Router::new()
        .route("/_matrix/key/v2/server", get(keys))
        .route(&format!("{base}/send/{{txn_id}}"), put(take))
        .route(&format!("{base}/event/{{event_id}}"), get(event))
        .route(
            &format!("{base}/get_missing_events/{{room_id}}"),
            post(missing),
        )
        .route(
            &format!("{base}/event_auth/{{room_id}}/{{event_id}}"),
            get(auth),
        )
        .with_state(known)
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn take(State(known): Shared, Json(body): Json<Value>) -> Json<Value> {
    let mut known = lock(&known);
    for event in body["pdus"].as_array().into_iter().flatten() {
        known.learn(event["room_id"].as_str().unwrap_or_default(), event);
    }
    Json(json!({ "pdus": {} }))
}

async fn event(State(known): Shared, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    let known = lock(&known);
    let event = known.events.get(&id);
    let event = event.filter(|_| !known.withheld.contains(&id));
    let event = event.ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(json!({
        "origin": LIAR, "origin_server_ts": BEGINNING_MS, "pdus": [event],
    })))
}

async fn missing(State(known): Shared, Json(body): Json<Value>) -> Json<Value> {
    let known = lock(&known);
    let mut events = known.back(
        &body["latest_events"],
        &body["earliest_events"],
        "prev_events",
    );
    events.truncate(20);
    Json(json!({ "events": events }))
}

async fn auth(
    State(known): Shared,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Value>, StatusCode> {
    let known = lock(&known);
    let event = known.events.get(&id).ok_or(StatusCode::NOT_FOUND)?;
    let chain = known.back(&event["auth_events"], &json!([]), "auth_events");
    Ok(Json(json!({ "auth_chain": chain })))
}

/// The ID of an event, from its reference hash.
fn id_of(event: &Value, version: &RoomVersionId) -> String {
    let object: Option<CanonicalJsonObject> = serde_json::from_value(event.clone()).ok();
    let mut object = object.unwrap_or_default();
    object.remove("unsigned");
    let rules = version.rules().expect("a known room version");
    let hash = reference_hash(&object, &rules).unwrap_or_default();
    format!("${hash}")
}
