//! Client-server API, "Room previews", "Guest Access"; filters and points of time where a room is read.

use compliance_tests::{Client, World, event_ids, segment};
use http::Method;
use serde_json::{Value, json};

async fn open_to_the_world(client: &Client, room: &str) {
    let content = json!({ "history_visibility": "world_readable" });
    let set = client.set_state(room, "m.room.history_visibility", "", content);
    set.await.ok();
}

#[tokio::test]
async fn a_world_readable_room_is_read_by_those_who_are_not_in_it() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let hidden = alice.say(&room, "hidden").await;
    let base = format!("/v3/rooms/{}", segment(&room));
    for path in ["initialSync", "messages?dir=b", "state", "members"] {
        bob.get(&format!("{base}/{path}"))
            .await
            .fails(403, "M_FORBIDDEN");
    }
    bob.get(&format!("/v3/events?room_id={room}"))
        .await
        .fails(403, "M_FORBIDDEN");
    open_to_the_world(&alice, &room).await;
    let said = alice.say(&room, "hello world").await;
    let first = bob.get(&format!("{base}/initialSync?limit=2")).await.ok();
    assert_eq!(event_ids(&first["messages"]["chunk"]).last(), Some(&said));
    assert!(!event_ids(&first["messages"]["chunk"]).contains(&hidden));
    assert_eq!(first["visibility"], "private");
    assert_eq!(first["membership"], Value::Null);
    let state = first["state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    for path in ["messages?dir=b", "state", "members"] {
        bob.get(&format!("{base}/{path}")).await.ok();
    }
    bob.get(&format!("{base}/event/{}", segment(&said)))
        .await
        .ok();
    bob.get(&format!("{base}/event/{}", segment(&hidden)))
        .await
        .fails(404, "M_NOT_FOUND");
    bob.get(&format!("{base}/joined_members"))
        .await
        .fails(403, "M_FORBIDDEN");
    let own = alice.get(&format!("{base}/initialSync")).await.ok();
    assert_eq!(own["membership"], "join");
}

#[tokio::test] // "Guest Access"
async fn a_guest_peeks() {
    let world = World::with(|config| config.registration.guests = true).await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    open_to_the_world(&alice, &room).await;
    let said = alice.say(&room, "welcome").await;
    let path = "/_matrix/client/v3/register?kind=guest";
    let guest = world
        .request(Method::POST, path, None, Some(&json!({})))
        .await
        .ok();
    let path = format!("/_matrix/client/v3/rooms/{}/initialSync", segment(&room));
    let token = guest["access_token"].as_str();
    let peek = world.request(Method::GET, &path, token, None).await.ok();
    assert_eq!(event_ids(&peek["messages"]["chunk"]).last(), Some(&said));
}

#[tokio::test] // "GET /events" with `room_id`
async fn what_is_said_next_reaches_who_looks() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    open_to_the_world(&alice, &room).await;
    let path = format!("/v3/events?room_id={}", segment(&room));
    let now = bob.get(&path).await.ok();
    assert_eq!(now["chunk"], json!([]));
    let path = format!("{path}&timeout=30000&from={}", now["end"].as_str().unwrap());
    let (news, said) = tokio::join!(bob.get(&path), alice.say(&room, "news"));
    let news = news.ok();
    assert_eq!(event_ids(&news["chunk"]), std::slice::from_ref(&said));
    assert_eq!(news["chunk"][0]["room_id"], *room);
    assert_ne!(news["end"], now["end"]);
    bob.get("/v3/events").await.fails(400, "M_MISSING_PARAM");
    let bad = format!("/v3/events?room_id={}&from=nonsense", segment(&room));
    bob.get(&bad).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "GET /rooms/{roomId}/members", `at`
async fn who_joined_later_does_not_see_who_was_there_in_a_room_with_joined_history() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let path = format!("/v3/rooms/{}/members", segment(&room));
    let shared = alice.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    let content = json!({ "history_visibility": "joined" });
    alice
        .set_state(&room, "m.room.history_visibility", "", content)
        .await
        .ok();
    alice.say(&room, "among us").await;
    let early = alice.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.join(&room).await.ok();
    let late = bob.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.get(&format!("{path}?at={early}"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&format!("{path}?at={late}")).await.ok();
    bob.get(&format!("{path}?at={shared}")).await.ok();
    alice.get(&format!("{path}?at={early}")).await.ok();
}

#[tokio::test] // `related_by_rel_types`, `related_by_senders`; MSC3874
async fn messages_are_filtered_by_what_relates_to_them_and_by_how_they_relate() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "root").await;
    let other = alice.say(&room, "other").await;
    let relate = |rel_type: &str, target: &str| {
        json!({
            "msgtype": "m.text",
            "body": "related",
            "m.relates_to": { "rel_type": rel_type, "event_id": target, "key": "x" },
        })
    };
    let reply = bob
        .send(&room, "m.room.message", relate("m.thread", &root))
        .await
        .ok();
    alice
        .send(&room, "m.reaction", relate("m.annotation", &other))
        .await
        .ok();
    let found = |filter: Value| {
        let (alice, room) = (&alice, &room);
        async move {
            let query = format!("filter={}", segment(&filter.to_string()));
            event_ids(&alice.messages(room, &query).await["chunk"])
        }
    };
    let messages = "m.room.message";
    assert_eq!(
        found(json!({ "related_by_rel_types": ["m.thread"] })).await,
        std::slice::from_ref(&root)
    );
    assert_eq!(
        found(json!({ "related_by_senders": [alice.user_id] })).await,
        std::slice::from_ref(&other)
    );
    let both =
        json!({ "related_by_senders": [alice.user_id], "related_by_rel_types": ["m.thread"] });
    assert_eq!(found(both).await, Vec::<String>::new());
    let replies = json!({ "org.matrix.msc3874.rel_types": ["m.thread"] });
    assert_eq!(found(replies).await, [reply["event_id"].as_str().unwrap()]);
    let roots = json!({ "types": [messages], "org.matrix.msc3874.not_rel_types": ["m.thread"] });
    assert_eq!(found(roots).await, [other, root]);
}
