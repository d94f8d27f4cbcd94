//! A server that takes transactions, and keeps them for the test to look at.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::Path, http::StatusCode, routing::put};
use compliance_tests::{Network, Stranger, World};
use homeserver::{
    http::Caller,
    peers,
    rooms::members::{self, Change, To},
};
use ruma::{OwnedUserId, RoomId, ServerName, UserId, serde::Raw};
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::Notify;

/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// The status of an answer that never comes.
pub(crate) const NEVER: u16 = 0;

/// A transaction that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) txn_id: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    arrived: Vec<Arrived>,
    /// What the next transactions are answered with; then 200.
    answers: VecDeque<(u16, Value)>,
}

/// A stranger that takes transactions.
#[derive(Clone)]
pub(crate) struct Inbox {
    pub(crate) stranger: Stranger,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Inbox {
    pub(crate) fn new(network: &Network, name: &str) -> Self {
        let inbox = Self {
            stranger: network.stranger(name),
            state: Arc::default(),
            changed: Arc::default(),
        };
        let taker = inbox.clone();
        let take = move |Path(txn_id): Path<String>, Json(body): Json<Value>| {
            let (status, answer) = taker.take(txn_id, body);
            async move {
                if status == NEVER {
                    std::future::pending::<()>().await;
                }
                (StatusCode::from_u16(status).unwrap(), Json(answer))
            }
        };
        let path = "/_matrix/federation/v1/send/{txn_id}";
        inbox.stranger.serve(Router::new().route(path, put(take)));
        inbox
    }

    fn take(&self, txn_id: String, body: Value) -> (u16, Value) {
        let mut state = self.state.lock().unwrap();
        state.arrived.push(Arrived { txn_id, body });
        let answer = state.answers.pop_front();
        drop(state);
        self.changed.notify_one();
        answer.unwrap_or_else(|| (200, json!({ "pdus": {} })))
    }

    /// The next transaction is answered with this.
    pub(crate) fn answer(&self, status: u16, body: Value) {
        let mut state = self.state.lock().unwrap();
        state.answers.push_back((status, body));
    }

    /// Every transaction that arrived, also those that were not answered with 200.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.state.lock().unwrap().arrived.clone()
    }

    /// Waits until `pick` finds something in what arrived.
    #[track_caller]
    pub(crate) fn until<T>(
        &self,
        what: impl Into<String>,
        mut pick: impl FnMut(&[Arrived]) -> Option<T>,
    ) -> impl Future<Output = T> {
        let at = std::panic::Location::caller();
        let (inbox, what): (_, String) = (self.clone(), what.into());
        async move {
            let found = async {
                loop {
                    if let Some(found) = pick(&inbox.arrived()) {
                        return found;
                    }
                    inbox.changed.notified().await;
                }
            };
            match tokio::time::timeout(PATIENCE, found).await {
                Ok(found) => found,
                Err(elapsed) => panic!(
                    "{what} did not arrive ({at}), {elapsed}: {:#?}",
                    inbox.arrived()
                ),
            }
        }
    }

    /// Waits until so many transactions have arrived.
    #[track_caller]
    pub(crate) fn transactions(&self, count: usize) -> impl Future<Output = Vec<Arrived>> {
        self.until(format!("{count} transactions"), move |arrived| {
            (arrived.len() >= count).then(|| arrived.to_vec())
        })
    }

    /// Waits for an event with this text.
    #[track_caller]
    pub(crate) fn text(&self, text: &str) -> impl Future<Output = Value> {
        let wanted = text.to_owned();
        self.until(text.to_owned(), move |arrived| {
            pdus(arrived)
                .into_iter()
                .find(|pdu| pdu["content"]["body"] == wanted.as_str())
        })
    }

    /// Waits for an EDU of a kind that `pick` likes, and gives its content.
    #[track_caller]
    pub(crate) fn edu(
        &self,
        kind: &str,
        pick: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Value> {
        let wanted = kind.to_owned();
        self.until(kind.to_owned(), move |arrived| {
            edus(arrived, &wanted).into_iter().find(|edu| pick(edu))
        })
    }
}

/// The PDUs in transactions.
pub(crate) fn pdus(arrived: &[Arrived]) -> Vec<Value> {
    let lists = arrived.iter().map(|transaction| &transaction.body["pdus"]);
    lists
        .flat_map(|list| list.as_array().cloned().unwrap_or_default())
        .collect()
}

/// The texts of the messages in transactions.
pub(crate) fn texts(arrived: &[Arrived]) -> Vec<String> {
    pdus(arrived)
        .iter()
        .filter_map(|pdu| pdu["content"]["body"].as_str().map(ToOwned::to_owned))
        .collect()
}

/// The contents of the EDUs of a kind in transactions.
pub(crate) fn edus(arrived: &[Arrived], kind: &str) -> Vec<Value> {
    let lists = arrived.iter().map(|transaction| &transaction.body["edus"]);
    lists
        .flat_map(|list| list.as_array().cloned().unwrap_or_default())
        .filter(|edu| edu["edu_type"] == kind)
        .map(|edu| edu["content"].clone())
        .collect()
}

/// Changes the membership of a user of another server, as if that server had said so.
pub(crate) async fn move_remote(world: &World, room_id: &str, user_id: &str, to: To) {
    let app = &world.server().app;
    let user_id: OwnedUserId = UserId::parse(user_id).unwrap();
    let caller = Caller {
        user: app.store.user_num(&user_id).unwrap(),
        user_id: user_id.clone(),
        device: None,
        session: None,
        service: None,
        account: Arc::default(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let room_id = RoomId::parse(room_id).unwrap();
    let change = Change::plain(user_id, to);
    members::change(app, &caller, &room_id, change)
        .await
        .unwrap();
}

/// A user of another server joins a room of `world`.
pub(crate) async fn join_remote(world: &World, room_id: &str, user_id: &str) {
    move_remote(world, room_id, user_id, To::Join).await;
}

/// `origin` says an EDU to `world`.
pub(crate) async fn tell(world: &World, origin: &str, kind: &str, content: Value) {
    let edu = json!({ "edu_type": kind, "content": content });
    let edu = Raw::from_json(to_raw_value(&edu).unwrap());
    let origin = ServerName::parse(origin).unwrap();
    peers::edus::take(&world.server().app, &origin, edu)
        .await
        .unwrap();
}
