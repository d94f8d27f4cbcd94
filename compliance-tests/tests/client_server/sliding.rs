//! MSC4186, simplified sliding sync: the form that clients speak, and the accepted one.

use compliance_tests::{Client, Reply, World, event_ids, segment};
use serde_json::{Value, json};

async fn slide(client: &Client, pos: Option<&str>, body: Value) -> Reply {
    let query = pos
        .map(|pos| format!("pos={}&", segment(pos)))
        .unwrap_or_default();
    let path = format!("/unstable/org.matrix.simplified_msc3575/sync?{query}timeout=0");
    client.post(&path, body).await
}

fn pos(answer: &Value) -> Option<&str> {
    answer["pos"].as_str()
}

/// One list of all rooms, as Element X has it.
fn all_rooms(last: u64, timeline_limit: u64) -> Value {
    json!({ "conn_id": "room-list", "lists": { "all_rooms": {
        "ranges": [[0, last]],
        "timeline_limit": timeline_limit,
        "required_state": [
            ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.member", "$LAZY"],
            ["m.room.member", "$ME"], ["m.room.create", ""], ["m.space.child", "*"],
        ],
    } } })
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

fn filtered(filters: &Value) -> Value {
    json!({ "lists": { "list": {
        "ranges": [[0, 99]], "timeline_limit": 0, "required_state": [], "filters": filters,
    } } })
}

fn rooms_of(answer: &Value) -> Vec<String> {
    let rooms = answer["rooms"].as_object().expect("rooms");
    rooms.keys().cloned().collect()
}

fn keys_of(state: &Value, kind: &str) -> Vec<String> {
    let events = state.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut keys: Vec<String> = events
        .iter()
        .filter(|event| event["type"] == kind)
        .map(|event| event["state_key"].as_str().unwrap_or_default().to_owned())
        .collect();
    keys.sort();
    keys
}

#[tokio::test] // `org.matrix.simplified_msc3575` in `/versions`
async fn the_flag_that_clients_look_for_is_there() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let versions = alice.get("/versions").await.ok();
    assert_eq!(
        versions["unstable_features"]["org.matrix.simplified_msc3575"],
        true
    );
}

#[tokio::test] // "Room results": `initial`, `name`, `timeline`, `required_state`, counts
async fn a_room_comes_in_full_at_first_and_as_changes_afterwards() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({ "name": "Lounge", "preset": "public_chat" }))
        .await;
    bob.join(&room).await.ok();
    let said = alice.say(&room, "hello").await;
    let first = slide(&bob, None, all_rooms(19, 1)).await.ok();
    assert_eq!(first["lists"]["all_rooms"]["count"], 1);
    let told = &first["rooms"][&room];
    assert_eq!(told["initial"], true);
    assert_eq!(told["name"], "Lounge");
    assert_eq!(told["joined_count"], 2);
    assert_eq!(told["invited_count"], 0);
    assert_eq!(told["limited"], true);
    assert_eq!(told["num_live"], 0);
    assert_eq!(event_ids(&told["timeline"]), [said]);
    assert_eq!(
        keys_of(&told["required_state"], "m.room.member"),
        [&*alice.user_id, &*bob.user_id]
    );
    assert!(told["heroes"].is_null(), "a room with a name needs none");
    let start = told["bump_stamp"].as_u64().unwrap();

    let next = alice.say(&room, "more").await;
    let second = slide(&bob, pos(&first), all_rooms(19, 1)).await.ok();
    let told = &second["rooms"][&room];
    assert!(told["initial"].is_null() && told["name"].is_null());
    assert!(told["required_state"].is_null(), "{told}");
    assert_eq!(event_ids(&told["timeline"]), [next]);
    assert_eq!(told["num_live"], 1);
    assert!(told["limited"].is_null());
    assert!(told["bump_stamp"].as_u64().unwrap() > start);

    let third = slide(&bob, pos(&second), all_rooms(19, 1)).await.ok();
    assert_eq!(third["rooms"], json!({}));
}

