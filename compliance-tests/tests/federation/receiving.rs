//! Server-server API, "Checks performed on receipt of a PDU", "Rejection", "Soft failure": what a server may and
//! may not do that signs whatever its test wants.

use axum::{Json, Router, routing::post};
use compliance_tests::{Client, Network, Stranger, World, segment};
use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};

const VERSION: RoomVersionId = RoomVersionId::V11;

/// A room of alice, in which a stranger's user is.
struct Room {
    world: World,
    alice: Client,
    stranger: Stranger,
    id: String,
    /// The auth events of an ordinary event of mallory's.
    auth: Vec<String>,
    /// The stranger's join.
    joined: String,
    depth: u64,
    /// The state before it, and it.
    state: Vec<Value>,
    network: Network,
}

impl Room {
    async fn new() -> Self {
        let network = Network::new();
        let world = network.server("hs1").await;
        Self::on(network, world).await
    }

    async fn on(network: Network, world: World) -> Self {
        let stranger = network.stranger("evil");
        let alice = world.register("alice").await;
        let id = alice
            .create_room(json!({ "preset": "public_chat", "room_version": "11" }))
            .await;
        let (joined, event, answer) = stranger.join(&world, &id, "@mallory:evil", &VERSION).await;
        let depth = event["depth"].as_u64().unwrap();
        let mut auth = vec![joined.clone()];
        for event in answer["state"].as_array().unwrap() {
            let kind = event["type"].as_str().unwrap();
            if kind == "m.room.create" || kind == "m.room.power_levels" {
                auth.push(id_of(event));
            }
        }
        Self {
            world,
            alice,
            stranger,
            id,
            auth,
            joined,
            depth,
            state: {
                let mut state = answer["state"].as_array().unwrap().clone();
                state.push(event);
                state
            },
            network,
        }
    }

    /// A message, signed by the stranger.
    fn message(&self, sender: &str, text: &str, prev: &[&str]) -> (String, Value) {
        let event = json!({
            "type": "m.room.message", "room_id": self.id, "sender": sender,
            "content": { "msgtype": "m.text", "body": text },
            "origin_server_ts": 1_800_000_000_000_u64, "depth": self.depth + 1,
            "prev_events": prev, "auth_events": self.auth,
        });
        self.stranger.sign_event(event, &VERSION)
    }

    async fn sees(&self, event: &str) -> bool {
        let path = format!("/v3/rooms/{}/event/{}", segment(&self.id), segment(event));
        self.alice.get(&path).await.status == 200
    }

    async fn transact(&self, pdus: Vec<Value>) -> Value {
        self.stranger
            .transact(&self.world, pdus, Vec::new())
            .await
            .ok()
    }
}

/// The ID of an event, from its reference hash.
pub(crate) fn id_of(event: &Value) -> String {
    let mut object: ruma::CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
    object.remove("unsigned");
    let rules = VERSION.rules().unwrap();
    let hash = ruma::signatures::reference_hash(&object, &rules).unwrap();
    format!("${hash}")
}

#[tokio::test]
async fn a_message_of_a_member_is_there_and_a_second_time_changes_nothing() {
    let room = Room::new().await;
    let (id, event) = room.message("@mallory:evil", "hello", &[&room.joined]);
    let answer = room.transact(vec![event.clone()]).await;
    assert_eq!(answer["pdus"][&id], json!({}));
    assert!(room.sees(&id).await);
    room.transact(vec![event]).await;
    let page = room.alice.messages(&room.id, "limit=100").await;
    let texts = page.to_string().matches("hello").count();
    assert_eq!(texts, 1, "{page}");
}

#[tokio::test]
async fn a_server_cannot_speak_for_users_of_another() {
    let room = Room::new().await;
    let (id, event) = room.message("@alice:hs1", "I owe you", &[&room.joined]);
    room.transact(vec![event]).await;
    assert!(!room.sees(&id).await);
}

#[tokio::test]
async fn what_somebody_outside_the_room_says_is_rejected_and_nothing_that_rests_on_it_counts() {
    let room = Room::new().await;
    let (id, event) = room.message("@eve:evil", "let me in", &[&room.joined]);
    let answer = room.transact(vec![event]).await;
    assert_eq!(answer["pdus"][&id], json!({}), "a rejection is no error");
    assert!(!room.sees(&id).await);
    // Who is in the room may build upon it: the state is what it was.
    let (after, event) = room.message("@mallory:evil", "after it", &[&id]);
    room.transact(vec![event]).await;
    assert!(room.sees(&after).await);
}

