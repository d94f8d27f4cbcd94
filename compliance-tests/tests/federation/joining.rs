//! Server-server API, "Joining Rooms", "Leaving Rooms", "Inviting to a room", "Knocking upon a room", seen by the
//! users of two servers.

use compliance_tests::{Client, Network, World, segment};
use serde_json::{Value, json};

async fn join_by(client: &Client, room: &str, server: &str) -> compliance_tests::Reply {
    client
        .post(
            &format!("/v3/join/{}?server_name={server}", segment(room)),
            json!({}),
        )
        .await
}

/// What a client's `/sync` says of a room.
async fn joined(client: &Client, room: &str) -> Value {
    client.sync(None, "").await["rooms"]["join"][room].clone()
}

struct Pair {
    hs1: World,
    hs2: World,
    network: Network,
}

impl Pair {
    /// With alice on the first and bob on the second.
    async fn with_users() -> (Self, Client, Client) {
        let pair = Self::new().await;
        let alice = pair.hs1.register("alice").await;
        let bob = pair.hs2.register("bob").await;
        (pair, alice, bob)
    }

    async fn new() -> Self {
        let network = Network::new();
        Self {
            hs1: network.server("hs1").await,
            hs2: network.server("hs2").await,
            network,
        }
    }
}

#[tokio::test]
async fn a_user_joins_a_room_of_another_server_and_sees_its_state() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let room = alice.public_room().await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "far away" }))
        .await
        .ok();
    alice.say(&room, "before").await;
    assert_eq!(
        join_by(&bob, &room, "hs1").await.ok(),
        json!({ "room_id": room })
    );
    let topic = bob.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(topic["topic"], "far away");
    let members = bob
        .get(&format!("/v3/rooms/{}/joined_members", segment(&room)))
        .await
        .ok();
    let members = members["joined"].as_object().unwrap();
    assert_eq!(
        members.keys().collect::<Vec<_>>(),
        ["@alice:hs1", "@bob:hs2"]
    );
    // The room's own server has the join, too.
    let member = alice.state(&room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "join");
    let state = joined(&bob, &room).await;
    let kinds: Vec<&str> = state["state"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    assert!(kinds.contains(&"m.room.create"), "{kinds:?}");
    assert!(kinds.contains(&"m.room.power_levels"), "{kinds:?}");
}

#[tokio::test]
async fn a_room_that_no_server_lets_in_is_refused_with_the_reason() {
    let (pair, alice, bob) = Pair::with_users().await;
    let room = alice
        .post("/v3/createRoom", json!({ "preset": "private_chat" }))
        .await
        .ok();
    let room = room["room_id"].as_str().unwrap();
    join_by(&bob, room, "hs1").await.fails(403, "M_FORBIDDEN");
    join_by(&bob, "!nowhere:hs1", "hs1")
        .await
        .fails(404, "M_NOT_FOUND");
    pair.network.cut("hs1", "hs2");
    join_by(&bob, room, "hs1").await.fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn an_invited_user_sees_what_the_room_is_and_joins_or_refuses() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let room = alice
        .post(
            "/v3/createRoom",
            json!({ "preset": "private_chat", "name": "Tea", "invite": ["@bob:hs2"] }),
        )
        .await
        .ok();
    let room = room["room_id"].as_str().unwrap();
    let sync = bob.sync(None, "").await;
    let state = &sync["rooms"]["invite"][room]["invite_state"]["events"];
    let name = state
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["type"] == "m.room.name");
    assert_eq!(name.unwrap()["content"]["name"], "Tea");
    assert!(name.unwrap().get("event_id").is_none(), "stripped");
    // MSC4311
    let create = |event: &&Value| event["type"] == "m.room.create";
    let create = state.as_array().unwrap().iter().find(create).unwrap();
    assert!(create["origin_server_ts"].is_u64(), "{create}");
    let own = |event: &&Value| event["state_key"] == "@bob:hs2";
    let own = state.as_array().unwrap().iter().find(own).unwrap();
    assert_eq!(own["content"]["membership"], "invite");
    assert_eq!(own["sender"], "@alice:hs1");
    bob.join(room).await.ok();
    let member = alice.state(room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "join");

    let other = alice.public_room().await;
    let invite = format!("/v3/rooms/{}/invite", segment(&other));
    alice
        .post(&invite, json!({ "user_id": "@bob:hs2" }))
        .await
        .ok();
    let since = bob.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.post(&format!("/v3/rooms/{}/leave", segment(&other)), json!({}))
        .await
        .ok();
    let member = alice.state(&other, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "leave");
    let sync = bob.sync(Some(&since), "").await;
    assert!(sync["rooms"]["leave"].get(&*other).is_some(), "{sync}");
    let nobody = alice
        .post(&invite, json!({ "user_id": "@nobody:hs2" }))
        .await;
    nobody.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_user_knocks_and_is_let_in() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let room = alice
        .post(
            "/v3/createRoom",
            json!({ "initial_state": [{
                "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" },
            }] }),
        )
        .await
        .ok();
    let room = room["room_id"].as_str().unwrap();
    join_by(&bob, room, "hs1").await.fails(403, "M_FORBIDDEN");
    let knock = format!("/v3/knock/{}?via=hs1", segment(room));
    bob.post(&knock, json!({ "reason": "tea" })).await.ok();
    let sync = bob.sync(None, "").await;
    assert!(sync["rooms"]["knock"].get(room).is_some(), "{sync}");
    let member = alice.state(room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "knock");
    assert_eq!(member["reason"], "tea");
    let invite = format!("/v3/rooms/{}/invite", segment(room));
    alice
        .post(&invite, json!({ "user_id": "@bob:hs2" }))
        .await
        .ok();
    bob.join(room).await.ok();
    let member = alice.state(room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "join");
}

