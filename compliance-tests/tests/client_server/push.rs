//! Pushers, and what gateways are told. The gateway listens on the loopback: it is the one called.

use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, routing::post};
use compliance_tests::{Client, World, segment};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long a gateway waits to be told before the test has failed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A gateway that answers as it is told to, and keeps what it gets.
struct Gateway {
    url: String,
    got: mpsc::UnboundedReceiver<Value>,
    answer: Arc<Mutex<(StatusCode, Value)>>,
}

type Desk = (
    mpsc::UnboundedSender<Value>,
    Arc<Mutex<(StatusCode, Value)>>,
);

async fn take(State((sender, answer)): State<Desk>, body: String) -> (StatusCode, String) {
    let body: Value = serde_json::from_str(&body).unwrap();
    sender.send(body["notification"].clone()).unwrap();
    let (status, answer) = answer.lock().unwrap().clone();
    (status, answer.to_string())
}

impl Gateway {
    async fn new() -> Self {
        let (sender, got) = mpsc::unbounded_channel();
        let answer = Arc::new(Mutex::new((StatusCode::OK, json!({ "rejected": [] }))));
        let router = Router::new()
            .route("/_matrix/push/v1/notify", post(take))
            .with_state((sender, answer.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "http://{}/_matrix/push/v1/notify",
            listener.local_addr().unwrap()
        );
        tokio::task::spawn_local(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, got, answer }
    }

    fn answers(&self, status: u16, body: Value) {
        *self.answer.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body);
    }

    async fn next(&mut self) -> Value {
        let next = tokio::time::timeout(PATIENCE, self.got.recv());
        next.await.expect("nothing is told").unwrap()
    }

    fn pusher(&self, pushkey: &str) -> Value {
        json!({
            "kind": "http",
            "app_id": "org.example.app",
            "pushkey": pushkey,
            "app_display_name": "App",
            "device_display_name": "Phone",
            "lang": "en",
            "data": { "url": self.url, "extra": "kept" },
        })
    }
}

/// Runs a test where its gateway can run, too.
async fn locally(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

async fn set(client: &Client, pusher: Value) {
    client.post("/v3/pushers/set", pusher).await.ok();
}

async fn pushers(client: &Client) -> Vec<Value> {
    let list = client.get("/v3/pushers").await.ok();
    list["pushers"].as_array().unwrap().clone()
}

async fn read(client: &Client, room: &str, event: &str) {
    let path = format!(
        "/v3/rooms/{}/receipt/m.read/{}",
        segment(room),
        segment(event)
    );
    client.post(&path, json!({})).await.ok();
}

#[tokio::test]
async fn a_gateway_is_told_of_an_event_in_full() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        set(&bob, gateway.pusher("key")).await;
        let body = json!({ "preset": "public_chat", "name": "Room" });
        let room = alice.create_room(body).await;
        bob.join(&room).await.ok();
        let event = alice.say(&room, "hello bob").await;
        let told = gateway.next().await;
        assert_eq!(told["event_id"], json!(event));
        assert_eq!(told["room_id"], json!(room));
        assert_eq!(told["type"], "m.room.message");
        assert_eq!(told["sender"], "@alice:hs1");
        assert_eq!(told["room_name"], "Room");
        assert_eq!(told["content"]["body"], "hello bob");
        assert_eq!(told["prio"], "high");
        assert_eq!(told["counts"], json!({ "unread": 1 }));
        let device = &told["devices"][0];
        assert_eq!(device["app_id"], "org.example.app");
        assert_eq!(device["pushkey"], "key");
        assert_eq!(device["data"], json!({ "extra": "kept" }));
        assert_eq!(
            device["tweaks"],
            json!({ "sound": "default", "highlight": true })
        );
        // Nobody is told of what they say themselves: the next is alice's again.
        bob.say(&room, "hello alice").await;
        // What bob said reads what was there.
        assert_eq!(gateway.next().await["counts"], json!({ "unread": 0 }));
        let call = json!({ "call_id": "1", "lifetime": 1, "version": "1" });
        alice.send(&room, "m.call.invite", call).await.ok();
        let told = gateway.next().await;
        assert_eq!(told["counts"], json!({ "unread": 1, "missed_calls": 1 }));
        assert_eq!(told["devices"][0]["tweaks"], json!({ "sound": "ring" }));
    }))
    .await;
}