#[tokio::test]
async fn what_was_allowed_where_it_stands_but_is_not_now_is_not_shown() {
    let room = Room::new().await;
    let ban = format!("/v3/rooms/{}/ban", segment(&room.id));
    let user = json!({ "user_id": "@mallory:evil" });
    room.alice.post(&ban, user).await.ok();
    // Built upon what was before the ban, as if it had not been seen.
    let (id, event) = room.message("@mallory:evil", "before, I swear", &[&room.joined]);
    let answer = room.transact(vec![event]).await;
    assert_eq!(answer["pdus"][&id], json!({}));
    assert!(!room.sees(&id).await);
}

#[tokio::test]
async fn what_is_missing_between_is_asked_for() {
    let room = Room::new().await;
    let (first, one) = room.message("@mallory:evil", "one", &[&room.joined]);
    let (second, two) = room.message("@mallory:evil", "two", &[&first]);
    let (third, three) = room.message("@mallory:evil", "three", &[&second]);
    let path = format!("/_matrix/federation/v1/get_missing_events/{}", room.id);
    let answer = json!({ "events": [one, two] });
    room.stranger.answer(Method::POST, &path, 200, answer);
    room.transact(vec![three]).await;
    for id in [first, second, third] {
        assert!(room.sees(&id).await);
    }
}

#[tokio::test]
async fn what_is_missing_between_is_asked_for_again_where_only_some_of_it_is_told() {
    let room = Room::new().await;
    let mut events: Vec<(String, Value)> = Vec::new();
    for number in 0..6 {
        let prev = events.last().map_or(&room.joined, |(id, _)| id).clone();
        let mut event = room
            .message("@mallory:evil", &number.to_string(), &[&prev])
            .1;
        event["depth"] = json!(room.depth + 1 + number);
        let bare = event.as_object_mut().unwrap();
        bare.remove("hashes");
        bare.remove("signatures");
        events.push(room.stranger.sign_event(event, &VERSION));
    }
    let (last, others) = events.split_last().unwrap();
    let told = events.clone();
    // One at a time: what the event is built upon that is asked about.
    let tell = move |Json(body): Json<Value>| {
        let of = body["latest_events"][0].clone();
        let place = told.iter().position(|(id, _)| of == id.as_str()).unwrap();
        let before = place.checked_sub(1).map(|place| told[place].1.clone());
        std::future::ready(Json(json!({ "events": Vec::from_iter(before) })))
    };
    let path = "/_matrix/federation/v1/get_missing_events/{room_id}";
    room.stranger.serve(Router::new().route(path, post(tell)));
    let answer = room.transact(vec![last.1.clone()]).await;
    assert_eq!(answer["pdus"][&last.0], json!({}));
    for (id, _) in others {
        assert!(room.sees(id).await);
    }
}

#[tokio::test]
async fn what_the_server_does_not_know_that_sent_the_newest_is_asked_of_others() {
    let room = Room::new().await;
    let hs2 = room.network.server("hs2").await;
    let bob = hs2.register("bob").await;
    let join = format!("/v3/join/{}?server_name=hs1", segment(&room.id));
    bob.post(&join, json!({})).await.ok();
    room.network.cut("hs1", "hs2");
    let unheard = room.alice.say(&room.id, "unheard").await;
    let upon = |prev: &str, depth: u64| {
        let mut event = room.message("@mallory:evil", "upon that", &[prev]).1;
        event["depth"] = json!(room.depth + depth);
        let bare = event.as_object_mut().unwrap();
        bare.remove("hashes");
        bare.remove("signatures");
        room.stranger.sign_event(event, &VERSION)
    };
    let (first, one) = upon(&unheard, 3);
    let (second, two) = upon(&first, 4);
    let path = format!("/_matrix/federation/v1/get_missing_events/{}", room.id);
    let answer = json!({ "events": [one] });
    room.stranger.answer(Method::POST, &path, 200, answer);
    room.transact(vec![one]).await;
    room.network.heal("hs1", "hs2");
    let answer = room.stranger.transact(&hs2, vec![two], Vec::new()).await;
    assert_eq!(answer.ok()["pdus"][&second], json!({}));
    for id in [unheard, first, second] {
        let path = format!("/v3/rooms/{}/event/{}", segment(&room.id), segment(&id));
        bob.get(&path).await.ok();
    }
}