#[tokio::test]
async fn a_restricted_room_lets_in_the_members_of_the_other_room() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let club = alice.public_room().await;
    let room = alice
        .post(
            "/v3/createRoom",
            json!({ "initial_state": [{
                "type": "m.room.join_rules", "state_key": "",
                "content": { "join_rule": "restricted", "allow": [
                    { "type": "m.room_membership", "room_id": club },
                ] },
            }] }),
        )
        .await
        .ok();
    let room = room["room_id"].as_str().unwrap();
    join_by(&bob, room, "hs1").await.fails(403, "M_FORBIDDEN");
    join_by(&bob, &club, "hs1").await.ok();
    join_by(&bob, room, "hs1").await.ok();
    let member = alice.state(room, "m.room.member", "@bob:hs2").await.ok();
    assert_eq!(member["membership"], "join");
    assert_eq!(member["join_authorised_via_users_server"], "@alice:hs1");
}

#[tokio::test]
async fn every_version_that_is_served_is_joined() {
    let (_pair, alice, bob) = Pair::with_users().await;
    for version in ["6", "7", "8", "9", "10", "11", "12"] {
        let room = alice
            .post(
                "/v3/createRoom",
                json!({ "preset": "public_chat", "room_version": version }),
            )
            .await
            .ok();
        let room = room["room_id"].as_str().unwrap();
        join_by(&bob, room, "hs1").await.ok();
        let create = bob.state(room, "m.room.create", "").await.ok();
        assert_eq!(create["room_version"], version);
    }
}

#[tokio::test]
async fn who_joined_before_a_restart_is_there_after_it() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let hs2 = network.server_on_disk("hs2", |_| {}).await;
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    join_by(&bob, &room, "hs1").await.ok();
    let said = bob.say(&room, "here").await;
    let token = bob.token.clone();
    drop(bob);
    let hs2 = hs2.restart(|_| {}).await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        segment(&room),
        segment(&said)
    );
    let event = hs2
        .request(http::Method::GET, &path, Some(&token), None)
        .await
        .ok();
    assert_eq!(event["content"]["body"], "here");
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.create",
        segment(&room)
    );
    hs2.request(http::Method::GET, &path, Some(&token), None)
        .await
        .ok();
}

#[tokio::test] // "Leaving Rooms": an invite that is taken back, told to a server that is not in the room
async fn an_invite_that_is_taken_back_is_gone() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let room = alice.public_room().await;
    alice.invite(&room, "@bob:hs2").await.ok();
    let first = bob.sync(None, "").await;
    assert!(first["rooms"]["invite"].get(&*room).is_some());
    let kick = format!("/v3/rooms/{}/kick", segment(&room));
    alice
        .post(&kick, json!({ "user_id": "@bob:hs2" }))
        .await
        .ok();
    let since = first["next_batch"].as_str().unwrap();
    let path = format!("/v3/sync?since={since}&timeout=20000");
    let sync = bob.get(&path).await.ok();
    let event = &sync["rooms"]["leave"][&room]["timeline"]["events"][0];
    assert_eq!(event["content"]["membership"], "leave", "{sync}");
    assert_eq!(event["sender"], "@alice:hs1");
    let sync = bob.sync(None, "").await;
    assert!(sync["rooms"].get("invite").is_none(), "{sync}");
    assert!(sync["rooms"].get("leave").is_none(), "{sync}");
    let with_left = "filter=%7B%22room%22%3A%7B%22include_leave%22%3Atrue%7D%7D";
    let sync = bob.sync(None, with_left).await;
    assert!(sync["rooms"]["leave"].get(&*room).is_some(), "{sync}");
}

#[tokio::test] // "Leaving Rooms (Rejecting Invites)"
async fn an_invite_into_a_room_that_everybody_has_left_is_refused_all_the_same() {
    let (_pair, alice, bob) = Pair::with_users().await;
    let room = alice.public_room().await;
    alice.invite(&room, "@bob:hs2").await.ok();
    alice.leave(&room).await.ok();
    let first = bob.sync(None, "").await;
    bob.leave(&room).await.ok();
    let since = first["next_batch"].as_str().unwrap();
    let sync = bob.sync(Some(since), "").await;
    let event = &sync["rooms"]["leave"][&room]["timeline"]["events"][0];
    assert_eq!(event["sender"], "@bob:hs2", "{sync}");
}
