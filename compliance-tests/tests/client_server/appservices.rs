//! Application services: what they may do, what they are told, what they are asked.
//!
//! The service is a listener on the loopback address whose answers the test gives.

use std::time::Duration;

use axum::{Router, body::Body, extract::Request, response::Response};
use compliance_tests::{Client, Reply, World, segment};
use homeserver::config::Config;
use http::{Method, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request that the service got and has not answered.
#[derive(Debug)]
struct Asked {
    method: Method,
    /// Path and query.
    at: String,
    token: String,
    body: Value,
    answer: oneshot::Sender<(u16, Value)>,
}

impl Asked {
    fn answer(self, status: u16, body: Value) {
        // A server that was stopped does not hear it any more.
        drop(self.answer.send((status, body)));
    }

    fn txn_id(&self) -> &str {
        assert_eq!(self.method, Method::PUT);
        self.at
            .strip_prefix("/base/_matrix/app/v1/transactions/")
            .unwrap()
    }
}

/// An application service.
struct Bridge {
    files: tempfile::TempDir,
    asked: mpsc::UnboundedReceiver<Asked>,
    _listener: JoinSet<()>,
}

impl Bridge {
    /// One that has users `@bridge_…`, aliases `#bridge_…` and speaks for `irc`; `more` is added to its
    /// registration.
    async fn new(more: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let (got, asked) = mpsc::unbounded_channel();
        let router = Router::new().fallback(move |request: Request| {
            let got = got.clone();
            async move { serve(request, &got).await }
        });
        let mut set = JoinSet::new();
        set.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let files = tempfile::tempdir().unwrap();
        let registration = format!(
            "id: bridge\nurl: {url}\nas_token: as-token\nhs_token: hs-token\nsender_localpart: bridgebot\n\
             protocols: [irc]\nnamespaces:\n  users: [{{exclusive: true, regex: '@bridge_.*:hs1'}}]\n  \
             aliases: [{{exclusive: true, regex: '#bridge_.*:hs1'}}]\n  rooms: []\n{more}\n"
        );
        std::fs::write(files.path().join("bridge.yaml"), registration).unwrap();
        Self {
            files,
            asked,
            _listener: set,
        }
    }

    fn registered(&self) -> impl FnOnce(&mut Config) {
        let directory = self.files.path().to_owned();
        move |config| config.appservices.registration_directory = Some(directory)
    }

    async fn asked(&mut self) -> Asked {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("the service is asked in time").unwrap()
    }

    /// The next transaction, which is taken.
    async fn takes(&mut self) -> Value {
        let asked = self.asked().await;
        asked.txn_id();
        assert_eq!(asked.token, "Bearer hs-token");
        let body = asked.body.clone();
        asked.answer(200, json!({}));
        body
    }

    /// Takes transactions until one satisfies.
    async fn takes_until(&mut self, mut satisfies: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let body = self.takes().await;
            if satisfies(&body) {
                return body;
            }
        }
    }
}

impl Bridge {
    /// The service asks to be pinged, and is.
    async fn pings(&mut self, world: &World) {
        let path = "/v1/appservice/bridge/ping";
        let body = json!({ "transaction_id": "meow" });
        let (reply, ()) = tokio::join!(acts(world, "", Method::POST, path, body), async {
            let mut asked = self.asked().await;
            while asked.method == Method::PUT {
                // Not taken: it was tried again meanwhile.
                asked.answer(502, json!({}));
                asked = self.asked().await;
            }
            assert_eq!(asked.at, "/base/_matrix/app/v1/ping");
            assert_eq!(asked.body, json!({ "transaction_id": "meow" }));
            asked.answer(200, json!({}));
        });
        assert!(reply.ok()["duration_ms"].is_u64());
    }
}

async fn serve(request: Request, got: &mpsc::UnboundedSender<Asked>) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (answer, answered) = oneshot::channel();
    let token = parts.headers.get(header::AUTHORIZATION).unwrap();
    let asked = Asked {
        method: parts.method,
        at: parts.uri.to_string(),
        token: token.to_str().unwrap().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        answer,
    };
    got.send(asked).unwrap();
    let (status, body) = answered.await.unwrap_or((500, json!({})));
    Response::builder()
        .status(status)
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// A request of the service, as `user` if it is not empty.
async fn acts(world: &World, user: &str, method: Method, path: &str, body: Value) -> Reply {
    let joint = if path.contains('?') { '&' } else { '?' };
    let as_user = if user.is_empty() {
        String::new()
    } else {
        format!("{joint}user_id={}", segment(user))
    };
    let path = format!("/_matrix/client{path}{as_user}");
    world
        .request(method, &path, Some("as-token"), Some(&body))
        .await
}

