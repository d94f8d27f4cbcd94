//! Client-server API: members, "Event Context", "Jump to timestamp", "Spaces", "Room summary",
//! "Relationships API", "Threading".

use compliance_tests::{Client, World, event_ids, segment};
use http::Method;
use serde_json::{Value, json};

fn members(reply: &Value) -> Vec<String> {
    let mut members: Vec<String> = reply["chunk"]
        .as_array()
        .expect("a chunk")
        .iter()
        .filter_map(|event| event["state_key"].as_str().map(str::to_owned))
        .collect();
    members.sort();
    members
}

fn room_ids(reply: &Value) -> Vec<String> {
    let rooms = reply["rooms"].as_array().expect("rooms");
    rooms
        .iter()
        .filter_map(|room| room["room_id"].as_str().map(str::to_owned))
        .collect()
}

async fn reply_in_thread(client: &Client, room: &str, root: &str, text: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": text, "m.relates_to": relation });
    let reply = client.send(room, "m.room.message", content).await.ok();
    reply["event_id"].as_str().expect("an event ID").to_owned()
}

#[tokio::test] // "GET /rooms/{roomId}/members": `at`
async fn members_at_the_start_of_a_first_timeline_are_those_of_that_sync() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let sync = alice.sync(None, "").await;
    let at = sync["rooms"]["join"][&room]["timeline"]["prev_batch"]
        .as_str()
        .expect("prev_batch")
        .to_owned();
    bob.join(&room).await.ok();
    let path = format!("/v3/rooms/{}/members", segment(&room));
    let then = alice.get(&format!("{path}?at={at}")).await.ok();
    assert_eq!(members(&then), ["@alice:hs1"]);
    let now = alice.get(&path).await.ok();
    assert_eq!(members(&now), ["@alice:hs1", "@bob:hs1"]);
}

#[tokio::test] // "GET /rooms/{roomId}/members": `membership`, `not_membership`
async fn members_can_be_asked_for_by_membership() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    bob.leave(&room).await.ok();
    let path = format!("/v3/rooms/{}/members", segment(&room));
    let left = alice.get(&format!("{path}?membership=leave")).await.ok();
    assert_eq!(members(&left), ["@bob:hs1"]);
    let rest = alice
        .get(&format!("{path}?not_membership=leave"))
        .await
        .ok();
    assert_eq!(members(&rest), ["@alice:hs1"]);
    alice
        .get(&format!("{path}?at=nonsense"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "GET /rooms/{roomId}/members": for users who left, as at their leaving
async fn who_left_sees_the_members_of_that_moment_and_a_stranger_none() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    bob.leave(&room).await.ok();
    let path = format!("/v3/rooms/{}/members", segment(&room));
    carol.get(&path).await.fails(403, "M_FORBIDDEN");
    carol.join(&room).await.ok();
    let seen = bob.get(&path).await.ok();
    assert_eq!(members(&seen), ["@alice:hs1", "@bob:hs1"]);
}

#[tokio::test] // "GET /rooms/{roomId}/joined_members"
async fn joined_members_come_with_name_and_avatar_even_if_null() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let path = format!("/v3/rooms/{}/joined_members", segment(&room));
    let reply = alice.get(&path).await.ok();
    let alice_there = reply["joined"]["@alice:hs1"].as_object().expect("alice");
    assert!(alice_there.contains_key("display_name") && alice_there.contains_key("avatar_url"));
    bob.get(&path).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "Event Context"
async fn context_shows_what_was_said_around_an_event_nearest_first() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let mut said = Vec::new();
    for number in 0..5 {
        said.push(alice.say(&room, &number.to_string()).await);
    }
    let path = format!("/v3/rooms/{}/context/{}", segment(&room), segment(&said[2]));
    let reply = alice.get(&format!("{path}?limit=4")).await.ok();
    assert_eq!(reply["event"]["event_id"], *said[2]);
    assert_eq!(
        event_ids(&reply["events_before"]),
        [said[1].clone(), said[0].clone()]
    );
    assert_eq!(
        event_ids(&reply["events_after"]),
        [said[3].clone(), said[4].clone()]
    );
    let alone = alice.get(&format!("{path}?limit=0")).await.ok();
    assert_eq!(event_ids(&alone["events_before"]).len(), 0);
    assert_eq!(event_ids(&alone["events_after"]).len(), 0);
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "Jump to timestamp"
async fn the_event_nearest_to_a_time_is_found_in_both_directions() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    world.pass_ms(1_000);
    let first = alice.say(&room, "first").await;
    world.pass_ms(1_000);
    let second = alice.say(&room, "second").await;
    let path = format!("/v1/rooms/{}/timestamp_to_event", segment(&room));
    let between = 1_800_000_001_500_u64;
    let before = alice.get(&format!("{path}?dir=b&ts={between}")).await.ok();
    assert_eq!(before["event_id"], *first);
    let after = alice.get(&format!("{path}?dir=f&ts={between}")).await.ok();
    assert_eq!(after["event_id"], *second);
    let late = between + 1_000;
    alice
        .get(&format!("{path}?dir=f&ts={late}"))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get(&format!("{path}?dir=x&ts={late}"))
        .await
        .fails(400, "M_INVALID_PARAM");
    bob.get(&format!("{path}?dir=b&ts={late}"))
        .await
        .fails(403, "M_FORBIDDEN");
}

