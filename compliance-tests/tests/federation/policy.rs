//! Server-server API, "Policy Servers": a server that is driven by hand signs what is no spam.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Json, Router, routing::post};
use compliance_tests::{Client, Network, Stranger, World};
use http::StatusCode;
use ruma::RoomVersionId;
use serde_json::{Value, json};

const VERSION: RoomVersionId = RoomVersionId::V11;

/// A room of alice that `guard` watches over.
struct Guarded {
    network: Network,
    world: World,
    alice: Client,
    room: String,
    /// How often the guard was asked.
    asked: Arc<AtomicUsize>,
}

impl Guarded {
    async fn new() -> Self {
        let network = Network::new();
        let world = network.server("hs1").await;
        let alice = world.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": VERSION });
        let room = alice.create_room(body).await;
        let guard = network.stranger("guard");
        guard.join(&world, &room, "@guard:guard", &VERSION).await;
        let signs = guard.with_key(7, "policy_server");
        let asked = Arc::new(AtomicUsize::new(0));
        let answers = sign(signs.clone(), asked.clone());
        guard.serve(answers);
        let guarded = Self {
            network,
            world,
            alice,
            room,
            asked,
        };
        let policy = json!({ "via": "guard", "public_keys": { "ed25519": signs.public_key() } });
        guarded.set(policy).await;
        assert_eq!(guarded.asked(), 0, "not of what makes the guard a guard");
        guarded
    }

    async fn set(&self, policy: Value) {
        let set = self
            .alice
            .set_state(&self.room, "m.room.policy", "", policy);
        set.await.ok();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// The texts of the newest messages that a user sees, oldest first.
    async fn texts(&self, client: &Client) -> Vec<String> {
        let page = client.messages(&self.room, "limit=100").await;
        let events = page["chunk"].as_array().unwrap().iter().rev();
        events
            .filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned()))
            .collect()
    }

    async fn say(&self, text: &str) -> compliance_tests::Reply {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.alice.send(&self.room, "m.room.message", content).await
    }
}

/// Signs with the guard's key for rooms what does not speak of spam.
fn sign(guard: Stranger, asked: Arc<AtomicUsize>) -> Router {
    let sign = move |Json(event): Json<Value>| {
        asked.fetch_add(1, Ordering::Relaxed);
        let answer = if event.to_string().contains("spam") {
            let body = json!({ "errcode": "M_FORBIDDEN", "error": "this looks like spam" });
            (StatusCode::BAD_REQUEST, Json(body))
        } else {
            let (_, signed) = guard.sign_event(event, &VERSION);
            let signature = &signed["signatures"]["guard"]["ed25519:policy_server"];
            let body = json!({ "guard": { "ed25519:policy_server": signature } });
            (StatusCode::OK, Json(body))
        };
        std::future::ready(answer)
    };
    Router::new().route("/_matrix/policy/v1/sign", post(sign))
}

#[tokio::test]
async fn what_a_user_says_is_sent_when_it_is_signed_and_the_reason_told_when_it_is_not() {
    let guarded = Guarded::new().await;
    guarded.say("hello").await.ok();
    assert_eq!(guarded.asked(), 1);
    let refused = guarded.say("buy spam").await;
    assert_eq!(refused.json()["error"], "this looks like spam");
    refused.fails(400, "M_FORBIDDEN");
    let topic = json!({ "topic": "spam" });
    let set = guarded
        .alice
        .set_state(&guarded.room, "m.room.topic", "", topic);
    set.await.fails(400, "M_FORBIDDEN");
    guarded.say("goodbye").await.ok();
    assert_eq!(guarded.texts(&guarded.alice).await, ["hello", "goodbye"]);
}

#[tokio::test]
async fn another_server_sees_the_signature_and_need_not_ask() {
    let guarded = Guarded::new().await;
    let hs2 = guarded.network.server("hs2").await;
    let bob = hs2.register("bob").await;
    let join = format!(
        "/v3/join/{}?server_name=hs1",
        compliance_tests::segment(&guarded.room)
    );
    bob.post(&join, json!({})).await.ok();
    let since = bob.sync(None, "").await["next_batch"].clone();
    let asked = guarded.asked();
    guarded.say("hello").await.ok();
    let path = format!("/v3/sync?timeout=20000&since={}", since.as_str().unwrap());
    let sync = bob.get(&path).await.ok();
    let events = &sync["rooms"]["join"][&guarded.room]["timeline"]["events"];
    assert_eq!(events[0]["content"]["body"], "hello", "{sync}");
    assert_eq!(guarded.asked(), asked + 1);
}

#[tokio::test]
async fn what_comes_without_a_signature_is_asked_for_and_not_shown_when_it_is_refused() {
    let guarded = Guarded::new().await;
    let stranger = guarded.network.stranger("evil");
    let joining = stranger.join(&guarded.world, &guarded.room, "@mallory:evil", &VERSION);
    let (joined, join, answer) = joining.await;
    assert_eq!(guarded.asked(), 1);
    let by_guard = &answer["event"]["signatures"]["guard"]["ed25519:policy_server"];
    assert!(
        by_guard.is_string(),
        "the joining server gets it signed: {answer}"
    );
    let mut auth: Vec<Value> = join["auth_events"].as_array().unwrap().clone();
    auth.push(json!(joined));
    let rules = answer["state"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["type"] == "m.room.join_rules");
    let rules = crate::receiving::id_of(rules.unwrap());
    auth.retain(|id| *id != json!(rules));
    let message = |text: &str| {
        let event = json!({
            "type": "m.room.message", "room_id": guarded.room, "sender": "@mallory:evil",
            "content": { "msgtype": "m.text", "body": text }, "origin_server_ts": 1_800_000_000_000_u64,
            "depth": 20, "prev_events": [joined], "auth_events": auth,
        });
        stranger.sign_event(event, &VERSION).1
    };
    let pdus = vec![message("hello"), message("spam")];
    stranger
        .transact(&guarded.world, pdus, Vec::new())
        .await
        .ok();
    assert_eq!(guarded.asked(), 3);
    assert_eq!(guarded.texts(&guarded.alice).await, ["hello"]);
}

#[tokio::test]
async fn a_guard_that_is_gone_stops_all_but_its_own_removal() {
    let guarded = Guarded::new().await;
    guarded.network.cut("hs1", "guard");
    guarded.say("hello").await.fails(502, "M_UNKNOWN");
    guarded.set(json!({})).await;
    guarded.say("at last").await.ok();
    assert_eq!(guarded.texts(&guarded.alice).await, ["at last"]);
}

#[tokio::test]
async fn a_guard_with_another_key_or_without_anybody_in_the_room_is_none() {
    let guarded = Guarded::new().await;
    let other = guarded.network.stranger("other").public_key();
    let key = json!({ "ed25519": other });
    guarded
        .set(json!({ "via": "guard", "public_keys": key }))
        .await;
    guarded.say("one").await.fails(502, "M_UNKNOWN");
    guarded
        .set(json!({ "via": "elsewhere", "public_keys": key }))
        .await;
    guarded.say("two").await.ok();
    guarded
        .set(json!({ "via": "guard", "public_keys": {} }))
        .await;
    guarded.say("three").await.ok();
    assert_eq!(guarded.texts(&guarded.alice).await, ["two", "three"]);
}