#[tokio::test]
async fn a_gateway_that_wants_only_ids_gets_only_ids_and_reading_updates_the_count() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        let mut pusher = gateway.pusher("key");
        pusher["data"]["format"] = "event_id_only".into();
        set(&bob, pusher).await;
        let room = alice.public_room().await;
        bob.join(&room).await.ok();
        let first = alice.say(&room, "one").await;
        let told = gateway.next().await;
        let keys: Vec<&String> = told.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["counts", "devices", "event_id", "prio", "room_id"]);
        assert_eq!(told["devices"][0]["data"]["format"], "event_id_only");
        let second = alice.say(&room, "two").await;
        assert_eq!(gateway.next().await["counts"]["unread"], 2);
        read(&bob, &room, &first).await;
        let told = gateway.next().await;
        assert_eq!(told["event_id"], Value::Null);
        assert_eq!(told["counts"], json!({ "unread": 1 }));
        read(&bob, &room, &second).await;
        assert_eq!(gateway.next().await["counts"], json!({ "unread": 0 }));
    }))
    .await;
}

#[tokio::test]
async fn an_invite_is_pushed_and_a_muted_room_is_not() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        set(&bob, gateway.pusher("key")).await;
        let room = alice.create_room(json!({ "preset": "private_chat" })).await;
        alice.invite(&room, &bob.user_id).await.ok();
        let told = gateway.next().await;
        assert_eq!(told["type"], "m.room.member");
        assert_eq!(told["user_is_target"], true);
        assert_eq!(told["content"]["membership"], "invite");
        assert_eq!(told["counts"], json!({ "unread": 0 }));
        bob.join(&room).await.ok();
        let other = alice.public_room().await;
        bob.join(&other).await.ok();
        let rule = format!("/v3/pushrules/global/override/{}", segment(&room));
        let condition = json!({ "kind": "event_match", "key": "room_id", "pattern": room });
        let mute = json!({ "conditions": [condition], "actions": [] });
        bob.put(&rule, mute).await.ok();
        alice.say(&room, "nobody hears this").await;
        let heard = alice.say(&other, "but this").await;
        assert_eq!(gateway.next().await["event_id"], json!(heard));
    }))
    .await;
}

#[tokio::test] // MSC4155
async fn an_ignored_invite_is_not_pushed() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        let carol = world.register("carol").await;
        set(&bob, gateway.pusher("key")).await;
        let kind = "org.matrix.msc4155.invite_permission_config";
        let path = format!("/v3/user/{}/account_data/{kind}", segment(&bob.user_id));
        let ignoring = json!({ "ignored_users": [&*alice.user_id] });
        bob.put(&path, ignoring).await.ok();
        let ignored = alice.create_room(json!({})).await;
        alice.invite(&ignored, &bob.user_id).await.ok();
        let room = carol.create_room(json!({})).await;
        carol.invite(&room, &bob.user_id).await.ok();
        assert_eq!(gateway.next().await["room_id"], json!(room));
    }))
    .await;
}

#[tokio::test]
async fn a_gateway_that_fails_is_asked_again_and_what_was_read_meanwhile_is_not_told() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        set(&bob, gateway.pusher("key")).await;
        let room = alice.public_room().await;
        bob.join(&room).await.ok();
        gateway.answers(500, json!({}));
        let first = alice.say(&room, "one").await;
        assert_eq!(gateway.next().await["event_id"], json!(first));
        read(&bob, &room, &first).await;
        let second = alice.say(&room, "two").await;
        gateway.answers(200, json!({}));
        // The first was read; after the wait, the second is told.
        let told = gateway.next().await;
        assert_eq!(told["event_id"], json!(second));
        assert_eq!(told["counts"], json!({ "unread": 1 }));
    }))
    .await;
}