#[tokio::test] // `bump_stamp`: reactions and state are no activity
async fn only_proper_activity_raises_the_bump_stamp() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    alice.say(&room, "hello").await;
    let first = slide(&alice, None, all_rooms(19, 5)).await.ok();
    let topic = json!({ "topic": "weather" });
    alice.set_state(&room, "m.room.topic", "", topic).await.ok();
    let second = slide(&alice, pos(&first), all_rooms(19, 5)).await.ok();
    assert_eq!(
        second["rooms"][&room]["bump_stamp"],
        first["rooms"][&room]["bump_stamp"]
    );
}

#[tokio::test] // "Activity ordering", "Paginating room list"
async fn a_range_shows_the_rooms_with_the_latest_activity_and_growing_it_shows_the_others() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let mut rooms = Vec::new();
    for _ in 0..3 {
        rooms.push(alice.public_room().await);
    }
    alice.say(&rooms[0], "newest").await;
    let first = slide(&alice, None, all_rooms(0, 1)).await.ok();
    assert_eq!(rooms_of(&first), [rooms[0].clone()]);
    assert_eq!(first["lists"]["all_rooms"]["count"], 3);
    let second = slide(&alice, pos(&first), all_rooms(1, 1)).await.ok();
    assert_eq!(rooms_of(&second), [rooms[2].clone()]);
    let third = slide(&alice, pos(&second), all_rooms(99, 1)).await.ok();
    assert_eq!(rooms_of(&third), [rooms[1].clone()]);
}

#[tokio::test] // "Room results": what happened while a room was out of range is not lost
async fn a_room_that_comes_back_into_range_tells_what_was_missed() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let (one, two) = (alice.public_room().await, alice.public_room().await);
    let body = |room: &str| json!({ "room_subscriptions": { room: { "timeline_limit": 5, "required_state": [["m.room.topic", ""]] } } });
    let first = slide(&alice, None, body(&one)).await.ok();
    let second = slide(&alice, pos(&first), body(&two)).await.ok();
    let missed = alice.say(&one, "missed").await;
    let third = slide(&alice, pos(&second), body(&two)).await.ok();
    assert_eq!(third["rooms"], json!({}));
    let fourth = slide(&alice, pos(&third), body(&one)).await.ok();
    assert_eq!(event_ids(&fourth["rooms"][&one]["timeline"]), [missed]);
    assert!(fourth["rooms"][&one]["initial"].is_null());
}

#[tokio::test] // "Connections": unknown and foreign `pos`
async fn a_pos_that_is_not_of_this_connection_is_refused() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let first = slide(&alice, None, all_rooms(19, 1)).await.ok();
    let second = slide(&alice, pos(&first), all_rooms(19, 1)).await.ok();
    for (who, pos) in [
        (&bob, pos(&first)),
        (&alice, Some("s1_1~x")),
        (&alice, Some("nonsense")),
    ] {
        slide(who, pos, all_rooms(19, 1))
            .await
            .fails(400, "M_UNKNOWN_POS");
    }
    let other = with(all_rooms(19, 1), "conn_id", json!("notifications"));
    slide(&alice, pos(&second), other)
        .await
        .fails(400, "M_UNKNOWN_POS");
    let again = world.log_in("alice").await;
    slide(&again, pos(&second), all_rooms(19, 1))
        .await
        .fails(400, "M_UNKNOWN_POS");
    // An answer that was built upon is over; the last one is not.
    slide(&alice, pos(&second), all_rooms(19, 1)).await.ok();
    slide(&alice, pos(&first), all_rooms(19, 1))
        .await
        .fails(400, "M_UNKNOWN_POS");
}

