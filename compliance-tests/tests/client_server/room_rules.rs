//! What the server refuses of its users' events, of new rooms and of guests.
//!
//! Client-server API, "Creation", "Room membership", "Redactions", "Threading", "Guest Access".

use compliance_tests::{Client, World, segment};
use http::Method;
use serde_json::{Value, json};

#[tokio::test] // "POST /createRoom": errors
async fn a_room_that_cannot_be_is_not_created() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    for (body, errcode) in [
        (json!({ "room_version": 1 }), "M_BAD_JSON"),
        (json!({ "room_version": "x" }), "M_UNSUPPORTED_ROOM_VERSION"),
        (json!({ "preset": "loud_chat" }), "M_INVALID_PARAM"),
        (json!({ "visibility": "sideways" }), "M_INVALID_PARAM"),
        (json!({ "initial_state": {} }), "M_BAD_JSON"),
        (json!({ "initial_state": [{ "type": 5 }] }), "M_BAD_JSON"),
        (json!({ "creation_content": [] }), "M_BAD_JSON"),
        (json!({ "invite": ["nobody"] }), "M_BAD_JSON"),
        (json!({ "is_direct": "yes" }), "M_BAD_JSON"),
        (json!({ "room_alias_name": "#a" }), "M_INVALID_PARAM"),
        (json!({ "room_alias_name": "a b" }), "M_INVALID_PARAM"),
        (
            json!({ "initial_state": [{ "type": "m.room.canonical_alias", "content": { "alias": "#no:hs1" } }] }),
            "M_BAD_ALIAS",
        ),
        (
            json!({ "room_version": "12", "power_level_content_override": { "users": { "@alice:hs1": 100 } } }),
            "M_BAD_JSON",
        ),
        (
            json!({ "room_version": "12", "creation_content": { "additional_creators": ["x"] } }),
            "M_INVALID_PARAM",
        ),
    ] {
        let said = body.to_string();
        let reply = alice.post("/v3/createRoom", body).await;
        assert_eq!(reply.error(), (400, errcode.to_owned()), "{said}");
    }
    let rooms = alice.get("/v3/joined_rooms").await.ok();
    assert_eq!(rooms, json!({ "joined_rooms": [] }));
}

#[tokio::test] // "POST /createRoom": `creation_content`, `room_version`
async fn a_new_room_has_the_type_and_the_version_that_were_asked_for() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let content = json!({ "type": "m.space", "room_version": "test", "creator": "@eve:hs1" });
    let room = alice
        .create_room(json!({ "creation_content": content, "room_version": "11" }))
        .await;
    let create = alice.state(&room, "m.room.create", "").await.ok();
    assert_eq!(create, json!({ "type": "m.space", "room_version": "11" }));
}

#[tokio::test] // State that would break the room
async fn state_that_the_server_knows_to_be_wrong_is_refused() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({ "room_version": "11", "preset": "public_chat" }))
        .await;
    bob.join(&room).await.ok();
    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    alice
        .set_state(&room, "m.room.encryption", "", encryption)
        .await
        .ok();
    let allow = json!(["*"]);
    for (kind, content, errcode) in [
        (
            "m.room.create",
            json!({ "room_version": "11" }),
            "M_BAD_JSON",
        ),
        ("m.room.encryption", json!({}), "M_BAD_JSON"),
        ("m.room.encryption", json!({ "algorithm": 1 }), "M_BAD_JSON"),
        ("m.room.power_levels", json!({ "ban": "50" }), "M_BAD_JSON"),
        ("m.room.power_levels", json!({ "users": [] }), "M_BAD_JSON"),
        (
            "m.room.power_levels",
            json!({ "users": { "@alice:hs1": 100, "bob": 1 } }),
            "M_BAD_JSON",
        ),
        ("m.room.server_acl", json!({}), "M_INVALID_PARAM"),
        (
            "m.room.server_acl",
            json!({ "allow": allow, "deny": ["hs*"] }),
            "M_INVALID_PARAM",
        ),
        (
            "m.room.tombstone",
            json!({ "body": "", "replacement_room": room }),
            "M_BAD_JSON",
        ),
    ] {
        let said = format!("{kind} {content}");
        let reply = alice.set_state(&room, kind, "", content).await;
        assert_eq!(reply.error(), (400, errcode.to_owned()), "{said}");
    }
    alice
        .set_state(
            &room,
            "m.room.server_acl",
            "",
            json!({ "allow": allow, "deny": ["evil"] }),
        )
        .await
        .ok();
    alice
        .set_state(&room, "com.example", &bob.user_id, json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test] // Room versions 10 and 12, "Power levels"
