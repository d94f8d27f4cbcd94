//! MSC4140, delayed events.

use compliance_tests::{Client, World, segment};
use http::Method;
use serde_json::{Value, json};

const BASE: &str = "/unstable/org.matrix.msc4140/delayed_events";

async fn schedule_state(client: &Client, room: &str, key: &str, delay_ms: u64) -> String {
    let path = format!(
        "/v3/rooms/{}/state/org.example/{key}?org.matrix.msc4140.delay={delay_ms}",
        segment(room)
    );
    let reply = client.put(&path, json!({ "set": "later" })).await.ok();
    reply["delay_id"].as_str().unwrap().to_owned()
}

async fn waiting(client: &Client) -> Vec<Value> {
    client.get(BASE).await.ok()["delayed_events"]
        .as_array()
        .unwrap()
        .clone()
}

/// Waits until a condition holds; the task that sends works beside the test.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..1_000 {
        if holds().await {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it did not come about");
}

#[tokio::test]
async fn an_event_is_sent_when_its_time_comes_and_not_before() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    schedule_state(&alice, &room, "key", 1_000).await;
    let listed = waiting(&alice).await;
    assert_eq!(listed[0]["content"], json!({ "set": "later" }));
    assert_eq!(listed[0]["state_key"], "key");
    assert_eq!(waiting(&bob).await, Vec::<Value>::new());
    alice
        .state(&room, "org.example", "key")
        .await
        .fails(404, "M_NOT_FOUND");
    world.pass_ms(1_000);
    // Scheduling another wakes the sender, as its timer does on a real clock.
    schedule_state(&alice, &room, "other", 5_000).await;
    until(async || waiting(&alice).await.len() == 1).await;
    assert_eq!(
        alice.state(&room, "org.example", "key").await.ok(),
        json!({ "set": "later" })
    );
}

#[tokio::test]
async fn whoever_has_the_id_may_send_restart_or_cancel_without_a_login() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let act = async |id: &str, action: &str| {
        world
            .request(
                Method::POST,
                &format!("/_matrix/client{BASE}/{id}/{action}"),
                None,
                Some(&json!({})),
            )
            .await
    };
    let sent = schedule_state(&alice, &room, "sent", 1_000).await;
    let cancelled = schedule_state(&alice, &room, "cancelled", 1_000).await;
    act(&sent, "send").await.ok();
    act(&cancelled, "cancel").await.ok();
    alice.state(&room, "org.example", "sent").await.ok();
    alice
        .state(&room, "org.example", "cancelled")
        .await
        .fails(404, "M_NOT_FOUND");
    act(&cancelled, "send").await.fails(404, "M_NOT_FOUND");
    let restarted = schedule_state(&alice, &room, "restarted", 1_000).await;
    act(&restarted, "dance").await.fails(404, "M_NOT_FOUND");
    world.pass_ms(900);
    act(&restarted, "restart").await.ok();
    world.pass_ms(900);
    schedule_state(&alice, &room, "other", 5_000).await;
    tokio::task::yield_now().await;
    alice
        .state(&room, "org.example", "restarted")
        .await
        .fails(404, "M_NOT_FOUND");
    let body = json!({ "action": "send" });
    world
        .request(
            Method::POST,
            &format!("/_matrix/client{BASE}/{restarted}"),
            None,
            Some(&body),
        )
        .await
        .ok();
    alice.state(&room, "org.example", "restarted").await.ok();
}

#[tokio::test]
async fn a_repeated_transaction_schedules_once_even_without_its_body() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let path = format!(
        "/v3/rooms/{}/send/m.room.message/txn?org.matrix.msc4140.delay=1000",
        segment(&room)
    );
    let first = alice
        .put(&path, json!({ "msgtype": "m.text", "body": "later" }))
        .await
        .ok();
    let again = alice.call(Method::PUT, &path, None).await.ok();
    assert_eq!(first, again);
    assert_eq!(waiting(&alice).await.len(), 1);
}

#[tokio::test]
async fn a_state_that_another_user_sets_cancels_what_waits_to_set_it() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let levels = json!({ "events": { "org.example": 0 } });
    let room = alice
        .create_room(json!({ "preset": "public_chat", "power_level_content_override": levels }))
        .await;
    bob.join(&room).await.ok();
    schedule_state(&alice, &room, "key", 1_000).await;
    alice
        .set_state(&room, "org.example", "key", json!({ "set": "by alice" }))
        .await
        .ok();
    tokio::task::yield_now().await;
    assert_eq!(
        waiting(&alice).await.len(),
        1,
        "one's own doing cancels nothing"
    );
    bob.set_state(&room, "org.example", "key", json!({ "set": "by bob" }))
        .await
        .ok();
    until(async || waiting(&alice).await.is_empty()).await;
}

#[tokio::test]
async fn delays_and_their_number_are_limited() {
    let world = World::with(|config| {
        config.delayed_events.delay_seconds_max = 10;
        config.delayed_events.per_user_max = 1;
    })
    .await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let path = |delay: &str| {
        format!(
            "/v3/rooms/{}/state/org.example/k?org.matrix.msc4140.delay={delay}",
            segment(&room)
        )
    };
    let reply = alice.put(&path("10001"), json!({})).await;
    assert_eq!(
        reply.json()["org.matrix.msc4140.errcode"],
        "M_MAX_DELAY_EXCEEDED"
    );
    assert_eq!(reply.json()["org.matrix.msc4140.max_delay"], 10_000);
    alice
        .put(&path("soon"), json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    bob.put(&path("1000"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    alice.put(&path("10000"), json!({})).await.ok();
    assert_eq!(alice.put(&path("10000"), json!({})).await.status, 400);
}