async fn space(client: &Client, name: &str) -> String {
    let content = json!({ "type": "m.space" });
    client
        .create_room(json!({ "preset": "public_chat", "name": name, "creation_content": content }))
        .await
}

async fn link(client: &Client, space: &str, room: &str, more: Value) {
    let mut content = json!({ "via": ["hs1"] });
    let keys = more.as_object().cloned().unwrap_or_default();
    content.as_object_mut().expect("an object").extend(keys);
    client
        .set_state(space, "m.space.child", room, content)
        .await
        .ok();
}

#[tokio::test] // "Spaces", "GET /rooms/{roomId}/hierarchy"
async fn a_hierarchy_is_walked_depth_first_in_the_order_of_its_links() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let (root, inner) = (space(&alice, "root").await, space(&alice, "inner").await);
    let (one, two) = (alice.public_room().await, alice.public_room().await);
    let unlinked = alice.public_room().await;
    link(&alice, &root, &one, json!({ "order": "b" })).await;
    link(
        &alice,
        &root,
        &inner,
        json!({ "order": "a", "suggested": true }),
    )
    .await;
    link(&alice, &inner, &two, json!({})).await;
    // A room that is no space has no children, whatever its state says.
    link(&alice, &one, &unlinked, json!({})).await;
    let path = format!("/v1/rooms/{}/hierarchy", segment(&root));
    let whole = alice.get(&path).await.ok();
    let all = [root.clone(), inner.clone(), two.clone(), one.clone()];
    assert_eq!(room_ids(&whole), all);
    assert_eq!(whole["rooms"][0]["children_state"][0]["state_key"], *inner);
    assert_eq!(whole["rooms"][1]["room_type"], "m.space");
    assert!(whole["next_batch"].is_null());
    let shallow = alice.get(&format!("{path}?max_depth=1")).await.ok();
    assert_eq!(
        room_ids(&shallow),
        [root.clone(), inner.clone(), one.clone()]
    );
    let suggested = alice.get(&format!("{path}?suggested_only=true")).await.ok();
    assert_eq!(room_ids(&suggested), [root.clone(), inner.clone()]);
    let first = alice.get(&format!("{path}?limit=3")).await.ok();
    assert_eq!(room_ids(&first), [root.clone(), inner, two]);
    let from = first["next_batch"].as_str().expect("next_batch");
    let second = alice.get(&format!("{path}?from={from}")).await.ok();
    assert_eq!(room_ids(&second), [one]);
    assert!(second["next_batch"].is_null());
}

#[tokio::test] // "GET /rooms/{roomId}/hierarchy": rooms the caller may not know of are left out
async fn a_hierarchy_leaves_out_private_rooms_and_refuses_a_private_root() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let root = space(&alice, "root").await;
    let secret = alice.create_room(json!({ "preset": "private_chat" })).await;
    link(&alice, &root, &secret, json!({})).await;
    let path = format!("/v1/rooms/{}/hierarchy", segment(&root));
    assert_eq!(
        room_ids(&bob.get(&path).await.ok()),
        std::slice::from_ref(&root)
    );
    assert_eq!(room_ids(&alice.get(&path).await.ok()).len(), 2);
    bob.get(&format!("/v1/rooms/{}/hierarchy", segment(&secret)))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&format!("{path}?from=nonsense"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "Room summary"
async fn a_summary_is_told_by_every_name_to_those_who_may_know_of_the_room() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(
            json!({ "preset": "public_chat", "name": "Lounge", "room_alias_name": "lounge" }),
        )
        .await;
    let alias = segment("#lounge:hs1");
    for path in [
        format!("/v1/room_summary/{alias}"),
        format!("/v1/room_summary/{}", segment(&room)),
        format!("/unstable/im.nheko.summary/summary/{alias}"),
        format!("/unstable/im.nheko.summary/rooms/{alias}/summary"),
    ] {
        let summary = bob.get(&path).await.ok();
        assert_eq!(summary["name"], "Lounge", "{path}");
        assert_eq!(summary["room_id"], *room);
        assert_eq!(summary["membership"], "leave");
        assert_eq!(summary["num_joined_members"], 1);
        let path = format!("/_matrix/client{path}");
        let anonymous = world.request(Method::GET, &path, None, None).await.ok();
        assert!(anonymous["membership"].is_null());
    }
    let secret = alice.create_room(json!({ "preset": "private_chat" })).await;
    let path = format!("/v1/room_summary/{}", segment(&secret));
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    assert!(alice.get(&path).await.ok()["allowed_room_ids"].is_null());
}

