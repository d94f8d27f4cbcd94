//! Server-server API, "EDUs": what is told of users besides events, in both directions.

use axum::{Json, Router, routing::get};
use compliance_tests::{Client, Network, World, segment};
use homeserver::rooms::members::To;
use http::Method;
use serde_json::{Value, json};

use crate::inbox::{Inbox, edus, join_remote, move_remote, tell};

/// A server with a user in a room with a user of another server.
async fn shared() -> (Network, World, Client, Inbox, String) {
    let network = Network::new();
    let world = network.server("hs1").await;
    let inbox = Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    (network, world, alice, inbox, room)
}

/// The ephemeral events of a kind in a room, from a first sync.
async fn ephemeral(client: &Client, room: &str, kind: &str) -> Vec<Value> {
    let answer = client.sync(None, "").await;
    let events = &answer["rooms"]["join"][room]["ephemeral"]["events"];
    let events = events.as_array().cloned().unwrap_or_default();
    events
        .into_iter()
        .filter(|event| event["type"] == kind)
        .map(|event| event["content"].clone())
        .collect()
}

async fn typists(client: &Client, room: &str) -> Vec<Value> {
    let events = ephemeral(client, room, "m.typing").await;
    let users = events.iter().map(|content| &content["user_ids"]);
    users
        .flat_map(|users| users.as_array().cloned().unwrap_or_default())
        .collect()
}

fn device_keys(user: &str, device: &str) -> Value {
    json!({
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            format!("curve25519:{device}"): "a2V5",
            format!("ed25519:{device}"): "a2V5",
        },
        "signatures": { user: { format!("ed25519:{device}"): "c2ln" } },
    })
}

async fn upload_keys(client: &Client) {
    let keys = device_keys(&client.user_id, &client.device_id);
    let body = json!({ "device_keys": keys });
    client.post("/v3/keys/upload", body).await.ok();
}

// Typing

#[tokio::test]
async fn typing_is_told_to_the_servers_in_the_room_when_it_begins_and_ends() {
    let (_, _, alice, inbox, room) = shared().await;
    let path = format!(
        "/v3/rooms/{}/typing/{}",
        segment(&room),
        segment("@alice:hs1")
    );
    let typing = json!({ "typing": true, "timeout": 60_000 });
    alice.put(&path, typing).await.ok();
    let told = inbox.edu("m.typing", |edu| edu["typing"] == true).await;
    assert_eq!(
        told,
        json!({ "room_id": room, "user_id": "@alice:hs1", "typing": true })
    );
    alice.put(&path, json!({ "typing": false })).await.ok();
    inbox.edu("m.typing", |edu| edu["typing"] == false).await;
}

#[tokio::test]
async fn typing_is_told_again_every_forty_seconds() {
    let (network, _, alice, inbox, room) = shared().await;
    let path = format!(
        "/v3/rooms/{}/typing/{}",
        segment(&room),
        segment("@alice:hs1")
    );
    let typing = json!({ "typing": true, "timeout": 120_000 });
    alice.put(&path, typing).await.ok();
    inbox.edu("m.typing", |edu| edu["typing"] == true).await;
    for (passed, count) in [(39_000, 1), (1_000, 2), (40_000, 3)] {
        network.pass_ms(passed);
        let text = format!("wakes the sender {count} {passed}");
        alice.say(&room, &text).await;
        inbox.text(&text).await;
        inbox
            .until(format!("typing, for the time number {count}"), |arrived| {
                (edus(arrived, "m.typing").len() >= count).then_some(())
            })
            .await;
        assert_eq!(edus(&inbox.arrived(), "m.typing").len(), count);
    }
}

#[tokio::test]
async fn typing_of_another_servers_user_is_shown_and_expires() {
    let (network, world, alice, _, room) = shared().await;
    let typing = |typing: bool| json!({ "room_id": room, "user_id": "@bob:hs2", "typing": typing });
    tell(&world, "hs2", "m.typing", typing(true)).await;
    assert_eq!(typists(&alice, &room).await, ["@bob:hs2"]);
    tell(&world, "hs2", "m.typing", typing(false)).await;
    assert_eq!(typists(&alice, &room).await, [] as [&str; 0]);
    tell(&world, "hs2", "m.typing", typing(true)).await;
    network.pass_ms(60_001);
    let app = &world.server().app;
    app.typing.expire(&app.moments, app.clock.now_ms());
    assert_eq!(typists(&alice, &room).await, [] as [&str; 0]);
}