#[tokio::test]
async fn what_is_missing_between_and_cannot_be_had_is_asked_for_once_more_later() {
    let room = Room::new().await;
    let (first, one) = room.message("@mallory:evil", "one", &[&room.joined]);
    let (second, two) = room.message("@mallory:evil", "two", &[&first]);
    let path = format!("/_matrix/federation/v1/get_missing_events/{}", room.id);
    room.stranger
        .answer(Method::POST, &path, 503, json!({ "errcode": "M_UNKNOWN" }));
    let answer = room.transact(vec![two]).await;
    assert!(answer["pdus"][&second]["error"].is_string(), "{answer}");
    assert!(!room.sees(&second).await);
    let answer = json!({ "events": [one] });
    room.stranger.answer(Method::POST, &path, 200, answer);
    room.network.pass_ms(30_000);
    // Nothing that is built upon it.
    let (_, other) = room.message("@mallory:evil", "other", &[&room.joined]);
    room.transact(vec![other]).await;
    while !room.sees(&second).await {
        tokio::task::yield_now().await;
    }
    assert!(room.sees(&first).await);
}

#[tokio::test] // "Backfilling and retrieving missing events"
async fn a_state_of_which_an_event_cannot_be_had_just_now_is_not_taken_for_whole() {
    let room = Room::new().await;
    let hs2 = room.network.server("hs2").await;
    let bob = hs2.register("bob").await;
    let join = format!("/v3/join/{}?server_name=hs1", segment(&room.id));
    bob.post(&join, json!({})).await.ok();
    // Somebody came before bob, of whom hs1 has not heard.
    let of_kind = |kind: &str| {
        let mut state = room.state.iter();
        id_of(state.find(|event| event["type"] == kind).unwrap())
    };
    let (create, powers) = (of_kind("m.room.create"), of_kind("m.room.power_levels"));
    let event = json!({
        "type": "m.room.member", "room_id": room.id, "sender": "@eve:evil", "state_key": "@eve:evil",
        "content": { "membership": "join" },
        "origin_server_ts": 1_800_000_000_000_u64, "depth": room.depth,
        "prev_events": [room.joined], "auth_events": [create, powers, of_kind("m.room.join_rules")],
    });
    let (came, coming) = room.stranger.sign_event(event, &VERSION);
    let mut event = room.message("@mallory:evil", "before", &[&came]).1;
    event["depth"] = json!(room.depth);
    let (old, before) = room.stranger.sign_event(event, &VERSION);
    let path = |what: &str| format!("/_matrix/federation/v1/{what}/{}", room.id);
    let history = json!({ "events": [before] });
    room.stranger
        .answer(Method::POST, &path("get_missing_events"), 200, history);
    let mut ids: Vec<String> = room.state.iter().map(id_of).collect();
    ids.push(came.clone());
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    room.stranger
        .answer(Method::GET, &path("state_ids"), 200, state);
    let told = |event: &Value| json!({ "origin": "evil", "origin_server_ts": 1, "pdus": [event] });
    let event = |id: &str| format!("/_matrix/federation/v1/event/{id}");
    room.stranger
        .answer(Method::GET, &event(&old), 200, told(&before));
    room.stranger.answer(
        Method::GET,
        &event(&came),
        503,
        json!({ "errcode": "M_UNKNOWN" }),
    );
    let (id, upon) = room.message("@mallory:evil", "upon that", &[&old]);
    let transact = async |event: &Value| {
        let answer = room
            .stranger
            .transact(&hs2, vec![event.clone()], Vec::new());
        answer.await.ok()
    };
    let answer = transact(&upon).await;
    assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    room.stranger
        .answer(Method::GET, &event(&came), 200, told(&coming));
    let answer = transact(&upon).await;
    assert_eq!(answer["pdus"][&id], json!({}));
    // Who came is there.
    let mut event = room.message("@eve:evil", "hello", &[&id]).1;
    event["auth_events"] = json!([create, powers, came]);
    let (id, hello) = room.stranger.sign_event(event, &VERSION);
    let answer = transact(&hello).await;
    assert_eq!(answer["pdus"][&id], json!({}));
    let path = format!("/v3/rooms/{}/event/{}", segment(&room.id), segment(&id));
    assert_eq!(bob.get(&path).await.ok()["content"]["body"], "hello");
}