#[tokio::test]
async fn a_rejected_push_key_is_deleted_and_a_disabled_pusher_is_told_nothing() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::new().await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        let mut off = gateway.pusher("off");
        off["org.matrix.msc3881.enabled"] = false.into();
        set(&bob, off).await;
        set(&bob, gateway.pusher("rejected")).await;
        let room = alice.public_room().await;
        bob.join(&room).await.ok();
        gateway.answers(200, json!({ "rejected": ["rejected"] }));
        alice.say(&room, "one").await;
        assert_eq!(gateway.next().await["devices"][0]["pushkey"], "rejected");
        for _ in 0..1_000 {
            if pushers(&bob).await.len() == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let left = pushers(&bob).await;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0]["pushkey"], "off");
        assert_eq!(left[0]["org.matrix.msc3881.enabled"], false);
        assert_eq!(
            left[0]["org.matrix.msc3881.device_id"],
            json!(bob.device_id)
        );
        set(&bob, gateway.pusher("off")).await;
        let second = alice.say(&room, "two").await;
        let told = gateway.next().await;
        assert_eq!(told["devices"][0]["pushkey"], "off");
        assert_eq!(told["event_id"], json!(second));
    }))
    .await;
}

#[tokio::test]
async fn a_pusher_is_listed_as_it_was_set_and_replaced_or_deleted_by_its_key() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let pusher = |name: &str| {
        json!({
            "kind": "http",
            "app_id": "app",
            "pushkey": "key",
            "app_display_name": name,
            "device_display_name": "Phone",
            "profile_tag": "tag",
            "lang": "en",
            "data": { "url": "https://example.org/_matrix/push/v1/notify" },
        })
    };
    set(&alice, pusher("One")).await;
    set(&alice, pusher("Two")).await;
    let mut expected = pusher("Two");
    expected["org.matrix.msc3881.enabled"] = true.into();
    expected["org.matrix.msc3881.device_id"] = json!(alice.device_id);
    assert_eq!(pushers(&alice).await, [expected]);
    let mut appended = pusher("Bob's");
    appended["append"] = true.into();
    set(&bob, appended).await;
    assert_eq!(pushers(&alice).await.len(), 1);
    // The device changes hands.
    set(&bob, pusher("Bob's")).await;
    assert_eq!(pushers(&alice).await.len(), 0);
    set(
        &bob,
        json!({ "kind": null, "app_id": "app", "pushkey": "other" }),
    )
    .await;
    assert_eq!(pushers(&bob).await.len(), 1);
    set(
        &bob,
        json!({ "kind": null, "app_id": "app", "pushkey": "key" }),
    )
    .await;
    assert_eq!(pushers(&bob).await.len(), 0);
}

