//! Client-server API, "Rooms", "Room history visibility".

use compliance_tests::{World, event_ids};
use serde_json::json;

#[tokio::test] // "Room history visibility", value `joined`
async fn a_joined_history_room_hides_what_was_said_before_the_join() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let visibility = json!({ "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": "joined" } });
    let room = alice
        .create_room(json!({ "preset": "public_chat", "initial_state": [visibility] }))
        .await;
    let early = alice.say(&room, "before").await;
    bob.join(&room).await.ok();
    let late = alice.say(&room, "after").await;
    let seen = bob
        .messages(
            &room,
            "limit=50&filter=%7B%22types%22%3A%5B%22m.room.message%22%5D%7D",
        )
        .await;
    assert_eq!(event_ids(&seen["chunk"]), [late]);
    let path = format!(
        "/v3/rooms/{}/event/{early}",
        compliance_tests::segment(&room)
    );
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "Room history visibility", value `shared`
async fn a_shared_history_room_shows_what_was_said_before_the_join() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let early = alice.say(&room, "before").await;
    let path = format!(
        "/v3/rooms/{}/event/{early}",
        compliance_tests::segment(&room)
    );
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    bob.join(&room).await.ok();
    assert_eq!(bob.get(&path).await.ok()["content"]["body"], "before");
}

#[tokio::test] // "PUT /rooms/{roomId}/send": the same transaction ID is the same event
async fn a_repeated_transaction_is_answered_with_the_same_event() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let path = format!(
        "/v3/rooms/{}/send/m.room.message/once",
        compliance_tests::segment(&room)
    );
    let first = alice
        .put(&path, json!({ "msgtype": "m.text", "body": "hi" }))
        .await
        .ok();
    let again = alice
        .put(&path, json!({ "msgtype": "m.text", "body": "hi" }))
        .await
        .ok();
    assert_eq!(first, again);
    let other = world
        .log_in("alice")
        .await
        .put(&path, json!({ "msgtype": "m.text", "body": "hi" }))
        .await
        .ok();
    assert_ne!(first, other, "transactions belong to a device");
}

#[tokio::test] // "GET /sync": a message arrives once, in order, with its transaction ID for its device only
async fn a_message_arrives_in_the_next_sync() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let start = bob.sync(None, "").await;
    let since = start["next_batch"].as_str().unwrap();
    let said = [alice.say(&room, "one").await, alice.say(&room, "two").await];
    let next = bob.sync(Some(since), "").await;
    let timeline = &next["rooms"]["join"][&room]["timeline"];
    assert_eq!(event_ids(&timeline["events"]), said);
    assert_eq!(timeline["limited"], false);
    assert!(timeline["events"][0]["unsigned"]["transaction_id"].is_null());
    let mine = alice.sync(Some(since), "").await;
    assert_eq!(
        mine["rooms"]["join"][&room]["timeline"]["events"][0]["unsigned"]["transaction_id"],
        "txn-0"
    );
    let after = bob.sync(next["next_batch"].as_str(), "").await;
    assert!(after["rooms"].is_null(), "nothing happened since: {after}");
}

#[tokio::test] // Room versions 6 to 12 can be created
async fn every_served_room_version_can_be_created_and_spoken_in() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    for version in ["6", "7", "8", "9", "10", "11", "12"] {
        let room = alice
            .create_room(json!({ "room_version": version, "name": "x" }))
            .await;
        assert_eq!(
            alice.state(&room, "m.room.create", "").await.ok()["room_version"],
            version
        );
        assert_eq!(room.contains(':'), version != "12", "{room}");
        alice.say(&room, "hello").await;
    }
}

#[tokio::test] // "Restricted rooms": who lets a user in is for the server to say
async fn a_member_of_an_allowed_room_joins_a_restricted_room_by_any_endpoint() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let space = alice.public_room().await;
    let allow = json!([{ "type": "m.room_membership", "room_id": space }]);
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "restricted", "allow": allow } });
    let room = alice.create_room(json!({ "initial_state": [rule] })).await;
    let join = json!({ "membership": "join", "join_authorised_via_users_server": "unused" });
    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    bob.set_state(&room, "m.room.member", &bob.user_id, join.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    bob.join(&space).await.ok();
    bob.set_state(&room, "m.room.member", &bob.user_id, join.clone())
        .await
        .ok();
    let member = bob.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!(member["join_authorised_via_users_server"], alice.user_id);
    bob.set_state(&room, "m.room.member", &bob.user_id, join)
        .await
        .ok();
}

#[tokio::test] // "Standard error response": M_NOT_JSON
async fn a_body_that_is_not_utf_8_is_not_json() {
    let world = World::new().await;
    let body = b"{ \"test\": \"a\x81\" }".to_vec();
    let path = "/_matrix/client/v3/register";
    world
        .raw(http::Method::POST, path, None, "application/json", body)
        .await
        .fails(400, "M_NOT_JSON");
}

#[tokio::test] // "Size limits" and canonical JSON: what cannot be an event changes nothing
async fn malformed_and_oversized_events_get_their_errcode() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    for (content, status, errcode) in [
        (json!({ "n": 1.5 }), 400, "M_BAD_JSON"),
        (json!({ "n": 9_007_199_254_740_992_i64 }), 400, "M_BAD_JSON"),
        (json!("a string"), 400, "M_BAD_JSON"),
        (json!({ "body": "x".repeat(65_536) }), 413, "M_TOO_LARGE"),
    ] {
        alice
            .send(&room, "m.room.message", content)
            .await
            .fails(status, errcode);
    }
    alice
        .send(&room, &"x".repeat(256), json!({}))
        .await
        .fails(413, "M_TOO_LARGE");
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes();
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m/deep",
        compliance_tests::segment(&room)
    );
    let reply = world
        .raw(
            http::Method::PUT,
            &path,
            Some(&alice.token),
            "application/json",
            deep,
        )
        .await;
    assert_eq!(reply.status, 400);
    let timeline = alice.messages(&room, "limit=100").await;
    assert!(
        event_ids(&timeline["chunk"]).len() < 10,
        "nothing of it was sent"
    );
}

#[tokio::test] // A since token that is not this server's
async fn a_since_from_elsewhere_is_refused() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    for since in ["s999999", "t12", "s72594_4483_1934", "%F0%9F%92%A5"] {
        let (status, errcode) = alice.get(&format!("/v3/sync?since={since}")).await.error();
        assert_eq!((status, &*errcode), (400, "M_INVALID_PARAM"), "{since}");
    }
}

#[tokio::test] // "Filtering", "Lazy-loading room members"
async fn a_lazy_sync_tells_only_of_members_who_spoke() {
    let world = World::new().await;
    let (alice, bob, carol) = (
        world.register("alice").await,
        world.register("bob").await,
        world.register("carol").await,
    );
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    bob.say(&room, "hello").await;
    let filter = r#"{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":1}}}"#;
    let sync = alice
        .sync(
            None,
            &format!("filter={}", compliance_tests::segment(filter)),
        )
        .await;
    let state = &sync["rooms"]["join"][&room]["state"]["events"];
    let mut members: Vec<&str> = state
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .filter_map(|event| event["state_key"].as_str())
        .collect();
    members.sort_unstable();
    assert_eq!(members, [&*alice.user_id, &*bob.user_id]);
}
