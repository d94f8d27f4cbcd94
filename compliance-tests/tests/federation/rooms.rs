//! Rooms with users of several servers: what is done on one is seen on all, also after they could not reach
//! each other. Server-server API, "PDUs", "Room State Resolution", "Backfilling and retrieving missing events".

use compliance_tests::{Client, Network, World, segment};
use serde_json::{Value, json};

/// How many answers of `/sync` something may take to arrive.
const PATIENCE: usize = 20;

async fn join_by(client: &Client, room: &str, server: &str) {
    let path = format!("/v3/join/{}?server_name={server}", segment(room));
    client.post(&path, json!({})).await.ok();
}

/// Follows `/sync` until an event of the room satisfies `is`.
pub(crate) async fn until(client: &Client, room: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut since: Option<String> = None;
    for _ in 0..PATIENCE {
        let sync = match &since {
            Some(since) => {
                let path = format!("/v3/sync?since={since}&timeout=1000");
                client.get(&path).await.ok()
            }
            None => client.sync(None, "").await,
        };
        let room = &sync["rooms"]["join"][room];
        let events = ["timeline", "state"].map(|part| room[part]["events"].as_array().cloned());
        let mut events = events.into_iter().flatten().flatten();
        if let Some(event) = events.find(|event| is(event)) {
            return event;
        }
        since = sync["next_batch"].as_str().map(str::to_owned);
    }
    panic!("it did not arrive");
}

async fn until_said(client: &Client, room: &str, text: &str) -> Value {
    until(client, room, |event| event["content"]["body"] == text).await
}

async fn until_member(client: &Client, room: &str, user: &str, membership: &str) -> Value {
    until(client, room, |event| {
        event["state_key"] == user && event["content"]["membership"] == membership
    })
    .await
}

/// A room of alice on hs1 and bob on hs2.
async fn shared(network: &Network) -> (World, World, Client, Client, String) {
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    join_by(&bob, &room, "hs1").await;
    (hs1, hs2, alice, bob, room)
}

/// Lets a server try at once to reach another that it could not reach.
async fn retry(world: &World, client: &Client, other: &str) {
    world.make_admin(client).await;
    let path = format!("/_synapse/admin/v1/federation/destinations/{other}/reset_connection");
    client.post(&path, json!({})).await;
}

#[tokio::test]
async fn what_is_said_on_one_server_is_heard_on_the_other() {
    let network = Network::new();
    let (_hs1, _hs2, alice, bob, room) = shared(&network).await;
    let said = alice.say(&room, "hello from one").await;
    let heard = until_said(&bob, &room, "hello from one").await;
    assert_eq!(heard["event_id"], said);
    assert_eq!(heard["sender"], "@alice:hs1");
    bob.say(&room, "hello from two").await;
    until_said(&alice, &room, "hello from two").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "tea" }))
        .await
        .ok();
    until(&bob, &room, |event| event["content"]["topic"] == "tea").await;
    let topic = bob.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(topic["topic"], "tea");
}

#[tokio::test]
async fn who_was_invited_and_joined_after_another_of_the_same_server_leaves_for_all_to_see() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let alice = hs1.register("alice").await;
    let (bob, carol) = (hs2.register("bob").await, hs2.register("carol").await);
    let invited = json!({ "preset": "private_chat", "invite": [bob.user_id, carol.user_id] });
    let room = alice.create_room(invited).await;
    join_by(&bob, &room, "hs1").await;
    // This server is in the room by now: nobody else need be asked.
    join_by(&carol, &room, "hs1").await;
    until_member(&alice, &room, "@carol:hs2", "join").await;
    carol.leave(&room).await.ok();
    until_member(&alice, &room, "@carol:hs2", "leave").await;
    until_member(&bob, &room, "@carol:hs2", "leave").await;
    assert_eq!(network.count("hs2", "hs1", "make_leave"), 0);
}

#[tokio::test]
async fn a_third_server_hears_all_and_is_heard_by_all() {
    let network = Network::new();
    let (_hs1, _hs2, alice, bob, room) = shared(&network).await;
    let hs3 = network.server("hs3").await;
    let carol = hs3.register("carol").await;
    join_by(&carol, &room, "hs2").await;
    // The join goes from hs2, which let her in, to the others.
    until_member(&alice, &room, "@carol:hs3", "join").await;
    carol.say(&room, "three").await;
    until_said(&alice, &room, "three").await;
    until_said(&bob, &room, "three").await;
    bob.say(&room, "two").await;
    until_said(&carol, &room, "two").await;
}