#[tokio::test] // "Connections": a request may be repeated
async fn a_repeated_request_is_answered_as_the_first_was() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let first = slide(&alice, None, all_rooms(19, 1)).await.ok();
    alice.say(&room, "one").await;
    let lost = slide(&alice, pos(&first), all_rooms(19, 1)).await.ok();
    let again = slide(&alice, pos(&first), all_rooms(19, 1)).await.ok();
    assert_eq!(lost["rooms"], again["rooms"]);
    let next = slide(&alice, pos(&again), all_rooms(19, 1)).await.ok();
    assert_eq!(next["rooms"], json!({}));
}

#[tokio::test] // "Connections": two of one device
async fn connections_of_a_device_do_not_know_of_each_other() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let other = with(all_rooms(19, 1), "conn_id", json!("notifications"));
    let one = slide(&alice, None, all_rooms(19, 1)).await.ok();
    let two = slide(&alice, None, other.clone()).await.ok();
    let said = alice.say(&room, "hi").await;
    for (answer, body) in [(one, all_rooms(19, 1)), (two, other)] {
        let next = slide(&alice, pos(&answer), body).await.ok();
        let told = event_ids(&next["rooms"][&room]["timeline"]);
        assert_eq!(told, std::slice::from_ref(&said));
    }
}

#[tokio::test] // Security considerations: connections are bounded
async fn the_connection_unused_for_longest_gives_way() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let body = |number: u32| json!({ "conn_id": format!("c{number}") });
    let mut first = Value::Null;
    for number in 0..25 {
        let answer = slide(&alice, None, body(number)).await.ok();
        if number == 0 {
            first = answer;
        }
        world.pass_ms(1);
    }
    slide(&alice, pos(&first), body(0))
        .await
        .fails(400, "M_UNKNOWN_POS");
    assert_eq!(world.server().app.connections.count(), 20);
}

#[tokio::test] // "Changes to `timeline_limit`"
async fn a_larger_timeline_limit_brings_older_events_at_once() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let said = [
        alice.say(&room, "a").await,
        alice.say(&room, "b").await,
        alice.say(&room, "c").await,
    ];
    let first = slide(&alice, None, all_rooms(19, 1)).await.ok();
    let body = with(
        all_rooms(19, 1),
        "room_subscriptions",
        json!({ &room: { "timeline_limit": 3, "required_state": [] } }),
    );
    let second = slide(&alice, pos(&first), body.clone()).await.ok();
    let told = &second["rooms"][&room];
    assert_eq!(event_ids(&told["timeline"]), said);
    assert_eq!(told["unstable_expanded_timeline"], true);
    assert_eq!(told["num_live"], 0);
    assert_eq!(told["limited"], true);
    let third = slide(&alice, pos(&second), body).await.ok();
    assert_eq!(third["rooms"], json!({}), "not again");
}

#[tokio::test] // "Changes to `required_state`"
async fn a_larger_required_state_brings_only_what_is_new() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice
        .create_room(json!({ "name": "x", "topic": "y" }))
        .await;
    let body = |state: Value| json!({ "room_subscriptions": { &room: { "timeline_limit": 1, "required_state": state } } });
    let first = slide(&alice, None, body(json!([["m.room.name", ""]])))
        .await
        .ok();
    assert_eq!(
        keys_of(&first["rooms"][&room]["required_state"], "m.room.name"),
        [""]
    );
    let more = body(json!([["m.room.name", ""], ["m.room.topic", ""]]));
    let second = slide(&alice, pos(&first), more).await.ok();
    let state = &second["rooms"][&room]["required_state"];
    assert_eq!(state.as_array().unwrap().len(), 1, "{state}");
    assert_eq!(state[0]["type"], "m.room.topic");
}