async fn registers(world: &World, name: &str) {
    let body = json!({
        "type": "m.login.application_service",
        "username": name,
        "inhibit_login": true,
    });
    let reply = acts(world, "", Method::POST, "/v3/register", body)
        .await
        .ok();
    assert_eq!(reply["user_id"], format!("@{name}:hs1"));
    assert_eq!(reply["access_token"], Value::Null);
}

async fn joins(world: &World, user: &str, room: &str) {
    let path = format!("/v3/join/{}", segment(room));
    acts(world, user, Method::POST, &path, json!({})).await.ok();
}

fn bodies(transaction: &Value) -> Vec<&str> {
    let events = transaction["events"].as_array().unwrap();
    events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

/// A room of Alice's with the service's bot in it, and everything about it taken.
async fn bridged_room(world: &World, bridge: &mut Bridge, alice: &Client) -> String {
    let room = alice.public_room().await;
    joins(world, "", &room).await;
    let joined = |body: &Value| {
        let events = body["events"].as_array().unwrap();
        events
            .iter()
            .any(|event| event["state_key"] == "@bridgebot:hs1")
    };
    bridge.takes_until(joined).await;
    room
}

#[tokio::test]
async fn a_service_is_told_what_happens_in_rooms_of_its_users_and_nothing_else() {
    let mut bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let (room, other) = (alice.public_room().await, alice.public_room().await);
    alice.say(&room, "before").await;
    registers(&world, "bridge_bob").await;
    alice.invite(&room, "@bridge_bob:hs1").await.ok();
    let invite = bridge.takes().await;
    assert_eq!(invite["events"].as_array().unwrap().len(), 1);
    let event = &invite["events"][0];
    assert_eq!(event["content"]["membership"], "invite");
    assert_eq!(event["room_id"], *room);
    let told = event["unsigned"]["invite_room_state"].as_array().unwrap();
    assert!(told.iter().any(|event| event["type"] == "m.room.create"));
    alice.say(&room, "while invited").await;
    joins(&world, "@bridge_bob:hs1", &room).await;
    let join = bridge.takes().await;
    assert_eq!(join["events"][0]["content"]["membership"], "join");
    assert_eq!(join["events"][0]["unsigned"]["membership"], Value::Null);
    alice.say(&other, "elsewhere").await;
    let event_id = alice.say(&room, "within").await;
    let within = bridge.takes().await;
    assert_eq!(bodies(&within), ["within"]);
    assert_eq!(within["events"][0]["event_id"], *event_id);
    let path = format!("/v3/rooms/{}/leave", segment(&room));
    acts(&world, "@bridge_bob:hs1", Method::POST, &path, json!({}))
        .await
        .ok();
    assert_eq!(
        bridge.takes().await["events"][0]["content"]["membership"],
        "leave"
    );
    alice.say(&room, "afterwards").await;
    // The sender of the service is one of its users.
    joins(&world, "", &other).await;
    let last = bridge.takes().await;
    assert_eq!(last["events"][0]["state_key"], "@bridgebot:hs1");
}

#[tokio::test]
async fn a_room_with_an_alias_of_the_service_concerns_it() {
    let mut bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let body = json!({ "room_alias_name": "bridge_room", "preset": "public_chat" });
    let reply = acts(&world, "", Method::POST, "/v3/createRoom", body)
        .await
        .ok();
    let room = reply["room_id"].as_str().unwrap().to_owned();
    bridge.takes().await;
    alice.join(&room).await.ok();
    let path = format!("/v3/rooms/{}/leave", segment(&room));
    acts(&world, "", Method::POST, &path, json!({})).await.ok();
    alice.say(&room, "nobody of the service is here").await;
    bridge
        .takes_until(|body| bodies(body) == ["nobody of the service is here"])
        .await;
}

#[tokio::test]
async fn what_was_not_taken_is_sent_again_in_order_and_once_also_after_a_restart() {
    let mut bridge = Bridge::new("").await;
    let world = World::on_disk(bridge.registered()).await;
    let alice = world.register("alice").await;
    let room = bridged_room(&world, &mut bridge, &alice).await;
    alice.say(&room, "first").await;
    let failed = bridge.asked().await;
    let (txn_id, body) = (failed.txn_id().to_owned(), failed.body.clone());
    failed.answer(500, json!({}));
    // More than one row of the store takes, and more than one transaction.
    let long = |number: i32| format!("{number:0>20000}");
    for number in 0..150 {
        alice.say(&room, &long(number)).await;
    }
    // Who has left since does not hide what was said before.
    let path = format!("/v3/rooms/{}/leave", segment(&room));
    acts(&world, "", Method::POST, &path, json!({})).await.ok();

    drop(alice);
    let world = world.restart(bridge.registered()).await;
    let again = bridge.asked().await;
    assert_eq!(again.txn_id(), txn_id);
    assert_eq!(again.body, body);
    again.answer(502, json!({}));
    // A service that is back says so, and need not be waited for any longer.
    bridge.pings(&world).await;
    let (mut txn_ids, mut said) = (vec![txn_id], Vec::<String>::new());
    let once_more = bridge.asked().await;
    assert_eq!(once_more.txn_id(), txn_ids[0]);
    assert_eq!(once_more.body, body);
    said.extend(bodies(&once_more.body).into_iter().map(str::to_owned));
    once_more.answer(200, json!({}));
    loop {
        let asked = bridge.asked().await;
        assert!(!txn_ids.iter().any(|txn_id| txn_id == asked.txn_id()));
        assert!(asked.body["events"].as_array().unwrap().len() <= 100);
        txn_ids.push(asked.txn_id().to_owned());
        said.extend(bodies(&asked.body).into_iter().map(str::to_owned));
        let events = asked.body["events"].as_array().unwrap();
        let last = events.last().unwrap()["content"]["membership"] == "leave";
        asked.answer(200, json!({}));
        if last {
            break;
        }
    }
    let mut all = vec!["first".to_owned()];
    all.extend((0..150).map(long));
    assert_eq!(said, all);
}

#[tokio::test]
async fn a_ping_says_what_is_wrong() {
    let mut bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let path = "/v1/appservice/bridge/ping";
    let (reply, ()) = tokio::join!(acts(&world, "", Method::POST, path, json!({})), async {
        let asked = bridge.asked().await;
        asked.answer(403, json!({ "errcode": "M_FORBIDDEN" }));
    });
    assert_eq!(reply.error(), (502, "M_BAD_STATUS".to_owned()));
    assert_eq!(reply.json()["status"], 403);
    assert_eq!(reply.json()["body"], "{\"errcode\":\"M_FORBIDDEN\"}");
    let other = acts(
        &world,
        "",
        Method::POST,
        "/v1/appservice/other/ping",
        json!({}),
    )
    .await;
    other.fails(403, "M_FORBIDDEN");
    let alice = world.register("alice").await;
    alice.post(path, json!({})).await.fails(403, "M_FORBIDDEN");
    drop(bridge);
    acts(&world, "", Method::POST, path, json!({}))
        .await
        .fails(502, "M_CONNECTION_FAILED");
}

#[tokio::test]
async fn a_service_without_a_url_acts_and_is_told_nothing() {
    let bridge = Bridge::new("").await;
    let file = bridge.files.path().join("bridge.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("url"))
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let world = World::with(bridge.registered()).await;
    let path = "/v1/appservice/bridge/ping";
    acts(&world, "", Method::POST, path, json!({}))
        .await
        .fails(400, "M_URL_NOT_SET");
    let whoami = acts(&world, "", Method::GET, "/v3/account/whoami", json!({}))
        .await
        .ok();
    assert_eq!(whoami["user_id"], "@bridgebot:hs1");
}

#[tokio::test]
async fn names_of_a_service_are_its_own_and_no_others_are() {
    let bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    for name in ["bridge_bob", "bridgebot"] {
        let body = json!({
            "username": name,
            "password": "a long password",
            "auth": { "type": "m.login.dummy" },
        });
        let path = "/_matrix/client/v3/register";
        let reply = world.request(Method::POST, path, None, Some(&body)).await;
        reply.fails(400, "M_EXCLUSIVE");
    }
    alice
        .get("/v3/register/available?username=bridge_bob")
        .await
        .fails(400, "M_EXCLUSIVE");
    let alias = json!({ "room_alias_name": "bridge_room" });
    alice
        .post("/v3/createRoom", alias)
        .await
        .fails(400, "M_EXCLUSIVE");
    let alias = json!({ "room_alias_name": "room" });
    let reply = acts(&world, "", Method::POST, "/v3/createRoom", alias).await;
    reply.fails(400, "M_EXCLUSIVE");
    let service = "m.login.application_service";
    let outside = json!({ "type": service, "username": "carol" });
    let reply = acts(&world, "", Method::POST, "/v3/register", outside).await;
    reply.fails(400, "M_EXCLUSIVE");
    let own = json!({ "type": service, "username": "bridgebot" });
    let reply = acts(&world, "", Method::POST, "/v3/register", own.clone()).await;
    reply.fails(400, "M_USER_IN_USE");
    let path = "/_matrix/client/v3/register";
    let reply = world.request(Method::POST, path, None, Some(&own)).await;
    reply.fails(401, "M_MISSING_TOKEN");
    let reply = world
        .request(Method::POST, path, Some("wrong"), Some(&own))
        .await;
    reply.fails(401, "M_UNKNOWN_TOKEN");
    let login = |name: &str| {
        let identifier = json!({ "type": "m.id.user", "user": name });
        json!({ "type": service, "identifier": identifier })
    };
    let reply = acts(&world, "", Method::POST, "/v3/login", login("alice")).await;
    reply.fails(400, "M_EXCLUSIVE");
    registers(&world, "bridge_bob").await;
    let reply = acts(&world, "", Method::POST, "/v3/login", login("bridge_bob")).await;
    assert!(reply.ok()["access_token"].is_string());
}

#[tokio::test]
async fn a_service_acts_as_its_users_and_devices() {
    let bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let whoami = async |user: &str, query: &str| {
        let path = format!("/v3/account/whoami{query}");
        acts(&world, user, Method::GET, &path, json!({})).await
    };
    whoami("@bridge_bob:hs1", "")
        .await
        .fails(403, "M_FORBIDDEN");
    whoami("@alice:hs1", "").await.fails(403, "M_FORBIDDEN");
    registers(&world, "bridge_bob").await;
    let bob = "@bridge_bob:hs1";
    for key in ["device_id", "org.matrix.msc3202.device_id"] {
        let query = format!("?{key}=DEVICE");
        if key == "device_id" {
            whoami(bob, &query).await.fails(400, "M_UNKNOWN_DEVICE");
            let reply = acts(&world, bob, Method::PUT, "/v3/devices/DEVICE", json!({})).await;
            assert_eq!(reply.status, 201);
        }
        let me = whoami(bob, &query).await.ok();
        assert_eq!(
            (&me["user_id"], &me["device_id"]),
            (&json!(bob), &json!("DEVICE"))
        );
    }
    joins(&world, bob, &room).await;
    // A message keeps the time at which it was sent elsewhere, and is sent once, whatever the device.
    let path = format!(
        "/v3/rooms/{}/send/m.room.message/txn?ts=1234",
        segment(&room)
    );
    let content = json!({ "msgtype": "m.text", "body": "imported" });
    let sent = acts(&world, bob, Method::PUT, &path, content.clone())
        .await
        .ok();
    let again = acts(&world, bob, Method::PUT, &path, content).await.ok();
    assert_eq!(sent, again);
    let newest = alice.messages(&room, "limit=1").await;
    assert_eq!(newest["chunk"][0]["origin_server_ts"], 1234);
    let path = path.replace("1234", "yesterday");
    let reply = acts(&world, bob, Method::PUT, &path, json!({})).await;
    reply.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn typing_receipts_and_presence_are_told_to_a_service_that_wants_them() {
    let wants = "receive_ephemeral: true\nde.sorunome.msc2409.push_ephemeral: true";
    let mut bridge = Bridge::new(wants).await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let elsewhere = alice.public_room().await;
    let room = bridged_room(&world, &mut bridge, &alice).await;
    let is = |body: &Value, kind: &str| {
        assert_eq!(body["ephemeral"], body["de.sorunome.msc2409.ephemeral"]);
        let events = body["ephemeral"].as_array().cloned().unwrap_or_default();
        events.into_iter().find(|event| event["type"] == kind)
    };
    let typing = async |room: &str| {
        let path = format!("/v3/rooms/{}/typing/@alice:hs1", segment(room));
        alice
            .put(&path, json!({ "typing": true, "timeout": 30_000 }))
            .await
            .ok();
    };
    typing(&elsewhere).await;
    typing(&room).await;
    let told = bridge
        .takes_until(|body| is(body, "m.typing").is_some())
        .await;
    let expected = json!({
        "type": "m.typing", "room_id": room, "content": { "user_ids": ["@alice:hs1"] },
    });
    assert_eq!(is(&told, "m.typing"), Some(expected));
    let event_id = alice.say(&room, "read this").await;
    for kind in ["m.read.private", "m.read"] {
        let path = format!(
            "/v3/rooms/{}/receipt/{kind}/{}",
            segment(&room),
            segment(&event_id)
        );
        alice.post(&path, json!({})).await.ok();
    }
    let told = bridge
        .takes_until(|body| is(body, "m.receipt").is_some())
        .await;
    let receipt = is(&told, "m.receipt").unwrap();
    assert_eq!(receipt["room_id"], *room);
    assert!(receipt["content"][&event_id]["m.read"]["@alice:hs1"]["ts"].is_u64());
    assert_eq!(receipt["content"][&event_id]["m.read.private"], Value::Null);
    let status = json!({ "presence": "online", "status_msg": "here" });
    alice
        .put("/v3/presence/@alice:hs1/status", status)
        .await
        .ok();
    let told = bridge
        .takes_until(|body| is(body, "m.presence").is_some())
        .await;
    let presence = is(&told, "m.presence").unwrap();
    assert_eq!(presence["sender"], "@alice:hs1");
    assert_eq!(presence["content"]["status_msg"], "here");
}

#[tokio::test]
async fn messages_to_devices_and_news_of_keys_reach_a_service_that_wants_them() {
    let wants = "receive_ephemeral: true\norg.matrix.msc3202: true";
    let mut bridge = Bridge::new(wants).await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let room = bridged_room(&world, &mut bridge, &alice).await;
    let bot = "@bridgebot:hs1";
    acts(&world, bot, Method::PUT, "/v3/devices/BOT", json!({})).await;
    let keys = json!({
        "one_time_keys": { "signed_curve25519:AAAA": { "key": "a", "signatures": {} } },
        "fallback_keys": { "signed_curve25519:BBBB": { "key": "b", "signatures": {} } },
    });
    let path = "/v3/keys/upload?device_id=BOT";
    acts(&world, bot, Method::POST, path, keys).await.ok();
    let counts = "org.matrix.msc3202.device_one_time_keys_count";
    let told = bridge.takes_until(|body| !body[counts].is_null()).await;
    assert_eq!(told[counts][bot]["BOT"]["signed_curve25519"], 1);
    let fallback = "org.matrix.msc3202.device_unused_fallback_key_types";
    assert_eq!(told[fallback][bot]["BOT"], json!(["signed_curve25519"]));

    let content = json!({ "messages": { bot: { "BOT": { "secret": 1 } } } });
    alice.put("/v3/sendToDevice/m.test/1", content).await.ok();
    let messages = "de.sorunome.msc2409.to_device";
    let told = bridge.takes_until(|body| !body[messages].is_null()).await;
    let expected = json!([{
        "type": "m.test", "sender": "@alice:hs1", "content": { "secret": 1 },
        "to_user_id": bot, "to_device_id": "BOT",
    }]);
    assert_eq!(told[messages], expected);
    let lists = "org.matrix.msc3202.device_lists";
    let bob = world.register("bob").await;
    bob.join(&room).await.ok();
    let changed = |body: &Value| body[lists]["changed"] == json!(["@bob:hs1"]);
    bridge.takes_until(changed).await;
    bob.leave(&room).await.ok();
    let left = |body: &Value| body[lists]["left"] == json!(["@bob:hs1"]);
    bridge.takes_until(left).await;
    // What the service has taken does not wait for the device any more.
    let sync = acts(
        &world,
        bot,
        Method::GET,
        "/v3/sync?device_id=BOT&timeout=0",
        json!({}),
    )
    .await;
    assert_eq!(sync.ok()["to_device"], Value::Null);
}

#[tokio::test]
async fn an_unknown_alias_or_user_in_the_namespaces_is_asked_for_and_may_be_made() {
    let mut bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let (reply, ()) = tokio::join!(alice.join("#bridge_room:hs1"), async {
        let asked = bridge.asked().await;
        assert_eq!(asked.method, Method::GET);
        assert_eq!(asked.at, "/base/_matrix/app/v1/rooms/%23bridge_room:hs1");
        let body = json!({ "room_alias_name": "bridge_room", "preset": "public_chat" });
        acts(&world, "", Method::POST, "/v3/createRoom", body)
            .await
            .ok();
        let transaction = bridge.asked().await;
        transaction.answer(200, json!({}));
        asked.answer(200, json!({}));
    });
    assert!(reply.ok()["room_id"].is_string());
    bridge.takes().await;
    let (reply, ()) = tokio::join!(alice.join("#bridge_none:hs1"), async {
        bridge.asked().await.answer(404, json!({}));
    });
    reply.fails(404, "M_NOT_FOUND");
    alice.join("#other:hs1").await.fails(404, "M_NOT_FOUND");

    let (reply, ()) = tokio::join!(alice.get("/v3/profile/@bridge_bob:hs1"), async {
        let asked = bridge.asked().await;
        assert_eq!(asked.at, "/base/_matrix/app/v1/users/@bridge_bob:hs1");
        registers(&world, "bridge_bob").await;
        asked.answer(200, json!({}));
    });
    assert_eq!(reply.ok()["displayname"], "bridge_bob");
    let (reply, ()) = tokio::join!(alice.get("/v3/profile/@bridge_eve:hs1"), async {
        bridge.asked().await.answer(404, json!({}));
    });
    reply.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn third_party_networks_are_asked_of_those_who_speak_for_them() {
    let mut bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    let alice = world.register("alice").await;
    let network = json!({ "network_id": "oftc", "desc": "OFTC", "fields": {} });
    let irc = json!({ "user_fields": ["nick"], "instances": [network] });
    let (reply, ()) = tokio::join!(alice.get("/v3/thirdparty/protocols"), async {
        let asked = bridge.asked().await;
        assert_eq!(asked.at, "/base/_matrix/app/v1/thirdparty/protocol/irc");
        asked.answer(200, irc.clone());
    });
    let protocols = reply.ok();
    assert_eq!(protocols["irc"]["user_fields"], json!(["nick"]));
    assert_eq!(
        protocols["irc"]["instances"][0]["instance_id"],
        "bridge|oftc"
    );
    let (reply, ()) = tokio::join!(alice.get("/v3/thirdparty/protocol/irc"), async {
        bridge.asked().await.answer(500, json!({}));
    });
    reply.fails(404, "M_NOT_FOUND");
    alice
        .get("/v3/thirdparty/user/xmpp?nick=bob")
        .await
        .fails(404, "M_NOT_FOUND");
    let found = json!([{ "userid": "@bridge_bob:hs1", "protocol": "irc", "fields": {} }]);
    let (reply, ()) = tokio::join!(alice.get("/v3/thirdparty/user/irc?nick=bob"), async {
        let asked = bridge.asked().await;
        assert_eq!(
            asked.at,
            "/base/_matrix/app/v1/thirdparty/user/irc?nick=bob"
        );
        let mut answer = found.clone();
        answer
            .as_array_mut()
            .unwrap()
            .push(json!({ "not": "a user" }));
        asked.answer(200, answer);
    });
    assert_eq!(reply.ok(), found);
    let place = json!([{ "alias": "#bridge_room:hs1", "protocol": "irc", "fields": {} }]);
    let path = "/v3/thirdparty/location?alias=%23bridge_room:hs1";
    let (reply, ()) = tokio::join!(alice.get(path), async {
        let asked = bridge.asked().await;
        assert!(
            asked
                .at
                .starts_with("/base/_matrix/app/v1/thirdparty/location?alias=")
        );
        asked.answer(200, place.clone());
    });
    assert_eq!(reply.ok(), place);
    alice
        .get("/v3/thirdparty/location")
        .await
        .fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn what_a_bridge_does_for_somebody_does_not_mean_that_they_are_online() {
    let bridge = Bridge::new("").await;
    let world = World::with(bridge.registered()).await;
    registers(&world, "bridge_bob").await;
    let bob = "@bridge_bob:hs1";
    let presence = async || {
        let path = "/v3/presence/@bridge_bob:hs1/status";
        let reply = acts(&world, bob, Method::GET, path, json!({})).await.ok();
        reply["presence"].as_str().unwrap().to_owned()
    };
    acts(&world, bob, Method::GET, "/v3/sync?timeout=0", json!({}))
        .await
        .ok();
    assert_eq!(presence().await, "offline");
    let path = "/v3/sync?timeout=0&set_presence=online";
    acts(&world, bob, Method::GET, path, json!({})).await.ok();
    assert_eq!(presence().await, "online");
}