#[tokio::test]
async fn redactions_kicks_and_bans_reach_the_other_server() {
    let network = Network::new();
    let (_hs1, hs2, alice, bob, room) = shared(&network).await;
    let said = bob.say(&room, "regrettable").await;
    until_said(&alice, &room, "regrettable").await;
    let redact = format!("/v3/rooms/{}/redact/{}/1", segment(&room), segment(&said));
    alice.put(&redact, json!({})).await.ok();
    until(&bob, &room, |event| event["type"] == "m.room.redaction").await;
    let event = format!("/v3/rooms/{}/event/{}", segment(&room), segment(&said));
    assert_eq!(bob.get(&event).await.ok()["content"], json!({}));

    let dave = hs2.register("dave").await;
    dave.join(&room).await.ok();
    until_member(&alice, &room, "@dave:hs2", "join").await;
    let kick = format!("/v3/rooms/{}/kick", segment(&room));
    alice
        .post(&kick, json!({ "user_id": "@dave:hs2" }))
        .await
        .ok();
    until_member(&bob, &room, "@dave:hs2", "leave").await;
    dave.send(
        &room,
        "m.room.message",
        json!({ "msgtype": "m.text", "body": "still?" }),
    )
    .await
    .fails(403, "M_FORBIDDEN");
    let ban = format!("/v3/rooms/{}/ban", segment(&room));
    alice
        .post(&ban, json!({ "user_id": "@dave:hs2" }))
        .await
        .ok();
    until_member(&bob, &room, "@dave:hs2", "ban").await;
    dave.join(&room).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn what_this_server_does_not_know_is_redacted_by_who_has_the_power_where_another_may_know_it()
{
    let network = Network::new();
    let (_hs1, _hs2, alice, bob, room) = shared(&network).await;
    let own = alice.public_room().await;
    let unknown = |room: &str| format!("/v3/rooms/{}/redact/%24unknown/1", segment(room));
    let redacted = alice.put(&unknown(&room), json!({})).await.ok();
    let seen = until(&bob, &room, |event| event["type"] == "m.room.redaction").await;
    assert_eq!(seen["event_id"], redacted["event_id"]);
    let by_bob = bob.put(&unknown(&room), json!({})).await;
    by_bob.fails(403, "M_FORBIDDEN");
    let alone = alice.put(&unknown(&own), json!({})).await;
    alone.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_was_said_on_both_sides_of_an_outage_is_on_both_after_it() {
    let network = Network::new();
    let (hs1, hs2, alice, bob, room) = shared(&network).await;
    alice.say(&room, "before").await;
    until_said(&bob, &room, "before").await;
    network.cut("hs1", "hs2");
    for number in 0..5 {
        alice.say(&room, &format!("one {number}")).await;
        bob.say(&room, &format!("two {number}")).await;
    }
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "alice's" }))
        .await
        .ok();
    network.heal("hs1", "hs2");
    network.pass_ms(24 * 3_600_000);
    retry(&hs1, &alice, "hs2").await;
    retry(&hs2, &bob, "hs1").await;
    for number in 0..5 {
        until_said(&bob, &room, &format!("one {number}")).await;
        until_said(&alice, &room, &format!("two {number}")).await;
    }
    until(&bob, &room, |event| event["content"]["topic"] == "alice's").await;
    alice.say(&room, "together again").await;
    until_said(&bob, &room, "together again").await;
    bob.say(&room, "indeed").await;
    until_said(&alice, &room, "indeed").await;
    let state = format!("/v3/rooms/{}/state", segment(&room));
    let sorted = |state: Value| {
        let mut ids: Vec<String> = state
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["event_id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(
        sorted(alice.get(&state).await.ok()),
        sorted(bob.get(&state).await.ok())
    );
}

#[tokio::test]
async fn a_ban_on_one_side_of_an_outage_wins_over_what_the_banned_did_on_the_other() {
    let network = Network::new();
    let (hs1, hs2, alice, bob, room) = shared(&network).await;
    let levels = json!({ "users": { "@bob:hs2": 50 }, "state_default": 50, "ban": 50 });
    alice
        .set_state(&room, "m.room.power_levels", "", levels)
        .await
        .ok();
    until(&bob, &room, |event| {
        event["content"]["users"]["@bob:hs2"] == 50
    })
    .await;
    network.cut("hs1", "hs2");
    let ban = format!("/v3/rooms/{}/ban", segment(&room));
    alice
        .post(&ban, json!({ "user_id": "@bob:hs2" }))
        .await
        .ok();
    bob.set_state(&room, "m.room.name", "", json!({ "name": "Bob's" }))
        .await
        .ok();
    network.heal("hs1", "hs2");
    network.pass_ms(24 * 3_600_000);
    retry(&hs1, &alice, "hs2").await;
    retry(&hs2, &bob, "hs1").await;
    let carol = hs2.register("carol").await;
    join_by(&carol, &room, "hs1").await;
    until_member(&alice, &room, "@carol:hs2", "join").await;
    alice.say(&room, "after the ban").await;
    until_said(&carol, &room, "after the ban").await;
    alice
        .state(&room, "m.room.name", "")
        .await
        .fails(404, "M_NOT_FOUND");
    carol
        .state(&room, "m.room.name", "")
        .await
        .fails(404, "M_NOT_FOUND");
    let member = carol.state(&room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "ban");
}