#[tokio::test] // `required_state`: `*` twice
async fn two_stars_are_all_of_the_state() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    alice.say(&room, "hi").await;
    let body = |state: Value| json!({ "room_subscriptions": { &room: { "timeline_limit": 1, "required_state": state } } });
    let all = slide(&alice, None, body(json!([["*", "*"]]))).await.ok();
    let state = &all["rooms"][&room]["required_state"];
    assert_eq!(keys_of(state, "m.room.member").len(), 2);
    assert_eq!(keys_of(state, "m.room.power_levels"), [""]);
    let lazy = json!([["*", "*"], ["m.room.member", "$LAZY"]]);
    let lazy = slide(&alice, None, body(lazy)).await.ok();
    let state = &lazy["rooms"][&room]["required_state"];
    assert_eq!(
        keys_of(state, "m.room.member"),
        [&*alice.user_id],
        "only the sender"
    );
    assert_eq!(keys_of(state, "m.room.power_levels"), [""]);
}

#[tokio::test] // "Lazy loaded memberships"
async fn members_who_matter_come_once() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let body = || json!({ "room_subscriptions": { &room: { "timeline_limit": 5, "required_state": [["m.room.member", "$LAZY"]] } } });
    let first = slide(&alice, None, body()).await.ok();
    bob.join(&room).await.ok();
    let second = slide(&alice, pos(&first), body()).await.ok();
    let told = &second["rooms"][&room];
    assert_eq!(
        keys_of(&told["required_state"], "m.room.member"),
        [&*bob.user_id]
    );
    assert_eq!(told["joined_count"], 2);
    bob.say(&room, "hi").await;
    let third = slide(&alice, pos(&second), body()).await.ok();
    assert!(third["rooms"][&room]["required_state"].is_null());
}

#[tokio::test] // "Invite/knock/rejections"
async fn an_invite_comes_with_stripped_state_and_nothing_else_of_the_room() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({ "name": "Secret" })).await;
    alice.say(&room, "between us").await;
    let start = slide(&bob, None, all_rooms(19, 1)).await.ok();
    alice.invite(&room, &bob.user_id).await.ok();
    let invited = slide(&bob, pos(&start), all_rooms(19, 1)).await.ok();
    let told = &invited["rooms"][&room];
    assert_eq!(keys_of(&told["invite_state"], "m.room.name"), [""]);
    assert!(told["timeline"].is_null() && told["required_state"].is_null());
    assert!(told["joined_count"].is_null());
    let again = slide(&bob, pos(&invited), all_rooms(19, 1)).await.ok();
    assert_eq!(again["rooms"], json!({}));
    bob.join(&room).await.ok();
    let joined = slide(&bob, pos(&again), all_rooms(19, 1)).await.ok();
    let told = &joined["rooms"][&room];
    assert_eq!(told["initial"], true);
    assert_eq!(told["name"], "Secret");
    assert!(told["invite_state"].is_null());
}

#[tokio::test] // "Lists": left rooms only if they were sent before, kicked ones always
async fn a_room_that_was_left_is_told_once_and_a_kick_is_told_to_all() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (left, kicked) = (alice.public_room().await, alice.public_room().await);
    bob.join(&left).await.ok();
    bob.join(&kicked).await.ok();
    let first = slide(&bob, None, all_rooms(19, 1)).await.ok();
    bob.leave(&left).await.ok();
    let path = format!("/v3/rooms/{}/kick", segment(&kicked));
    alice
        .post(&path, json!({ "user_id": bob.user_id }))
        .await
        .ok();
    alice.say(&kicked, "he is gone").await;
    let second = slide(&bob, pos(&first), all_rooms(19, 1)).await.ok();
    for room in [&left, &kicked] {
        let timeline = &second["rooms"][room]["timeline"];
        assert_eq!(timeline[0]["content"]["membership"], "leave", "{second}");
        assert_eq!(timeline.as_array().unwrap().len(), 1);
    }
    let third = slide(&bob, pos(&second), all_rooms(19, 1)).await.ok();
    assert_eq!(third["rooms"], json!({}));
    let anew = slide(&bob, None, all_rooms(19, 1)).await.ok();
    assert_eq!(rooms_of(&anew), [kicked]);
}

