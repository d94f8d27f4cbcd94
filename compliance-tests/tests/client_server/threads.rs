//! MSC4306 and MSC4308, thread subscriptions.

use compliance_tests::{Client, World, segment};
use serde_json::{Value, json};

const NOT_IN_THREAD: &str = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
const CONFLICT: &str = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";
const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";
const CHANGES: &str = "/unstable/io.element.msc4308/thread_subscriptions";

fn path(room: &str, root: &str) -> String {
    format!(
        "/unstable/io.element.msc4306/rooms/{}/thread/{}/subscription",
        segment(room),
        segment(root)
    )
}

async fn answer_in(client: &Client, room: &str, root: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "answer", "m.relates_to": relation });
    let reply = client.send(room, "m.room.message", content).await.ok();
    reply["event_id"].as_str().unwrap().to_owned()
}

async fn subscribe(client: &Client, room: &str, root: &str) {
    client.put(&path(room, root), json!({})).await.ok();
}

async fn unsubscribe(client: &Client, room: &str, root: &str) {
    client.delete(&path(room, root)).await.ok();
}

/// Sliding sync with the extension alone: the next `pos`, and what the extension tells.
async fn slide(client: &Client, pos: Option<&str>, timeout_ms: u64, limit: u64) -> (String, Value) {
    let body = json!({ "pos": pos, "timeout": timeout_ms, "extensions": {
        EXTENSION: { "enabled": true, "limit": limit },
    } });
    let path = "/unstable/org.matrix.simplified_msc3575/sync";
    let mut answer = client.post(path, body).await.ok();
    let pos = answer["pos"].as_str().unwrap().to_owned();
    (pos, answer["extensions"][EXTENSION].take())
}

/// The threads of a room that a part of an answer names, in the order in which they changed.
fn threads(part: &Value, room: &str) -> Vec<String> {
    let of_room = part[room].as_object().cloned().unwrap_or_default();
    let mut threads: Vec<(u64, String)> = of_room
        .into_iter()
        .map(|(root, told)| (told["bump_stamp"].as_u64().unwrap(), root))
        .collect();
    threads.sort();
    threads.into_iter().map(|(_, root)| root).collect()
}

#[tokio::test] // `/versions`
async fn the_flags_that_clients_look_for_are_there() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let versions = alice.get("/versions").await.ok();
    assert_eq!(versions["unstable_features"]["org.matrix.msc4306"], true);
    assert_eq!(versions["unstable_features"]["org.matrix.msc4308"], true);
}

#[tokio::test] // MSC4306, the three endpoints
async fn a_user_subscribes_to_a_thread_and_unsubscribes_for_themselves_alone() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "root").await;
    let path = path(&room, &root);
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    alice.delete(&path).await.ok();
    alice.put(&path, json!({})).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": false }));
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    alice.delete(&path).await.ok();
    alice.delete(&path).await.ok();
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    alice.put(&path, json!({})).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": false }));
}

#[tokio::test] // MSC4306: a manual subscription counts for more than an automatic one
async fn a_client_subscribes_of_itself_until_the_user_does() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let cause = json!({ "automatic": answer_in(&alice, &room, &root).await });
    let path = path(&room, &root);
    alice.put(&path, cause.clone()).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": true }));
    alice.put(&path, json!({})).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": false }));
    alice.put(&path, cause).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": false }));
}

#[tokio::test] // MSC4306, `IO.ELEMENT.MSC4306.M_NOT_IN_THREAD`
async fn only_an_event_in_the_thread_is_a_reason_to_subscribe() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let other = alice.say(&room, "other").await;
    let elsewhere = answer_in(&alice, &room, &other).await;
    let path = path(&room, &root);
    for cause in [&root, &other, &elsewhere] {
        let body = json!({ "automatic": cause });
        alice.put(&path, body).await.fails(400, NOT_IN_THREAD);
    }
    let hidden = bob.create_room(json!({})).await;
    let hidden = bob.say(&hidden, "hidden").await;
    let body = json!({ "automatic": hidden });
    alice.put(&path, body).await.fails(404, "M_NOT_FOUND");
    for body in [json!({ "automatic": true }), json!({ "automatic": "no" })] {
        alice.put(&path, body).await.fails(400, "M_BAD_JSON");
    }
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // MSC4306, `IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION`
async fn a_client_subscribes_again_only_for_what_was_said_after_its_user_unsubscribed() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let path = path(&room, &root);
    let first = json!({ "automatic": answer_in(&alice, &room, &root).await });
    alice.put(&path, first.clone()).await.ok();
    let second = json!({ "automatic": answer_in(&alice, &room, &root).await });
    unsubscribe(&alice, &room, &root).await;
    let third = json!({ "automatic": answer_in(&alice, &room, &root).await });
    // Unsubscribing once more is no new decision.
    unsubscribe(&alice, &room, &root).await;
    alice.put(&path, first).await.fails(409, CONFLICT);
    alice.put(&path, second).await.fails(409, CONFLICT);
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    alice.put(&path, third).await.ok();
    assert_eq!(alice.get(&path).await.ok(), json!({ "automatic": true }));
}