#[tokio::test] // "Room summary": `allowed_room_ids`
async fn a_restricted_room_is_told_to_members_of_the_rooms_it_names() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let root = space(&alice, "root").await;
    let allow = json!([{ "type": "m.room_membership", "room_id": root }]);
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let room = alice
        .create_room(json!({ "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": rules }] }))
        .await;
    let path = format!("/v1/room_summary/{}", segment(&room));
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    bob.join(&root).await.ok();
    assert_eq!(bob.get(&path).await.ok()["allowed_room_ids"], json!([root]));
}

#[tokio::test] // "Relationships API"
async fn relations_are_paged_in_both_directions_and_by_type() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let mut replies = Vec::new();
    for text in ["one", "two", "three"] {
        replies.push(reply_in_thread(&alice, &room, &root, text).await);
    }
    let relation = json!({ "rel_type": "m.annotation", "event_id": root, "key": "+" });
    let reaction = alice
        .send(&room, "m.reaction", json!({ "m.relates_to": relation }))
        .await
        .ok();
    let path = format!("/v1/rooms/{}/relations/{}", segment(&room), segment(&root));
    let all = alice.get(&path).await.ok();
    assert_eq!(all["chunk"][0]["event_id"], reaction["event_id"]);
    assert_eq!(event_ids(&all["chunk"]).len(), 4);
    let first = alice.get(&format!("{path}/m.thread?limit=2")).await.ok();
    assert_eq!(
        event_ids(&first["chunk"]),
        [replies[2].clone(), replies[1].clone()]
    );
    let next = first["next_batch"].as_str().expect("next_batch");
    let second = alice
        .get(&format!("{path}/m.thread?limit=2&from={next}"))
        .await
        .ok();
    assert_eq!(event_ids(&second["chunk"]), [replies[0].clone()]);
    assert!(second["next_batch"].is_null());
    let forwards = alice
        .get(&format!("{path}/m.thread/m.room.message?dir=f"))
        .await
        .ok();
    assert_eq!(event_ids(&forwards["chunk"]), replies);
    let none = alice.get(&format!("{path}/m.thread/m.sticker")).await.ok();
    assert_eq!(event_ids(&none["chunk"]).len(), 0);
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "Relationships API": `recurse`
async fn recursion_finds_what_relates_only_indirectly() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let reply = reply_in_thread(&alice, &room, &root, "reply").await;
    let relation = json!({ "rel_type": "m.annotation", "event_id": reply, "key": "+" });
    let reaction = alice
        .send(&room, "m.reaction", json!({ "m.relates_to": relation }))
        .await
        .ok();
    let path = format!("/v1/rooms/{}/relations/{}", segment(&room), segment(&root));
    let direct = alice.get(&path).await.ok();
    assert_eq!(event_ids(&direct["chunk"]), [reply]);
    let deep = alice.get(&format!("{path}?recurse=true")).await.ok();
    assert_eq!(deep["chunk"][0]["event_id"], reaction["event_id"]);
    assert_eq!(event_ids(&deep["chunk"]).len(), 2);
    assert_eq!(deep["recursion_depth"], 3);
}

#[tokio::test] // "Threading", "GET /rooms/{roomId}/threads"
async fn threads_come_by_their_latest_reply_with_it_bundled() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let one = alice.say(&room, "one").await;
    let two = alice.say(&room, "two").await;
    reply_in_thread(&alice, &room, &one, "a").await;
    reply_in_thread(&alice, &room, &two, "b").await;
    let last = reply_in_thread(&bob, &room, &one, "c").await;
    let path = format!("/v1/rooms/{}/threads", segment(&room));
    let all = alice.get(&path).await.ok();
    assert_eq!(event_ids(&all["chunk"]), [one.clone(), two.clone()]);
    let bundled = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(bundled["latest_event"]["event_id"], *last);
    assert_eq!(bundled["count"], 2);
    let first = alice.get(&format!("{path}?limit=1")).await.ok();
    assert_eq!(event_ids(&first["chunk"]), std::slice::from_ref(&one));
    let next = first["next_batch"].as_str().expect("next_batch");
    let second = alice.get(&format!("{path}?limit=1&from={next}")).await.ok();
    assert_eq!(event_ids(&second["chunk"]), [two]);
    let mine = bob.get(&format!("{path}?include=participated")).await.ok();
    assert_eq!(event_ids(&mine["chunk"]), [one]);
    bob.get(&format!("{path}?include=some"))
        .await
        .fails(400, "M_INVALID_PARAM");
}