#[tokio::test] // "Subscriptions": the user must have permission
async fn a_subscription_to_a_room_of_others_is_ignored() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let config = json!({ "timeline_limit": 5, "required_state": [["*", "*"]] });
    let body = json!({ "room_subscriptions": { &room: config, "!nowhere:hs1": config } });
    let answer = slide(&bob, None, body).await.ok();
    assert_eq!(answer["rooms"], json!({}));
}

#[tokio::test] // `SlidingRoomFilter`
async fn each_filter_keeps_the_rooms_it_names() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let plain = alice.create_room(json!({})).await;
    let encryption = json!({ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
    let secret = alice
        .create_room(json!({ "initial_state": [encryption] }))
        .await;
    let space = alice
        .create_room(json!({ "creation_content": { "type": "m.space" } }))
        .await;
    let direct = alice.create_room(json!({})).await;
    let invited = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    let child = json!({ "via": ["hs1"] });
    alice
        .set_state(&space, "m.space.child", &plain, child)
        .await
        .ok();
    let mine = format!("/v3/user/{}", segment(&alice.user_id));
    let data = json!({ &bob.user_id: [direct] });
    alice
        .put(&format!("{mine}/account_data/m.direct"), data)
        .await
        .ok();
    let tag = format!("{mine}/rooms/{}/account_data/m.tag", segment(&secret));
    let data = json!({ "tags": { "m.favourite": {} } });
    alice.put(&tag, data).await.ok();
    let all = [&plain, &secret, &space, &direct, &invited];
    let without = |not: &[&String]| -> Vec<&String> {
        all.into_iter().filter(|room| !not.contains(room)).collect()
    };
    for (filters, expected) in [
        (json!({}), all.to_vec()),
        (json!({ "room_name_like": "anything" }), all.to_vec()),
        (json!({ "is_dm": true }), vec![&direct]),
        (json!({ "is_dm": false }), without(&[&direct])),
        (json!({ "is_encrypted": true }), vec![&secret]),
        (json!({ "is_encrypted": false }), without(&[&secret])),
        (json!({ "is_invite": true }), vec![&invited]),
        (json!({ "is_invite": false }), without(&[&invited])),
        (json!({ "room_types": ["m.space"] }), vec![&space]),
        (json!({ "room_types": [null] }), without(&[&space])),
        (json!({ "not_room_types": ["m.space"] }), without(&[&space])),
        (
            json!({ "room_types": ["m.space"], "not_room_types": ["m.space"] }),
            vec![],
        ),
        (json!({ "spaces": [space] }), vec![&plain]),
        (json!({ "tags": ["m.favourite"] }), vec![&secret]),
        (json!({ "not_tags": ["m.favourite"] }), without(&[&secret])),
    ] {
        let answer = slide(&alice, None, filtered(&filters)).await.ok();
        let mut expected: Vec<String> = expected.into_iter().cloned().collect();
        expected.sort();
        assert_eq!(rooms_of(&answer), expected, "{filters}");
        assert_eq!(
            answer["lists"]["list"]["count"],
            expected.len(),
            "{filters}"
        );
    }
}

#[tokio::test] // `is_dm`, `heroes`
async fn a_direct_chat_is_marked_and_has_heroes() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.user_id] })).await;
    let first = slide(&alice, None, all_rooms(19, 1)).await.ok();
    let told = &first["rooms"][&room];
    assert_eq!(told["heroes"][0]["user_id"], bob.user_id);
    assert_eq!(told["invited_count"], 1);
    assert!(told["is_dm"].is_null());
    let path = format!("/v3/user/{}/account_data/m.direct", segment(&alice.user_id));
    alice.put(&path, json!({ &bob.user_id: [room] })).await.ok();
    let second = slide(&alice, pos(&first), all_rooms(19, 1)).await.ok();
    assert_eq!(second["rooms"][&room]["is_dm"], true);
}