#[tokio::test]
async fn typing_is_not_believed_of_other_servers_users_or_of_users_who_are_not_in_the_room() {
    let (_, world, alice, _, room) = shared().await;
    for (origin, user) in [
        ("hs3", "@bob:hs2"),
        ("hs2", "@alice:hs1"),
        ("hs2", "@dave:hs2"),
    ] {
        let content = json!({ "room_id": room, "user_id": user, "typing": true });
        tell(&world, origin, "m.typing", content).await;
        assert_eq!(typists(&alice, &room).await, [] as [&str; 0], "{user}");
    }
}

#[tokio::test]
async fn edus_of_a_room_are_not_believed_of_a_server_that_the_room_keeps_out() {
    let (_, world, alice, _, room) = shared().await;
    let event_id = alice.say(&room, "hello").await;
    let list = json!({ "allow": ["*"], "deny": ["HS2"] });
    alice
        .set_state(&room, "m.room.server_acl", "", list)
        .await
        .ok();
    let typing = json!({ "room_id": room, "user_id": "@bob:hs2", "typing": true });
    tell(&world, "hs2", "m.typing", typing.clone()).await;
    let data = json!({ "data": { "ts": 5 }, "event_ids": [event_id] });
    let receipt = json!({ &room: { "m.read": { "@bob:hs2": data } } });
    tell(&world, "hs2", "m.receipt", receipt.clone()).await;
    assert_eq!(typists(&alice, &room).await, [] as [&str; 0]);
    assert_eq!(
        ephemeral(&alice, &room, "m.receipt").await,
        [] as [Value; 0]
    );
    // Without the list they are.
    let list = json!({ "allow": ["*"] });
    alice
        .set_state(&room, "m.room.server_acl", "", list)
        .await
        .ok();
    tell(&world, "hs2", "m.typing", typing).await;
    tell(&world, "hs2", "m.receipt", receipt).await;
    assert_eq!(typists(&alice, &room).await, ["@bob:hs2"]);
    assert_eq!(ephemeral(&alice, &room, "m.receipt").await.len(), 1);
}

// Receipts

#[tokio::test]
async fn public_receipts_are_told_and_private_ones_are_not() {
    let (_, _, alice, inbox, room) = shared().await;
    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    let path = |kind: &str, event_id: &str| {
        let (room, event_id) = (segment(&room), segment(event_id));
        format!("/v3/rooms/{room}/receipt/{kind}/{event_id}")
    };
    let private = path("m.read.private", &second);
    alice.post(&private, json!({})).await.ok();
    alice.post(&path("m.read", &first), json!({})).await.ok();
    let told = inbox.edu("m.receipt", |_| true).await;
    let read = &told[&room]["m.read"]["@alice:hs1"];
    assert_eq!(read["event_ids"], json!([first]));
    assert!(read["data"]["ts"].is_u64());
    assert_eq!(told[&room].as_object().unwrap().len(), 1);
    let thread = json!({ "thread_id": "main" });
    alice.post(&path("m.read", &second), thread).await.ok();
    let threaded = inbox
        .edu("m.receipt", |edu| {
            edu[&room]["m.read"]["@alice:hs1"]["data"]["thread_id"] == "main"
        })
        .await;
    let read = &threaded[&room]["m.read"]["@alice:hs1"];
    assert_eq!(read["event_ids"], json!([second]));
}

#[tokio::test]
async fn receipts_of_other_servers_users_are_shown() {
    let (_, world, alice, _, room) = shared().await;
    let event_id = alice.say(&room, "hello").await;
    let data = |event_id: &str| json!({ "data": { "ts": 5 }, "event_ids": [event_id] });
    let content = json!({ &room: { "m.read": { "@bob:hs2": data(&event_id) } } });
    tell(&world, "hs2", "m.receipt", content).await;
    let shown = ephemeral(&alice, &room, "m.receipt").await;
    assert_eq!(
        shown[0][&event_id]["m.read"]["@bob:hs2"],
        json!({ "ts": 5 })
    );
}