#[tokio::test]
async fn a_pusher_that_cannot_be_is_refused() {
    let world = World::with(|config| config.testing.allow_private_addresses = false).await;
    let bob = world.register("bob").await;
    let good = json!({
        "kind": "http",
        "app_id": "a".repeat(64),
        "pushkey": "k".repeat(512),
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "en",
        "data": { "url": "https://example.org/_matrix/push/v1/notify" },
    });
    for key in [
        "kind",
        "app_id",
        "pushkey",
        "app_display_name",
        "device_display_name",
        "lang",
        "data",
    ] {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(key);
        let reply = bob.post("/v3/pushers/set", bad).await;
        assert_eq!(reply.error(), (400, "M_MISSING_PARAM".to_owned()), "{key}");
    }
    let cases = [
        ("kind", json!("email")),
        ("app_id", json!("a".repeat(65))),
        ("pushkey", json!("k".repeat(513))),
        ("lang", json!("l".repeat(513))),
        (
            "data",
            json!({ "url": "http://example.org/_matrix/push/v1/notify" }),
        ),
        ("data", json!({ "url": "https://example.org/notify" })),
        (
            "data",
            json!({ "url": "https://10.0.0.1/_matrix/push/v1/notify" }),
        ),
        (
            "data",
            json!({ "url": "https://localhost:22/_matrix/push/v1/notify" }),
        ),
        ("data", json!({ "url": 7 })),
        (
            "data",
            json!({ "url": "https://example.org/_matrix/push/v1/notify", "x": "x".repeat(8_192) }),
        ),
    ];
    for (key, value) in cases {
        let mut bad = good.clone();
        bad[key] = value.clone();
        let reply = bob.post("/v3/pushers/set", bad).await;
        assert_eq!(
            reply.error(),
            (400, "M_INVALID_PARAM".to_owned()),
            "{key}: {value}"
        );
    }
    bob.post("/v3/pushers/set", json!({ "kind": "http", "app_id": 7 }))
        .await
        .fails(400, "M_BAD_JSON");
    set(&bob, good.clone()).await;
    for number in 1..50 {
        let mut more = good.clone();
        more["pushkey"] = json!(number.to_string());
        set(&bob, more).await;
    }
    let mut more = good.clone();
    more["pushkey"] = json!("one too many");
    bob.post("/v3/pushers/set", more)
        .await
        .fails(400, "M_UNKNOWN");
    set(&bob, good).await;
}

#[tokio::test]
async fn a_pusher_ends_with_the_session_that_set_it() {
    let world = World::new().await;
    let bob = world.register("bob").await;
    let (second, third) = (world.log_in("bob").await, world.log_in("bob").await);
    let pusher = |key: &str| {
        json!({
            "kind": "http",
            "app_id": "app",
            "pushkey": key,
            "app_display_name": "App",
            "device_display_name": "Phone",
            "lang": "en",
            "data": { "url": "https://example.org/_matrix/push/v1/notify" },
        })
    };
    set(&bob, pusher("first")).await;
    set(&second, pusher("second")).await;
    set(&third, pusher("third")).await;
    second.post("/v3/logout", json!({})).await.ok();
    assert_eq!(pushers(&bob).await.len(), 2);
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "bob" },
        "password": "password-of-bob",
    });
    let body = json!({ "new_password": "another-Password-7", "auth": auth });
    bob.post("/v3/account/password", body).await.ok();
    let left = pushers(&bob).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["pushkey"], "first");
}

#[tokio::test]
async fn a_restart_tells_what_was_not_told_before() {
    locally(Box::pin(async {
        let (world, mut gateway) = (World::on_disk(|_| {}).await, Gateway::new().await);
        let (alice, bob) = (world.register("alice").await, world.register("bob").await);
        set(&bob, gateway.pusher("key")).await;
        let room = alice.public_room().await;
        bob.join(&room).await.ok();
        let first = alice.say(&room, "one").await;
        assert_eq!(gateway.next().await["event_id"], json!(first));
        gateway.answers(500, json!({}));
        let second = alice.say(&room, "two").await;
        assert_eq!(gateway.next().await["event_id"], json!(second));
        // A client holds its server.
        drop((alice, bob));
        let world = world.restart(|_| {}).await;
        let (alice, bob) = (world.log_in("alice").await, world.log_in("bob").await);
        gateway.answers(200, json!({}));
        assert_eq!(pushers(&bob).await.len(), 1);
        loop {
            let told = gateway.next().await;
            if told["event_id"] == json!(second) {
                break;
            }
            // What was sent in the second before may come again.
            assert_eq!(told["event_id"], json!(first));
        }
        let third = alice.say(&room, "three").await;
        assert_eq!(gateway.next().await["event_id"], json!(third));
    }))
    .await;
}