#[tokio::test] // "Extensions": account data
async fn account_data_comes_whole_at_first_and_as_changes_afterwards() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let mine = format!("/v3/user/{}", segment(&alice.user_id));
    let global = format!("{mine}/account_data/org.example");
    let of_room = format!("{mine}/rooms/{}/account_data/org.example", segment(&room));
    alice.put(&global, json!({ "n": 1 })).await.ok();
    alice.put(&of_room, json!({ "n": 2 })).await.ok();
    let on = json!({ "account_data": { "enabled": true } });
    let body = || with(all_rooms(19, 1), "extensions", on.clone());
    let first = slide(&alice, None, body()).await.ok();
    let data = &first["extensions"]["account_data"];
    let types: Vec<_> = data["global"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["type"])
        .collect();
    assert!(types.contains(&&json!("org.example")));
    assert!(
        types.contains(&&json!("m.push_rules")),
        "the server's, where there are no own"
    );
    assert_eq!(data["rooms"][&room][0]["content"]["n"], 2);
    let quiet = slide(&alice, pos(&first), body()).await.ok();
    assert_eq!(quiet["extensions"], json!({}));
    alice.put(&of_room, json!({ "n": 3 })).await.ok();
    let second = slide(&alice, pos(&quiet), body()).await.ok();
    assert_eq!(
        second["extensions"]["account_data"]["rooms"][&room][0]["content"]["n"],
        3
    );
    assert!(second["extensions"]["account_data"]["global"].is_null());
    let off = slide(&alice, None, all_rooms(19, 1)).await.ok();
    assert_eq!(off["extensions"], json!({}));
}

#[tokio::test] // "Extensions": receipts
async fn receipts_of_a_wanted_room_arrive() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let said = alice.say(&room, "read this").await;
    let on = json!({ "receipts": { "enabled": true, "rooms": ["*"] } });
    let body = || with(all_rooms(19, 1), "extensions", on.clone());
    let first = slide(&alice, None, body()).await.ok();
    let path = format!(
        "/v3/rooms/{}/receipt/m.read/{}",
        segment(&room),
        segment(&said)
    );
    bob.post(&path, json!({})).await.ok();
    for from in [pos(&first), None] {
        let answer = slide(&alice, from, body()).await.ok();
        let receipts = &answer["extensions"]["receipts"]["rooms"][&room];
        assert_eq!(receipts["type"], "m.receipt");
        assert!(receipts["content"][&said]["m.read"][&bob.user_id]["ts"].is_u64());
        if from.is_some() {
            assert_eq!(
                answer["rooms"],
                json!({}),
                "a receipt alone is no news of the room"
            );
        }
    }
}

#[tokio::test] // "Extensions": typing
async fn typing_in_a_wanted_room_arrives_and_its_end_too() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let on = json!({ "typing": { "enabled": true } });
    let body = || with(all_rooms(19, 1), "extensions", on.clone());
    let first = slide(&alice, None, body()).await.ok();
    assert_eq!(first["extensions"], json!({}));
    let path = format!(
        "/v3/rooms/{}/typing/{}",
        segment(&room),
        segment(&bob.user_id)
    );
    bob.put(&path, json!({ "typing": true, "timeout": 30_000 }))
        .await
        .ok();
    let second = slide(&alice, pos(&first), body()).await.ok();
    let typing = &second["extensions"]["typing"]["rooms"][&room];
    assert_eq!(typing["content"]["user_ids"], json!([bob.user_id]));
    bob.put(&path, json!({ "typing": false })).await.ok();
    let third = slide(&alice, pos(&second), body()).await.ok();
    let typing = &third["extensions"]["typing"]["rooms"][&room];
    assert_eq!(typing["content"]["user_ids"], json!([]));
}