async fn power_levels_are_as_the_room_version_says() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let stringy = json!({ "ban": "50", "users": { (&*alice.user_id): "100" } });
    for (version, status) in [("9", 200), ("10", 400)] {
        let room = alice.create_room(json!({ "room_version": version })).await;
        let reply = alice
            .set_state(&room, "m.room.power_levels", "", stringy.clone())
            .await;
        assert_eq!(reply.status, status, "version {version}");
    }
    let room = alice.create_room(json!({ "room_version": "12" })).await;
    let content = json!({ "users": { (&*alice.user_id): 100 } });
    alice
        .set_state(&room, "m.room.power_levels", "", content)
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test] // "Threading", server behaviour; "Forming relationships between events"
async fn an_event_relates_only_to_what_it_may() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let (room, other) = (alice.public_room().await, alice.public_room().await);
    let root = alice.say(&room, "root").await;
    let elsewhere = alice.say(&other, "elsewhere").await;
    let relating = |kind: &str, to: &str| json!({ "msgtype": "m.text", "body": "x", "m.relates_to": { "rel_type": kind, "event_id": to } });
    let reply = alice
        .send(&room, "m.room.message", relating("m.thread", &root))
        .await
        .ok();
    let in_thread = reply["event_id"].as_str().expect("an event ID").to_owned();
    for content in [
        relating("m.thread", &in_thread),
        relating("m.thread", &elsewhere),
        relating("m.reference", &elsewhere),
    ] {
        alice
            .send(&room, "m.room.message", content)
            .await
            .fails(400, "M_UNKNOWN");
    }
    alice
        .send(&room, "m.reaction", relating("m.annotation", &root))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test] // "Redactions"; room version 11, "Moving the `redacts` property"
async fn a_redaction_says_in_both_places_what_it_redacts_in_every_version() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    for version in ["10", "11", "12"] {
        let room = alice
            .create_room(json!({ "room_version": version, "preset": "public_chat" }))
            .await;
        bob.join(&room).await.ok();
        let (mine, theirs) = (alice.say(&room, "a").await, bob.say(&room, "b").await);
        let redact = |of: &str| {
            format!(
                "/v3/rooms/{}/redact/{}/r{}",
                segment(&room),
                segment(of),
                segment(of)
            )
        };
        bob.put(&redact(&mine), json!({}))
            .await
            .fails(403, "M_FORBIDDEN");
        bob.put(&redact("$unknown"), json!({}))
            .await
            .fails(404, "M_NOT_FOUND");
        let reply = alice
            .put(&redact(&theirs), json!({ "reason": "spam" }))
            .await
            .ok();
        let redaction = reply["event_id"].as_str().expect("an event ID");
        let event = |id: &str| format!("/v3/rooms/{}/event/{}", segment(&room), segment(id));
        let seen = bob.get(&event(redaction)).await.ok();
        assert_eq!(seen["redacts"], theirs, "version {version}");
        assert_eq!(
            seen["content"],
            json!({ "redacts": theirs, "reason": "spam" })
        );
        let seen = bob.get(&event(&theirs)).await.ok();
        assert_eq!(seen["content"], json!({}));
        assert_eq!(seen["unsigned"]["redacted_because"]["event_id"], redaction);
    }
}

#[tokio::test] // "Room membership": kicking, banning, unbanning
async fn kicking_and_banning_fail_with_403_where_they_make_no_sense() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let act = async |client: &Client, what: &str, of: &Client| {
        let path = format!("/v3/rooms/{}/{what}", segment(&room));
        client.post(&path, json!({ "user_id": of.user_id })).await
    };
    act(&bob, "kick", &alice).await.fails(403, "M_FORBIDDEN");
    act(&bob, "ban", &carol).await.fails(403, "M_FORBIDDEN");
    act(&carol, "kick", &bob).await.fails(403, "M_FORBIDDEN");
    act(&alice, "kick", &carol).await.fails(403, "M_FORBIDDEN");
    act(&alice, "unban", &carol).await.fails(403, "M_FORBIDDEN");
    act(&alice, "ban", &bob).await.ok();
    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    alice
        .invite(&room, &bob.user_id)
        .await
        .fails(403, "M_FORBIDDEN");
    act(&alice, "unban", &bob).await.ok();
    bob.join(&room).await.ok();
}

#[tokio::test] // "Leaving rooms", "POST /rooms/{roomId}/forget"
async fn a_forgotten_room_is_gone_until_it_is_joined_again() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    alice.say(&room, "hello").await;
    let forget = format!("/v3/rooms/{}/forget", segment(&room));
    bob.post(&forget, json!({})).await.fails(400, "M_UNKNOWN");
    bob.leave(&room).await.ok();
    let messages = format!("/v3/rooms/{}/messages?dir=b", segment(&room));
    bob.get(&messages).await.ok();
    bob.post(&forget, json!({})).await.ok();
    bob.post(&forget, json!({})).await.ok();
    bob.get(&messages).await.fails(403, "M_FORBIDDEN");
    let include = segment(r#"{"room":{"include_leave":true}}"#);
    let sync = bob.sync(None, &format!("filter={include}")).await;
    assert!(sync["rooms"]["leave"][&room].is_null(), "{sync}");
    bob.join(&room).await.ok();
    bob.get(&messages).await.ok();
    let sync = bob.sync(None, "").await;
    assert!(sync["rooms"]["join"][&room].is_object());
}