#[tokio::test] // "Backfilling and retrieving missing events"
async fn what_is_older_than_the_join_of_this_server_is_no_news_and_does_no_harm() {
    let room = Room::new().await;
    let hs2 = room.network.server("hs2").await;
    let bob = hs2.register("bob").await;
    let join = format!("/v3/join/{}?server_name=hs1", segment(&room.id));
    bob.post(&join, json!({})).await.ok();
    // Built upon what was there before bob; asked what is between, the stranger tells all there ever was.
    let (id, event) = room.message("@mallory:evil", "from the side", &[&room.joined]);
    let path = |what: &str| format!("/_matrix/federation/v1/{what}/{}", room.id);
    let history = json!({ "events": room.state });
    let missing = path("get_missing_events");
    room.stranger.answer(Method::POST, &missing, 200, history);
    let (_join, state) = room.state.split_last().unwrap();
    let ids: Vec<String> = state.iter().map(id_of).collect();
    let before = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    room.stranger
        .answer(Method::GET, &path("state_ids"), 200, before);
    let answer = room.stranger.transact(&hs2, vec![event], Vec::new()).await;
    assert_eq!(answer.ok()["pdus"][&id], json!({}));
    let page = bob.messages(&room.id, "limit=100&dir=b").await;
    let chunk = page["chunk"].as_array().unwrap();
    assert!(chunk[0]["content"]["body"] == "from the side", "{page}");
    let after_join = |event: &&Value| event["state_key"] != "@bob:hs2";
    let newer = chunk.iter().take_while(after_join).count();
    assert_eq!(newer, 1, "{page}");
    // And the room is as it was.
    bob.say(&room.id, "still here").await;
    let topic = json!({ "topic": "tea" });
    let set = room.alice.set_state(&room.id, "m.room.topic", "", topic);
    let set = set.await.ok()["event_id"].clone();
    let topic = format!(
        "/v3/rooms/{}/event/{}",
        segment(&room.id),
        segment(set.as_str().unwrap())
    );
    while bob.get(&topic).await.status != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_event_that_rests_on_what_nobody_has_is_dropped() {
    let room = Room::new().await;
    let nowhere = format!("${}", "A".repeat(43));
    let (id, event) = room.message("@mallory:evil", "floating", &[&nowhere]);
    let answer = room.transact(vec![event]).await;
    assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    assert!(!room.sees(&id).await);
    let (id, event) = room.message("@mallory:evil", "still here", &[&room.joined]);
    room.transact(vec![event]).await;
    assert!(room.sees(&id).await);
}

#[tokio::test]
async fn an_event_with_too_many_others_before_it_is_dropped() {
    let room = Room::new().await;
    let many = vec![&*room.joined; 21];
    let (id, event) = room.message("@mallory:evil", "wide", &many);
    let answer = room.transact(vec![event]).await;
    assert!(answer["pdus"][&id]["error"].is_string(), "{answer}");
    assert!(!room.sees(&id).await);
}

#[tokio::test]
async fn a_transaction_over_its_limits_is_refused_and_one_bad_event_does_not_spoil_the_rest() {
    let room = Room::new().await;
    let (id, event) = room.message("@mallory:evil", "good", &[&room.joined]);
    let answer = room
        .transact(vec![
            json!({}),
            json!({ "room_id": room.id }),
            event.clone(),
        ])
        .await;
    assert_eq!(answer["pdus"][&id], json!({}));
    assert!(room.sees(&id).await);
    let many = vec![event; 51];
    room.stranger
        .transact(&room.world, many, Vec::new())
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // Room version 11, "Handling redactions"; on disk, where what is queued is not there yet
async fn an_event_and_its_redaction_come_in_one_transaction() {
    let network = Network::new();
    let world = network.server_on_disk("hs1", |_| {}).await;
    let room = Room::on(network, world).await;
    let (id, event) = room.message("@mallory:evil", "regrettable", &[&room.joined]);
    let redaction = json!({
        "type": "m.room.redaction", "room_id": room.id, "sender": "@mallory:evil",
        "content": { "redacts": id }, "origin_server_ts": 1_800_000_000_000_u64,
        "depth": room.depth + 2, "prev_events": [id], "auth_events": room.auth,
    });
    let (_, redaction) = room.stranger.sign_event(redaction, &VERSION);
    room.transact(vec![event, redaction]).await;
    let path = format!("/v3/rooms/{}/event/{}", segment(&room.id), segment(&id));
    assert_eq!(room.alice.get(&path).await.ok()["content"], json!({}));
}

#[tokio::test] // Room version 3, "Handling redactions"
async fn a_redaction_that_comes_first_empties_what_comes_after_it() {
    let room = Room::new().await;
    let (id, event) = room.message("@mallory:evil", "unsaid", &[&room.joined]);
    let redaction = json!({
        "type": "m.room.redaction", "room_id": room.id, "sender": "@mallory:evil",
        "content": { "redacts": id }, "origin_server_ts": 1_800_000_000_001_u64, "depth": room.depth + 2,
        "prev_events": [room.joined], "auth_events": room.auth,
    });
    let (_, redaction) = room.stranger.sign_event(redaction, &VERSION);
    room.transact(vec![redaction]).await;
    room.transact(vec![event]).await;
    let path = format!("/v3/rooms/{}/event/{}", segment(&room.id), segment(&id));
    let seen = room.alice.get(&path).await.ok();
    assert_eq!(seen["content"], json!({}), "{seen}");
    let because = &seen["unsigned"]["redacted_because"];
    assert_eq!(because["sender"], "@mallory:evil", "{seen}");
}
