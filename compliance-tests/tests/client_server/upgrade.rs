//! Client-server API, "Room Upgrades".

use compliance_tests::{Client, Reply, World, segment};
use serde_json::{Value, json};

async fn upgrade(client: &Client, room: &str, body: Value) -> Reply {
    let path = format!("/v3/rooms/{}/upgrade", segment(room));
    client.post(&path, body).await
}

async fn upgraded(client: &Client, room: &str, version: &str) -> String {
    let reply = upgrade(client, room, json!({ "new_version": version })).await;
    let new = reply.ok()["replacement_room"].as_str().map(str::to_owned);
    new.expect("the new room's ID")
}

#[tokio::test] // "Room Upgrades", server behaviour, 1 to 6
async fn an_upgraded_room_goes_on_in_the_new_one() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    for (old_version, new_version) in [("10", "11"), ("10", "12"), ("12", "12"), ("12", "11")] {
        let alias = format!("from-{old_version}-to-{new_version}");
        let old = alice
            .create_room(json!({
                "room_version": old_version, "visibility": "public", "room_alias_name": alias, "name": "The Den",
                "topic": "moving", "creation_content": { "m.federate": false, "type": "com.example.game" },
                "initial_state": [{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }],
            }))
            .await;
        let ban = format!("/v3/rooms/{}/ban", segment(&old));
        let body = json!({ "user_id": carol.user_id, "reason": "noise" });
        alice.post(&ban, body).await.ok();
        bob.join(&old).await.ok();
        let mut levels = alice.state(&old, "m.room.power_levels", "").await.ok();
        levels["users"][&bob.user_id] = 60.into();
        alice
            .set_state(&old, "m.room.power_levels", "", levels.clone())
            .await
            .ok();

        let new = upgraded(&alice, &old, new_version).await;
        let create = alice.state(&new, "m.room.create", "").await.ok();
        assert_eq!(create["room_version"], new_version);
        assert_eq!(create["type"], "com.example.game");
        assert_eq!(create["m.federate"], false);
        assert_eq!(create["predecessor"]["room_id"], old);
        let path = format!(
            "/v3/rooms/{}/state/m.room.tombstone/?format=event",
            segment(&old)
        );
        let tombstone = alice.get(&path).await.ok();
        assert_eq!(tombstone["content"]["replacement_room"], new);
        if new_version == "11" {
            assert_eq!(create["predecessor"]["event_id"], tombstone["event_id"]);
        }
        for (kind, key, value) in [
            ("m.room.name", "name", "The Den"),
            ("m.room.topic", "topic", "moving"),
            ("m.room.join_rules", "join_rule", "public"),
            ("m.room.encryption", "algorithm", "m.megolm.v1.aes-sha2"),
        ] {
            assert_eq!(alice.state(&new, kind, "").await.ok()[key], value);
        }
        let after = alice.state(&new, "m.room.power_levels", "").await.ok();
        assert_eq!(after["users"][&bob.user_id], 60);
        let own = &after["users"][&alice.user_id];
        if new_version == "12" {
            assert!(own.is_null(), "a creator of version 12 is not named: {own}");
        } else {
            assert!(own.as_i64() >= Some(100), "{own}");
        }
        let ban = alice
            .state(&new, "m.room.member", &carol.user_id)
            .await
            .ok();
        assert_eq!(
            (&ban["membership"], &ban["reason"]),
            (&json!("ban"), &json!("noise"))
        );

        let alias = format!("#{alias}:hs1");
        let path = format!("/v3/directory/room/{}", segment(&alias));
        assert_eq!(alice.get(&path).await.ok()["room_id"], new);
        let canonical = alice.state(&new, "m.room.canonical_alias", "").await.ok();
        assert_eq!(canonical["alias"], alias);
        let canonical = alice.state(&old, "m.room.canonical_alias", "").await.ok();
        assert!(canonical["alias"].is_null());
        for (room, visibility) in [(&old, "private"), (&new, "public")] {
            let path = format!("/v3/directory/list/room/{}", segment(room));
            assert_eq!(alice.get(&path).await.ok()["visibility"], visibility);
        }

        let closed = alice.state(&old, "m.room.power_levels", "").await.ok();
        assert_eq!(
            (&closed["events_default"], &closed["invite"]),
            (&json!(50), &json!(50))
        );
        carol.join(&new).await.fails(403, "M_FORBIDDEN");
        bob.join(&alias).await.ok();
        bob.say(&new, "here we are").await;
    }
}

#[tokio::test] // "POST /rooms/{roomId}/upgrade": errors
async fn an_upgrade_needs_the_power_to_send_a_tombstone_and_a_version_that_is_served() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let body = json!({ "new_version": "12" });
    upgrade(&bob, &room, body.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    bob.join(&room).await.ok();
    upgrade(&bob, &room, body.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    upgrade(&alice, "!unknown:hs1", body)
        .await
        .fails(404, "M_NOT_FOUND");
    upgrade(&alice, &room, json!({ "new_version": "twelve" }))
        .await
        .fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    upgrade(&alice, &room, json!({}))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .state(&room, "m.room.tombstone", "")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "POST /rooms/{roomId}/upgrade": `additional_creators`
async fn additional_creators_are_creators_of_the_new_room_and_have_no_level() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({ "room_version": "11", "preset": "public_chat" }))
        .await;
    let mut levels = alice.state(&room, "m.room.power_levels", "").await.ok();
    levels["users"][&bob.user_id] = 50.into();
    alice
        .set_state(&room, "m.room.power_levels", "", levels)
        .await
        .ok();
    let body = json!({ "new_version": "12", "additional_creators": [bob.user_id] });
    let reply = upgrade(&alice, &room, body).await.ok();
    let new = reply["replacement_room"].as_str().expect("a room ID");
    let create = alice.state(new, "m.room.create", "").await.ok();
    assert_eq!(create["additional_creators"], json!([bob.user_id]));
    let levels = alice.state(new, "m.room.power_levels", "").await.ok();
    assert_eq!(levels["users"], json!({}));
}

#[tokio::test] // "Room Upgrades": the caller's power is raised only to fill the new room
async fn a_moderator_who_upgrades_keeps_their_level() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({
            "room_version": "10", "preset": "public_chat",
            "power_level_content_override": {
                "users": { (&*alice.user_id): 100, (&*bob.user_id): 50 },
                "events": { "m.room.tombstone": 50, "m.room.name": 70 },
            },
        }))
        .await;
    bob.join(&room).await.ok();
    let new = upgraded(&bob, &room, "10").await;
    let levels = bob.state(&new, "m.room.power_levels", "").await.ok();
    assert_eq!(
        levels["users"],
        json!({ (&*alice.user_id): 100, (&*bob.user_id): 50 })
    );
    bob.set_state(&new, "m.room.name", "", json!({ "name": "mine" }))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "Room Upgrades": the rooms of a space
async fn an_upgraded_space_keeps_its_rooms() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let space = alice
        .create_room(json!({ "creation_content": { "type": "m.space" } }))
        .await;
    let (kept, gone) = (alice.public_room().await, alice.public_room().await);
    for (room, content) in [(&kept, json!({ "via": ["hs1"] })), (&gone, json!({}))] {
        alice
            .set_state(&space, "m.space.child", room, content)
            .await
            .ok();
    }
    let new = upgraded(&alice, &space, "11").await;
    let child = alice.state(&new, "m.space.child", &kept).await.ok();
    assert_eq!(child, json!({ "via": ["hs1"] }));
    alice
        .state(&new, "m.space.child", &gone)
        .await
        .fails(404, "M_NOT_FOUND");
}
