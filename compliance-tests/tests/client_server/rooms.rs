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