#[tokio::test] // `timeout`: the server waits for something to happen
async fn a_waiting_request_is_answered_when_something_happens() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let first = slide(&bob, None, all_rooms(19, 1)).await.ok();
    let path = format!(
        "/unstable/org.matrix.simplified_msc3575/sync?pos={}&timeout=60000",
        segment(pos(&first).unwrap())
    );
    let (answer, said) = tokio::join!(biased; bob.post(&path, all_rooms(19, 1)), async {
        // Something that is none of Bob's business must not answer.
        alice.create_room(json!({})).await;
        alice.say(&room, "wake up").await
    });
    assert_eq!(event_ids(&answer.ok()["rooms"][&room]["timeline"]), [said]);
}

#[tokio::test] // `pos` "can be used in `/messages`"
async fn pos_and_prev_batch_are_places_to_page_from() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let said = [alice.say(&room, "one").await, alice.say(&room, "two").await];
    let first = slide(&alice, None, all_rooms(19, 1)).await.ok();
    let before = first["rooms"][&room]["prev_batch"].as_str().unwrap();
    let page = alice
        .messages(&room, &format!("limit=1&from={before}"))
        .await;
    assert_eq!(event_ids(&page["chunk"]), said[..1]);
    let here = segment(pos(&first).unwrap());
    let page = alice.messages(&room, &format!("limit=1&from={here}")).await;
    assert_eq!(event_ids(&page["chunk"]), said[1..]);
}

#[tokio::test] // `txn_id`
async fn the_transaction_id_comes_back() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let body = with(all_rooms(19, 1), "txn_id", json!("t1"));
    assert_eq!(slide(&alice, None, body).await.ok()["txn_id"], "t1");
}

#[tokio::test] // MSC4186 as accepted
async fn the_accepted_form_speaks_of_the_same_rooms() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({ "name": "Lounge", "topic": "y", "preset": "public_chat" }))
        .await;
    let invited = bob.create_room(json!({ "invite": [alice.user_id] })).await;
    let body = |pos: Option<&str>| {
        json!({ "pos": pos, "lists": { "all": {
            "range": [0, 99], "timeline_limit": 2,
            "required_state": {
                "include": [{}], "exclude": [{ "type": "m.room.topic" }], "lazy_members": true,
            },
        } } })
    };
    let first = alice.post("/v4/sync", body(None)).await.ok();
    let told = &first["rooms"][&room];
    assert_eq!(told["membership"], "join");
    assert_eq!(told["lists"], json!(["all"]));
    assert_eq!(keys_of(&told["required_state"], "m.room.name"), [""]);
    assert!(keys_of(&told["required_state"], "m.room.topic").is_empty());
    let told = &first["rooms"][&invited];
    assert_eq!(told["membership"], "invite");
    assert!(told["stripped_state"].is_array() && told["invite_state"].is_null());
    let next = json!({ "name": "" });
    alice.set_state(&room, "m.room.name", "", next).await.ok();
    let second = alice.post("/v4/sync", body(pos(&first))).await.ok();
    let told = second["rooms"][&room].as_object().unwrap();
    assert_eq!(told.get("name"), Some(&Value::Null), "the name was removed");
    alice
        .post("/v4/sync", body(Some("s1~nobody")))
        .await
        .fails(400, "M_UNKNOWN_POS");
}

#[tokio::test] // "Request Body": limits and malformed input
async fn what_cannot_be_asked_is_refused() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let list = json!({ "timeline_limit": 1, "required_state": {} });
    let lists = |count: usize| -> Value {
        let lists = (0..count).map(|number| (format!("l{number}"), list.clone()));
        json!({ "lists": lists.collect::<serde_json::Map<_, _>>() })
    };
    alice.post("/v4/sync", lists(100)).await.ok();
    alice
        .post("/v4/sync", lists(101))
        .await
        .fails(400, "M_INVALID_PARAM");
    let presence = json!({ "set_presence": "asleep" });
    alice
        .post("/v4/sync", presence)
        .await
        .fails(400, "M_INVALID_PARAM");
    for (body, errcode) in [
        (json!({ "lists": 1 }), "M_BAD_JSON"),
        (
            json!({ "lists": { "l": { "ranges": [[0, 1]] } } }),
            "M_BAD_JSON",
        ),
        (
            json!({ "lists": { "l": { "ranges": [[5, 1]], "timeline_limit": 1 } } }),
            "M_INVALID_PARAM",
        ),
        (
            json!({ "room_subscriptions": { "no room": { "timeline_limit": 1 } } }),
            "M_BAD_JSON",
        ),
        (json!({ "conn_id": "c".repeat(256) }), "M_INVALID_PARAM"),
        (json!([]), "M_BAD_JSON"),
    ] {
        slide(&alice, None, body).await.fails(400, errcode);
    }
}