#[tokio::test] // MSC4306: 404 where the user cannot see the thread
async fn what_a_user_cannot_see_they_cannot_subscribe_to() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let root = alice.say(&room, "root").await;
    let theirs = bob.create_room(json!({})).await;
    for path in [
        path(&room, &root),
        path(&theirs, &root),
        path(&theirs, "$none:example.org"),
        path("!none:example.org", &root),
    ] {
        bob.put(&path, json!({})).await.fails(404, "M_NOT_FOUND");
        bob.get(&path).await.fails(404, "M_NOT_FOUND");
        bob.delete(&path).await.fails(404, "M_NOT_FOUND");
    }
    for path in [path(&theirs, "root"), path("room", &root)] {
        bob.get(&path).await.fails(400, "M_INVALID_PARAM");
    }
    assert_eq!(bob.get(&format!("{CHANGES}?dir=b")).await.ok(), json!({}));
}

#[tokio::test] // MSC4308, the extension
async fn sliding_sync_tells_subscriptions_once_and_then_what_changed() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "root").await;
    let (pos, told) = slide(&alice, None, 0, 10).await;
    assert_eq!(told, Value::Null);

    subscribe(&alice, &room, &root).await;
    let (pos, told) = slide(&alice, Some(&pos), 0, 10).await;
    let stamp = told["subscribed"][&room][&root]["bump_stamp"].as_u64();
    let stamp = stamp.unwrap();
    let subscribed = json!({ &room: { &root: { "automatic": false, "bump_stamp": stamp } } });
    assert_eq!(told, json!({ "subscribed": subscribed }));
    let (_, told) = slide(&bob, None, 0, 10).await;
    assert_eq!(told, Value::Null);
    let (pos, told) = slide(&alice, Some(&pos), 0, 10).await;
    assert_eq!(told, Value::Null);

    unsubscribe(&alice, &room, &root).await;
    let (pos, told) = slide(&alice, Some(&pos), 0, 10).await;
    let later = told["unsubscribed"][&room][&root]["bump_stamp"].as_u64();
    assert!(later.unwrap() > stamp);
    assert_eq!(told["subscribed"], Value::Null);
    let (_, told) = slide(&alice, Some(&pos), 0, 10).await;
    assert_eq!(told, Value::Null);

    // A connection that begins anew is told all of it.
    subscribe(&alice, &room, &root).await;
    let (_, told) = slide(&alice, None, 0, 10).await;
    assert_eq!(threads(&told["subscribed"], &room), [root]);
    assert_eq!(told["unsubscribed"], Value::Null);
}

#[tokio::test] // MSC4308
async fn a_subscription_wakes_the_users_other_devices() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    let phone = world.log_in("alice").await;
    let (pos, _) = slide(&phone, None, 0, 10).await;
    // What happened so far is to wake nobody any more.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let ((_, told), ()) = tokio::join!(
        biased;
        slide(&phone, Some(&pos), 20_000, 10),
        subscribe(&alice, &room, &root)
    );
    assert_eq!(told["subscribed"][&room][&root]["automatic"], false);
}

#[tokio::test] // MSC4308, `prev_batch` and the companion endpoint
async fn what_one_answer_cannot_hold_is_paged_back_to() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let mut roots = Vec::new();
    for _ in 0..6 {
        roots.push(alice.say(&room, "root").await);
    }
    subscribe(&alice, &room, &roots[0]).await;
    let (pos, told) = slide(&alice, None, 0, 2).await;
    assert_eq!(told["prev_batch"], Value::Null);
    for root in &roots[1..] {
        subscribe(&alice, &room, root).await;
    }
    // A thread that changed again is told once, where it changed last.
    unsubscribe(&alice, &room, &roots[1]).await;
    let (_, told) = slide(&alice, Some(&pos), 0, 2).await;
    assert_eq!(threads(&told["subscribed"], &room), roots[5..]);
    assert_eq!(threads(&told["unsubscribed"], &room), roots[1..2]);
    let from = told["prev_batch"].as_str().unwrap();

    let query = format!("dir=b&limit=2&to={}", segment(&pos));
    let page = |from: &str| format!("{CHANGES}?{query}&from={}", segment(from));
    let told = alice.get(&page(from)).await.ok();
    assert_eq!(threads(&told["subscribed"], &room), roots[3..5]);
    let told = alice.get(&page(told["end"].as_str().unwrap())).await.ok();
    assert_eq!(threads(&told["subscribed"], &room), roots[2..3]);
    assert_eq!(told["end"], Value::Null);

    let all = alice.get(&format!("{CHANGES}?dir=b")).await.ok();
    let subscribed = threads(&all["subscribed"], &room);
    assert_eq!(subscribed.len(), 5);
    assert_eq!(subscribed[0], roots[0]);
    assert_eq!(all["end"], Value::Null);
}

#[tokio::test] // MSC4308
async fn paging_wants_a_direction_a_limit_and_tokens_of_this_server() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    alice.get(CHANGES).await.fails(400, "M_MISSING_PARAM");
    for query in ["dir=f", "dir=b&limit=0", "dir=b&limit=x", "dir=b&from=x"] {
        let path = format!("{CHANGES}?{query}");
        alice.get(&path).await.fails(400, "M_INVALID_PARAM");
    }
    let body = json!({ "extensions": { EXTENSION: { "enabled": true, "limit": 0 } } });
    let path = "/unstable/org.matrix.simplified_msc3575/sync";
    alice.post(path, body).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // MSC4306: subscriptions are kept
async fn subscriptions_outlive_the_process() {
    let world = World::on_disk(|_| {}).await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let root = alice.say(&room, "root").await;
    subscribe(&alice, &room, &root).await;
    // A client holds on to the server that it speaks to.
    drop(alice);
    let world = world.restart(|_| {}).await;
    let alice = world.log_in("alice").await;
    let reply = alice.get(&path(&room, &root)).await.ok();
    assert_eq!(reply, json!({ "automatic": false }));
}