#[tokio::test]
async fn a_receipt_for_an_event_that_is_not_known_yet_waits_for_it() {
    // The same steps from the same seed make the same event: here one learns its ID before it is there.
    let (_, _, alice, _, room) = shared().await;
    let event_id = alice.say(&room, "hello").await;
    let (_, world, alice, _, room) = shared().await;
    let data = json!({ "data": { "ts": 5, "thread_id": "main" }, "event_ids": [event_id] });
    let content = json!({ &room: { "m.read": { "@bob:hs2": data } } });
    tell(&world, "hs2", "m.receipt", content).await;
    assert_eq!(
        ephemeral(&alice, &room, "m.receipt").await,
        [] as [Value; 0]
    );
    assert_eq!(alice.say(&room, "hello").await, event_id);
    let shown = loop {
        if let Some(shown) = ephemeral(&alice, &room, "m.receipt").await.pop() {
            break shown;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        shown[&event_id]["m.read"]["@bob:hs2"],
        json!({ "ts": 5, "thread_id": "main" })
    );
}

#[tokio::test]
async fn a_receipt_does_not_go_back() {
    let (_, world, alice, _, room) = shared().await;
    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    for event_id in [&second, &first] {
        let data = json!({ "data": { "ts": 5 }, "event_ids": [event_id] });
        let content = json!({ &room: { "m.read": { "@bob:hs2": data } } });
        tell(&world, "hs2", "m.receipt", content).await;
    }
    let shown = ephemeral(&alice, &room, "m.receipt").await;
    assert!(shown[0][&second]["m.read"]["@bob:hs2"].is_object());
    assert_eq!(shown[0].get(&first), None);
}

// Presence

#[tokio::test]
async fn presence_is_told_to_servers_that_share_a_room_and_to_no_others() {
    let (network, world, alice, inbox, _) = shared().await;
    let third = Inbox::new(&network, "hs3");
    let dave = world.register("dave").await;
    let other = dave.public_room().await;
    join_remote(&world, &other, "@carol:hs3").await;
    let path = format!("/v3/presence/{}/status", segment("@alice:hs1"));
    let body = json!({ "presence": "online", "status_msg": "at home" });
    alice.put(&path, body).await.ok();
    let told = inbox
        .edu("m.presence", |edu| {
            edu["push"][0]["status_msg"] == "at home"
        })
        .await;
    let update = &told["push"][0];
    assert_eq!(update["user_id"], "@alice:hs1");
    assert_eq!(update["presence"], "online");
    dave.say(&other, "hello").await;
    third.text("hello").await;
    let users: Vec<Value> = edus(&third.arrived(), "m.presence")
        .iter()
        .map(|edu| edu["push"][0]["user_id"].clone())
        .collect();
    assert!(!users.contains(&json!("@alice:hs1")), "{users:?}");
}

#[tokio::test]
async fn presence_of_another_servers_user_is_shown_unless_presence_is_off() {
    let push = |user: &str, state: &str| {
        let update = json!({
            "user_id": user, "presence": state, "last_active_ago": 5_000, "status_msg": "away",
        });
        json!({ "push": [update] })
    };
    let (network, world, alice, _, room) = shared().await;
    tell(&world, "hs2", "m.presence", push("@bob:hs2", "online")).await;
    let path = format!("/v3/presence/{}/status", segment("@bob:hs2"));
    let shown = alice.get(&path).await.ok();
    assert_eq!(shown["presence"], "online");
    assert_eq!(shown["last_active_ago"], 5_000);
    assert_eq!(shown["status_msg"], "away");
    // Not of a user of another server, nor of one who is in no room.
    tell(&world, "hs3", "m.presence", push("@bob:hs2", "offline")).await;
    assert_eq!(alice.get(&path).await.ok()["presence"], "online");
    tell(&world, "hs2", "m.presence", push("@eve:hs2", "online")).await;
    let eve = world
        .server()
        .app
        .store
        .find_user("@eve:hs2".try_into().unwrap());
    assert_eq!(eve.unwrap(), None);
    drop((network, room));

    let network = Network::new();
    let world = network
        .server_with("hs1", |config| config.presence.enabled = false)
        .await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    tell(&world, "hs2", "m.presence", push("@bob:hs2", "online")).await;
    assert_eq!(alice.get(&path).await.ok()["presence"], "offline");
}

// To-device

#[tokio::test]
async fn messages_to_devices_of_other_servers_users_are_sent_until_they_are_taken() {
    let (network, world, alice, inbox, _) = shared().await;
    network.cut("hs1", "hs2");
    let messages = json!({ "messages": {
        "@bob:hs2": { "DEV": { "a": 1 }, "*": { "b": 2 } },
        "@eve:hs2": { "DEV": { "c": 3 } },
    }});
    let path = "/v3/sendToDevice/org.test/t1";
    alice.put(path, messages.clone()).await.ok();
    alice.put(path, messages).await.ok();
    let hs2 = ruma::ServerName::parse("hs2").unwrap();
    while !world.server().app.outgoing.heard(&hs2) {
        tokio::task::yield_now().await;
    }
    network.heal("hs1", "hs2");
    world.server().app.outgoing.heard(&hs2);
    network.pass_ms(60_000);
    let again = json!({ "messages": { "@bob:hs2": { "DEV": { "d": 4 } } } });
    alice.put("/v3/sendToDevice/org.test/t2", again).await.ok();
    let is =
        |key: &'static str| move |edu: &Value| !edu["messages"]["@bob:hs2"]["DEV"][key].is_null();
    let second = inbox.edu("m.direct_to_device", is("d")).await;
    let first = inbox.edu("m.direct_to_device", is("a")).await;
    assert_eq!(first["sender"], "@alice:hs1");
    assert_eq!(first["type"], "org.test");
    assert_eq!(
        first["messages"],
        json!({
            "@bob:hs2": { "DEV": { "a": 1 }, "*": { "b": 2 } },
            "@eve:hs2": { "DEV": { "c": 3 } },
        })
    );
    for edu in [&first, &second] {
        let id = edu["message_id"].as_str().unwrap();
        assert!((1..=32).contains(&id.chars().count()), "{id}");
    }
    assert_ne!(first["message_id"], second["message_id"]);
    let ids: std::collections::BTreeSet<String> = edus(&inbox.arrived(), "m.direct_to_device")
        .iter()
        .map(|edu| edu["message_id"].to_string())
        .collect();
    assert_eq!(ids.len(), 2, "the same transaction sends once");
}

#[tokio::test]
async fn a_message_to_devices_that_comes_twice_is_delivered_once() {
    let (_, world, alice, _, _) = shared().await;
    let content = |id: &str, sender: &str| {
        json!({
            "sender": sender, "type": "org.test", "message_id": id,
            "messages": {
                "@alice:hs1": { "*": { "id": id } },
                "@bob:hs2": { "*": { "id": id } },
            },
        })
    };
    for id in ["one", "one", "two"] {
        tell(&world, "hs2", "m.direct_to_device", content(id, "@bob:hs2")).await;
    }
    // The same ID of another server is another message; a sender of another server is not believed.
    tell(
        &world,
        "hs3",
        "m.direct_to_device",
        content("one", "@carol:hs3"),
    )
    .await;
    tell(
        &world,
        "hs3",
        "m.direct_to_device",
        content("three", "@bob:hs2"),
    )
    .await;
    let answer = alice.sync(None, "").await;
    let events = answer["to_device"]["events"].as_array().unwrap();
    let told: Vec<(&Value, &Value)> = events
        .iter()
        .map(|event| (&event["sender"], &event["content"]["id"]))
        .collect();
    let expected = [
        ("@bob:hs2", "one"),
        ("@bob:hs2", "two"),
        ("@carol:hs3", "one"),
    ];
    assert_eq!(told.len(), 3, "{told:?}");
    for ((sender, id), expected) in told.into_iter().zip(expected) {
        assert_eq!(
            (sender.as_str(), id.as_str()),
            (Some(expected.0), Some(expected.1))
        );
    }
}

// Device lists, outgoing

#[tokio::test]
async fn a_change_of_a_device_is_told_to_servers_that_share_a_room_linked_to_the_one_before() {
    let (_, world, alice, inbox, _) = shared().await;
    upload_keys(&alice).await;
    let first = inbox
        .edu("m.device_list_update", |edu| {
            edu["device_id"] == alice.device_id.as_str() && edu["keys"].is_object()
        })
        .await;
    assert_eq!(first["user_id"], "@alice:hs1");
    let phone = world.log_in("alice").await;
    let second = inbox
        .edu("m.device_list_update", |edu| {
            edu["device_id"] == phone.device_id.as_str()
        })
        .await;
    assert_eq!(second["prev_id"], json!([first["stream_id"]]));
    let path = format!("/v3/devices/{}", phone.device_id);
    let name = json!({ "display_name": "Phone" });
    phone.put(&path, name).await.ok();
    let third = inbox
        .edu("m.device_list_update", |edu| {
            edu["prev_id"] == json!([second["stream_id"]])
        })
        .await;
    assert_eq!(third["device_id"], phone.device_id.as_str());
    assert_eq!(third.get("device_display_name"), None, "names are private");
    phone.post("/v3/logout", json!({})).await.ok();
    let last = inbox
        .edu("m.device_list_update", |edu| edu["deleted"] == true)
        .await;
    assert_eq!(last["device_id"], phone.device_id.as_str());
    assert_eq!(last["prev_id"], json!([third["stream_id"]]));
}

#[tokio::test]
async fn names_of_devices_are_told_if_the_configuration_says_so() {
    let network = Network::new();
    let world = network
        .server_with("hs1", |config| config.federation.share_device_names = true)
        .await;
    let inbox = Inbox::new(&network, "hs2");
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    join_remote(&world, &room, "@bob:hs2").await;
    let path = format!("/v3/devices/{}", alice.device_id);
    let name = json!({ "display_name": "Phone" });
    alice.put(&path, name).await.ok();
    let told = inbox.edu("m.device_list_update", |_| true).await;
    assert_eq!(told["device_display_name"], "Phone");
}

#[tokio::test]
async fn a_server_that_shares_a_room_for_the_first_time_is_told_to_look_up_the_list() {
    let (network, world, alice, inbox, room) = shared().await;
    upload_keys(&alice).await;
    inbox.edu("m.device_list_update", |_| true).await;
    let third = Inbox::new(&network, "hs3");
    join_remote(&world, &room, "@carol:hs3").await;
    // Who comes asks for what they need: nothing has changed.
    alice.say(&room, "welcome").await;
    third.text("welcome").await;
    assert_eq!(edus(&third.arrived(), "m.device_list_update").len(), 0);
    world.log_in("alice").await;
    let told = third.edu("m.device_list_update", |_| true).await;
    assert_eq!(told["user_id"], "@alice:hs1");
    assert_eq!(told.get("prev_id"), None, "nothing came before");
    assert!(
        told["keys"].is_object(),
        "there is something to look up: {told}"
    );
    // A user who joins is told of.
    let dave = world.register("dave").await;
    upload_keys(&dave).await;
    dave.join(&room).await.ok();
    let told = third
        .edu("m.device_list_update", |edu| edu["user_id"] == "@dave:hs1")
        .await;
    assert_eq!(told.get("prev_id"), None);
}

#[tokio::test]
async fn a_server_that_missed_many_changes_is_told_to_look_up_the_list() {
    let (network, world, alice, inbox, room) = shared().await;
    upload_keys(&alice).await;
    inbox.edu("m.device_list_update", |_| true).await;
    network.cut("hs1", "hs2");
    for _ in 0..21 {
        world.log_in("alice").await;
    }
    alice.say(&room, "fails").await;
    let hs2 = ruma::ServerName::parse("hs2").unwrap();
    while !world.server().app.outgoing.heard(&hs2) {
        tokio::task::yield_now().await;
    }
    let before = edus(&inbox.arrived(), "m.device_list_update").len();
    network.heal("hs1", "hs2");
    network.pass_ms(60_000);
    alice.say(&room, "wakes the sender").await;
    let told = inbox
        .until("an update without a link", |arrived| {
            let all = edus(arrived, "m.device_list_update");
            let mut new = all.into_iter().skip(before);
            new.find(|edu| edu.get("prev_id").is_none())
        })
        .await;
    assert_eq!(told["user_id"], "@alice:hs1");
    let updates = edus(&inbox.arrived(), "m.device_list_update").len();
    assert!(updates - before < 21, "{updates} updates, {before} before");
}

#[tokio::test]
async fn cross_signing_keys_are_told_under_both_names_without_the_user_signing_key() {
    let (_, _, alice, inbox, _) = shared().await;
    upload_keys(&alice).await;
    let master = json!({
        "user_id": "@alice:hs1", "usage": ["master"],
        "keys": { "ed25519:bWFzdGVy": "bWFzdGVy" },
    });
    let body = json!({ "master_key": master });
    alice
        .post("/v3/keys/device_signing/upload", body)
        .await
        .ok();
    for kind in ["m.signing_key_update", "org.matrix.signing_key_update"] {
        let told = inbox.edu(kind, |_| true).await;
        assert_eq!(told["user_id"], "@alice:hs1");
        assert_eq!(told["master_key"]["keys"], master["keys"]);
        assert_eq!(told.get("user_signing_key"), None);
    }
}

// Device lists, incoming

/// What `hs2` says are the devices of bob, and who asked for them.
fn serve_devices(inbox: &Inbox, stream_id: u64, devices: &[&str]) {
    let list: Vec<Value> = devices
        .iter()
        .map(|device| {
            let keys = device_keys("@bob:hs2", device);
            json!({ "device_id": device, "keys": keys, "device_display_name": "Thing" })
        })
        .collect();
    let master = json!({
        "user_id": "@bob:hs2", "usage": ["master"], "keys": { "ed25519:Ym9i": "Ym9i" },
        "signatures": {
            "@bob:hs2": { "ed25519:DEV": "c2ln" },
            "@alice:hs1": { "ed25519:x": "c2ln" },
        },
    });
    let answer = json!({
        "user_id": "@bob:hs2", "stream_id": stream_id, "devices": list, "master_key": master,
    });
    let path = "/_matrix/federation/v1/user/devices/{user_id}";
    let handler = move || std::future::ready(Json(answer.clone()));
    inbox
        .stranger
        .serve(Router::new().route(path, get(handler)));
}

async fn query_bob(client: &Client) -> Value {
    let body = json!({ "device_keys": { "@bob:hs2": [] } });
    client.post("/v3/keys/query", body).await.ok()
}

fn devices_of_bob(answer: &Value) -> Vec<&str> {
    let devices = answer["device_keys"]["@bob:hs2"].as_object();
    devices
        .into_iter()
        .flat_map(|devices| devices.keys().map(String::as_str))
        .collect()
}

fn update(device: &str, stream_id: u64, prev: &[u64]) -> Value {
    json!({
        "user_id": "@bob:hs2", "device_id": device, "stream_id": stream_id, "prev_id": prev,
        "keys": device_keys("@bob:hs2", device),
    })
}

#[tokio::test]
async fn keys_of_a_user_who_shares_a_room_are_looked_up_once_and_then_remembered() {
    let (network, _, alice, inbox, _) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    for _ in 0..2 {
        let answer = query_bob(&alice).await;
        assert_eq!(devices_of_bob(&answer), ["DEV"]);
        let keys = &answer["device_keys"]["@bob:hs2"]["DEV"];
        assert_eq!(keys["unsigned"], json!({ "device_display_name": "Thing" }));
        let signatures = answer["master_keys"]["@bob:hs2"]["signatures"].as_object();
        let signers: Vec<&String> = signatures.unwrap().keys().collect();
        assert_eq!(signers, ["@bob:hs2"], "whom bob knows is nobody's business");
        assert_eq!(answer["failures"], json!({}));
    }
    assert_eq!(network.count("hs1", "hs2", "/user/devices/"), 1);
}

#[tokio::test]
async fn a_change_that_follows_is_applied_and_one_that_does_not_leads_to_one_lookup() {
    let (network, world, alice, inbox, _) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    query_bob(&alice).await;
    let since = alice.sync(None, "").await["next_batch"].clone();
    let since = since.as_str().unwrap();
    let kind = "m.device_list_update";
    tell(&world, "hs2", kind, update("NEW", 6, &[5])).await;
    let answer = alice.sync(Some(since), "").await;
    assert_eq!(answer["device_lists"]["changed"], json!(["@bob:hs2"]));
    assert_eq!(devices_of_bob(&query_bob(&alice).await), ["DEV", "NEW"]);
    let gone = json!({
        "user_id": "@bob:hs2", "device_id": "DEV", "stream_id": 7, "prev_id": [6], "deleted": true,
    });
    tell(&world, "hs2", kind, gone.clone()).await;
    tell(&world, "hs2", kind, gone).await;
    assert_eq!(devices_of_bob(&query_bob(&alice).await), ["NEW"]);
    assert_eq!(network.count("hs1", "hs2", "/user/devices/"), 1);
    // A hundred changes of which one is missing are one lookup, when somebody asks.
    serve_devices(&inbox, 200, &["LAST"]);
    for stream_id in 100..200 {
        let content = update("X", stream_id, &[stream_id - 1]);
        tell(&world, "hs2", kind, content).await;
    }
    assert_eq!(network.count("hs1", "hs2", "/user/devices/"), 1);
    assert_eq!(devices_of_bob(&query_bob(&alice).await), ["LAST"]);
    assert_eq!(network.count("hs1", "hs2", "/user/devices/"), 2);
}

#[tokio::test]
async fn device_lists_are_not_believed_of_another_server_or_of_who_shares_no_room() {
    let (_, world, alice, _, _) = shared().await;
    let since = alice.sync(None, "").await["next_batch"].clone();
    let since = since.as_str().unwrap();
    let kind = "m.device_list_update";
    tell(&world, "hs3", kind, update("NEW", 6, &[5])).await;
    let eve = json!({ "user_id": "@eve:hs2", "device_id": "D", "stream_id": 1 });
    tell(&world, "hs2", kind, eve).await;
    let answer = alice.sync(Some(since), "").await;
    assert_eq!(answer["device_lists"].get("changed"), None, "{answer}");
}

#[tokio::test]
async fn cross_signing_keys_of_another_servers_user_replace_those_that_are_known() {
    let (_, world, alice, inbox, _) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    query_bob(&alice).await;
    for (kind, name) in [
        ("m.signing_key_update", "bmV3"),
        ("org.matrix.signing_key_update", "bmV3ZXI"),
    ] {
        let keys = json!({ format!("ed25519:{name}"): name });
        let master = json!({ "user_id": "@bob:hs2", "usage": ["master"], "keys": keys });
        let content = json!({ "user_id": "@bob:hs2", "master_key": master });
        tell(&world, "hs2", kind, content).await;
        let answer = query_bob(&alice).await;
        assert_eq!(answer["master_keys"]["@bob:hs2"]["keys"], keys);
    }
}

/// Waits until no keys of bob's are remembered.
async fn until_forgotten(world: &World) {
    let app = &world.server().app;
    let bob = app.store.find_user("@bob:hs2".try_into().unwrap());
    let bob = bob.unwrap().unwrap();
    while homeserver::keys::remote::master_key(&app.store, bob)
        .unwrap()
        .is_some()
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_known_of_a_user_is_forgotten_when_nobody_of_this_server_is_left_in_the_room() {
    let (_network, world, alice, inbox, room) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    query_bob(&alice).await;
    let leave = format!("/v3/rooms/{}/leave", segment(&room));
    alice.post(&leave, json!({})).await.ok();
    until_forgotten(&world).await;
}

#[tokio::test]
async fn what_is_known_of_a_user_is_forgotten_with_the_last_shared_room() {
    let (network, world, alice, inbox, room) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    query_bob(&alice).await;
    move_remote(&world, &room, "@bob:hs2", To::Leave).await;
    until_forgotten(&world).await;
    // Who shares no room is asked for every time, together with others of the server.
    let path = "/_matrix/federation/v1/user/keys/query";
    let keys = json!({ "@bob:hs2": { "DEV": device_keys("@bob:hs2", "DEV") } });
    let answer = json!({ "device_keys": keys });
    inbox.stranger.answer(Method::POST, path, 200, answer);
    for _ in 0..2 {
        assert_eq!(devices_of_bob(&query_bob(&alice).await), ["DEV"]);
    }
    assert_eq!(network.count("hs1", "hs2", "/user/keys/query"), 2);
    assert_eq!(network.count("hs1", "hs2", "/user/devices/"), 1);
}

#[tokio::test]
async fn servers_that_do_not_answer_are_failures_and_cost_nobody_else() {
    let (_, world, alice, inbox, _) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    upload_keys(&alice).await;
    let body = json!({ "device_keys": {
        "@bob:hs2": [], "@alice:hs1": [], "@carol:gone": [],
    }});
    let answer = alice.post("/v3/keys/query", body).await.ok();
    assert_eq!(devices_of_bob(&answer), ["DEV"]);
    let own = &answer["device_keys"]["@alice:hs1"];
    assert!(own[&alice.device_id].is_object());
    let failures: Vec<&String> = answer["failures"].as_object().unwrap().keys().collect();
    assert_eq!(failures, ["gone"]);
    drop(world);
}

#[tokio::test]
async fn keys_of_another_device_or_user_are_not_passed_on() {
    let (_, _, alice, inbox, _) = shared().await;
    let path = "/_matrix/federation/v1/user/keys/query";
    let keys = json!({
        "@eve:hs2": {
            "GOOD": device_keys("@eve:hs2", "GOOD"),
            "BAD": device_keys("@eve:hs2", "OTHER"),
            "WORSE": device_keys("@alice:hs1", "WORSE"),
        },
        "@alice:hs1": { "X": device_keys("@alice:hs1", "X") },
    });
    let answer = json!({ "device_keys": keys });
    inbox.stranger.answer(Method::POST, path, 200, answer);
    let body = json!({ "device_keys": { "@eve:hs2": [] } });
    let answer = alice.post("/v3/keys/query", body).await.ok();
    let users = answer["device_keys"].as_object().unwrap();
    assert_eq!(users.len(), 1);
    let devices: Vec<&String> = users["@eve:hs2"].as_object().unwrap().keys().collect();
    assert_eq!(devices, ["GOOD"]);
}

#[tokio::test]
async fn one_time_keys_are_claimed_at_the_servers_of_their_users() {
    let (_, _, alice, inbox, _) = shared().await;
    let path = "/_matrix/federation/v1/user/keys/claim";
    let key = json!({ "signed_curve25519:AAAA": { "key": "a2V5" } });
    let keys = json!({ "one_time_keys": { "@bob:hs2": { "DEV": key, "OTHER": key } } });
    inbox.stranger.answer(Method::POST, path, 200, keys);
    let body = json!({ "one_time_keys": {
        "@bob:hs2": { "DEV": "signed_curve25519" },
        "@carol:gone": { "DEV": "signed_curve25519" },
    }});
    let answer = alice.post("/v3/keys/claim", body).await.ok();
    assert_eq!(
        answer["one_time_keys"],
        json!({ "@bob:hs2": { "DEV": key } })
    );
    let failures: Vec<&String> = answer["failures"].as_object().unwrap().keys().collect();
    assert_eq!(failures, ["gone"]);
}

#[tokio::test]
async fn a_user_may_sign_the_master_key_of_another_servers_user() {
    let (_, _, alice, inbox, _) = shared().await;
    serve_devices(&inbox, 5, &["DEV"]);
    let answer = query_bob(&alice).await;
    let master = &answer["master_keys"]["@bob:hs2"];
    assert_eq!(master["keys"], json!({ "ed25519:Ym9i": "Ym9i" }));
    let body = json!({ "@bob:hs2": { "Ym9i": master } });
    let reply = alice.post("/v3/keys/signatures/upload", body).await.ok();
    // The key is known; what is missing is alice's own key.
    let failure = &reply["failures"]["@bob:hs2"]["Ym9i"];
    assert_eq!(failure["error"], "you have no key to sign this with");
}

#[tokio::test]
async fn what_cannot_be_read_or_is_of_an_unknown_kind_is_passed_over() {
    let (_, world, alice, _, room) = shared().await;
    for (kind, content) in [
        ("m.typing", json!({ "room_id": 5 })),
        ("m.typing", Value::Null),
        ("m.receipt", json!([])),
        ("m.presence", json!({ "push": "x" })),
        ("m.direct_to_device", json!({})),
        ("m.device_list_update", json!({ "user_id": "bob" })),
        ("m.signing_key_update", json!({})),
        ("org.example.new", json!({ "a": 1 })),
    ] {
        tell(&world, "hs2", kind, content).await;
    }
    assert_eq!(typists(&alice, &room).await, [] as [&str; 0]);
}