#[tokio::test] // "Ignoring Users"
async fn what_an_ignored_user_says_is_not_told() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let path = format!(
        "/v3/user/{}/account_data/m.ignored_user_list",
        segment(&alice.user_id)
    );
    let data = json!({ "ignored_users": { &bob.user_id: {} } });
    alice.put(&path, data).await.ok();
    let first = slide(&alice, None, all_rooms(19, 5)).await.ok();
    bob.say(&room, "noise").await;
    let second = slide(&alice, pos(&first), all_rooms(19, 5)).await.ok();
    assert_eq!(second["rooms"], json!({}));
}

#[tokio::test] // MSC3885: to-device messages stay until a later `since` acknowledges them
async fn messages_to_a_device_come_until_it_has_them() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let message = json!({ "messages": { &alice.user_id: { &alice.device_id: { "n": 1 } } } });
    bob.put("/v3/sendToDevice/org.example/t1", message)
        .await
        .ok();
    let body = |since: Option<&str>| {
        let mut asked = json!({ "enabled": true, "limit": 100 });
        if let Some(since) = since {
            asked["since"] = since.into();
        }
        json!({ "conn_id": "encryption", "extensions": { "to_device": asked } })
    };
    let first = slide(&alice, None, body(None)).await.ok();
    let told = &first["extensions"]["to_device"];
    assert_eq!(told["events"][0]["content"]["n"], 1);
    assert_eq!(told["events"][0]["sender"], bob.user_id);
    let lost = slide(&alice, None, body(None)).await.ok();
    assert_eq!(lost["extensions"]["to_device"]["events"], told["events"]);
    let since = told["next_batch"].as_str();
    let next = slide(&alice, pos(&lost), body(since)).await.ok();
    assert_eq!(next["extensions"]["to_device"]["events"], json!([]));
    let gone = slide(&alice, None, body(None)).await.ok();
    assert_eq!(gone["extensions"]["to_device"]["events"], json!([]));
    slide(&alice, None, body(Some("nonsense")))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // MSC3884: key counts and changed devices
async fn key_counts_and_changed_devices_are_told() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let stranger = world.register("stranger").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let body = || json!({ "conn_id": "encryption", "extensions": { "e2ee": { "enabled": true } } });
    let first = slide(&alice, None, body()).await.ok();
    let told = &first["extensions"]["e2ee"];
    assert_eq!(told["device_one_time_keys_count"]["signed_curve25519"], 0);
    assert_eq!(told["device_unused_fallback_key_types"], json!([]));
    for who in [&bob, &stranger] {
        let keys = json!({ "device_keys": {
            "user_id": who.user_id, "device_id": who.device_id, "algorithms": ["m.megolm.v1.aes-sha2"],
            "keys": { format!("ed25519:{}", who.device_id): "key" },
            "signatures": { &who.user_id: { format!("ed25519:{}", who.device_id): "signature" } },
        } });
        who.post("/v3/keys/upload", keys).await.ok();
    }
    let second = slide(&alice, pos(&first), body()).await.ok();
    let told = &second["extensions"]["e2ee"];
    assert_eq!(told["device_lists"]["changed"], json!([bob.user_id]));
    let third = slide(&alice, pos(&second), body()).await.ok();
    assert!(third["extensions"]["e2ee"]["device_lists"].is_null());
}