#[tokio::test] // "Leaving rooms": refusing an invite
async fn a_refused_invite_can_be_forgotten_and_a_strange_room_cannot_be_left() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({})).await;
    bob.leave(&room).await.fails(403, "M_FORBIDDEN");
    let forget = format!("/v3/rooms/{}/forget", segment(&room));
    bob.post(&forget, json!({})).await.fails(404, "M_NOT_FOUND");
    alice.invite(&room, &bob.user_id).await.ok();
    bob.leave(&room).await.ok();
    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    bob.post(&forget, json!({})).await.ok();
}

#[tokio::test] // "Knocking on rooms"
async fn a_knock_is_let_in_refused_or_taken_back() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice
        .create_room(json!({ "initial_state": [rule], "room_alias_name": "door" }))
        .await;
    let knock = async |target: &str| {
        let path = format!("/v3/knock/{}", segment(target));
        bob.post(&path, json!({ "reason": "please" })).await
    };
    assert_eq!(knock("#door:hs1").await.ok(), json!({ "room_id": room }));
    let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!(
        (&member["membership"], &member["reason"]),
        (&json!("knock"), &json!("please"))
    );
    let sync = bob.sync(None, "").await;
    assert!(sync["rooms"]["knock"][&room]["knock_state"]["events"].is_array());
    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    bob.leave(&room).await.ok();
    knock(&room).await.ok();
    knock(&room).await.ok();
    alice.invite(&room, &bob.user_id).await.ok();
    knock(&room).await.fails(403, "M_FORBIDDEN");
    bob.join(&room).await.ok();
    knock(&room).await.fails(403, "M_FORBIDDEN");
    knock("#none:hs1").await.fails(404, "M_NOT_FOUND");
    let closed = alice.create_room(json!({})).await;
    knock(&closed).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "Restricted rooms": what `allow` may hold
async fn strange_conditions_of_a_restricted_room_let_nobody_in_and_hurt_nobody() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let space = alice.public_room().await;
    let room = alice.create_room(json!({ "room_version": "10" })).await;
    bob.join(&space).await.ok();
    let rules = |allow: Value| json!({ "join_rule": "restricted", "allow": allow });
    for allow in [
        json!([]),
        json!("x"),
        json!(["x", 5]),
        json!([{ "type": "m.room_membership" }]),
        json!([{ "type": "com.example.door", "key": "x" }]),
        json!([{ "type": "m.room_membership", "room_id": "!unknown:hs1" }]),
    ] {
        alice
            .set_state(&room, "m.room.join_rules", "", rules(allow))
            .await
            .ok();
        bob.join(&room).await.fails(403, "M_FORBIDDEN");
    }
    let strange = json!({ "type": "com.example.door" });
    let allow = json!([strange, { "type": "m.room_membership", "room_id": space }]);
    alice
        .set_state(&room, "m.room.join_rules", "", rules(allow))
        .await
        .ok();
    bob.join(&room).await.ok();
}

async fn guest(world: &World) -> String {
    let path = "/_matrix/client/v3/register?kind=guest";
    let body = json!({});
    let reply = world
        .request(Method::POST, path, None, Some(&body))
        .await
        .ok();
    reply["access_token"].as_str().expect("a token").to_owned()
}

#[tokio::test] // "Guest Access", server behaviour
async fn a_guest_joins_only_where_guests_may_and_leaves_when_they_no_longer_may() {
    let world = World::with(|config| config.registration.guests = true).await;
    let alice = world.register("alice").await;
    let token = guest(&world).await;
    let call = async |method: Method, path: &str| {
        let path = format!("/_matrix/client{path}");
        let body = (method != Method::GET).then(|| json!({}));
        world
            .request(method, &path, Some(&token), body.as_ref())
            .await
    };
    let room = alice.public_room().await;
    let join = format!("/v3/join/{}", segment(&room));
    call(Method::POST, &join)
        .await
        .fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    let open = json!({ "guest_access": "can_join" });
    alice
        .set_state(&room, "m.room.guest_access", "", open)
        .await
        .ok();
    call(Method::POST, &join).await.ok();
    for (method, path) in [
        (Method::POST, "/v3/createRoom"),
        (Method::PUT, "/v3/directory/room/%23a%3Ahs1"),
        (Method::POST, "/v3/rooms/!a:hs1/upgrade"),
    ] {
        call(method, path)
            .await
            .fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
    let closed = json!({ "guest_access": "forbidden" });
    alice
        .set_state(&room, "m.room.guest_access", "", closed)
        .await
        .ok();
    // The guest leaves in answer to the event, once the reader of the log has its turn.
    let members = format!("/v3/rooms/{}/joined_members", segment(&room));
    let mut joined = Vec::new();
    for _ in 0..100 {
        tokio::task::yield_now().await;
        let reply = alice.get(&members).await.ok();
        let reply = reply["joined"].as_object().expect("members").clone();
        joined = reply.keys().cloned().collect();
        if joined.len() == 1 {
            break;
        }
    }
    assert_eq!(joined, std::slice::from_ref(&alice.user_id));
    call(Method::GET, &members).await.fails(403, "M_FORBIDDEN");
}