#[tokio::test] // "Backfilling and retrieving missing events"
async fn history_from_before_the_join_is_asked_for_page_by_page() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    let mut said = Vec::new();
    for number in 0..250 {
        said.push(alice.say(&room, &format!("before {number}")).await);
    }
    join_by(&bob, &room, "hs1").await;
    let (mut found, mut from, mut last) = (Vec::new(), String::new(), Value::Null);
    loop {
        let path = format!("/v3/rooms/{}/messages?dir=b&limit=40{from}", segment(&room));
        let page = bob.get(&path).await.ok();
        let events = page["chunk"].as_array().unwrap().clone();
        found.extend(events.iter().filter_map(|event| {
            let said = event["type"] == "m.room.message";
            said.then(|| event["event_id"].as_str().unwrap().to_owned())
        }));
        last = events.last().cloned().unwrap_or(last);
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    assert_eq!(last["type"], "m.room.create");
    found.reverse();
    assert_eq!(found, said);
    assert!(network.count("hs2", "hs1", "/backfill/") <= 4);
    // What came is kept: the other server is not needed for it any more.
    network.cut("hs1", "hs2");
    let path = format!("/v3/rooms/{}/event/{}", segment(&room), segment(&said[0]));
    assert_eq!(bob.get(&path).await.ok()["content"]["body"], "before 0");
}

#[tokio::test] // "Room history visibility"
async fn history_that_the_room_keeps_from_who_joins_later_is_not_shown() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    let joined = json!({ "history_visibility": "joined" });
    alice
        .set_state(&room, "m.room.history_visibility", "", joined)
        .await
        .ok();
    alice.say(&room, "between us").await;
    join_by(&bob, &room, "hs1").await;
    let path = format!("/v3/rooms/{}/messages?dir=b&limit=100", segment(&room));
    let page = bob.get(&path).await.ok();
    let text = page["chunk"].to_string();
    assert!(!text.contains("between us"), "{text}");
}

#[tokio::test] // Client-server API, "Room history visibility", `m.heroes`
async fn what_the_room_was_before_this_server_came_counts_for_its_users() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let carol = hs2.register("carol").await;
    let hidden = json!({ "history_visibility": "joined" });
    let hidden = json!({ "type": "m.room.history_visibility", "state_key": "", "content": hidden });
    let body = json!({ "preset": "public_chat", "name": "Tea", "initial_state": [hidden] });
    let room = alice.create_room(body).await;
    join_by(&bob, &room, "hs1").await;
    alice.say(&room, "before she came").await;
    until_said(&bob, &room, "before she came").await;
    carol.join(&room).await.ok();
    bob.say(&room, "after").await;
    let sync = carol.sync(None, "").await;
    let joined = &sync["rooms"]["join"][&room];
    let events = joined["timeline"]["events"].as_array().unwrap();
    let texts: Vec<_> = events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str())
        .collect();
    assert_eq!(texts, ["after"]);
    let summary = &joined["summary"];
    assert!(
        summary.get("m.heroes").is_none(),
        "the room has a name: {summary}"
    );
}

#[tokio::test]
async fn state_from_before_the_join_is_redacted_too() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    let topic = json!({ "topic": "a secret" });
    let set = alice.set_state(&room, "m.room.topic", "", topic).await.ok();
    join_by(&bob, &room, "hs1").await;
    let present = bob.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(present["topic"], "a secret");
    let event = segment(set["event_id"].as_str().unwrap());
    let redact = format!("/v3/rooms/{}/redact/{event}/1", segment(&room));
    alice.put(&redact, json!({})).await.ok();
    until(&bob, &room, |event| event["type"] == "m.room.redaction").await;
    let left = bob.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(left, json!({}));
}

#[tokio::test] // "GET /_matrix/federation/v1/timestamp_to_event": a server that has not got it asks those that have
async fn a_time_before_the_join_is_found_with_what_was_said_around_it() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    network.pass_ms(60_000);
    let said = alice.say(&room, "a minute later").await;
    let then = network.now_ms();
    network.pass_ms(60_000);
    join_by(&bob, &room, "hs1").await;
    for (direction, ms) in [("f", then - 1_000), ("b", then + 1_000)] {
        let path = format!(
            "/v1/rooms/{}/timestamp_to_event?dir={direction}&ts={ms}",
            segment(&room)
        );
        let found = bob.get(&path).await.ok();
        assert_eq!(found["event_id"], said);
    }
    let path = format!("/v3/rooms/{}/context/{}", segment(&room), segment(&said));
    let context = bob.get(&path).await.ok();
    assert_eq!(context["event"]["content"]["body"], "a minute later");
}
