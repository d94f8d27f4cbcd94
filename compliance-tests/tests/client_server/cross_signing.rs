//! Client-server API, "Cross-signing", "Tracking the device list for a user", "Server-side key
//! backups"; MSC3814.

use compliance_tests::{Client, World, segment};
use ed25519_dalek::{Signer as _, SigningKey};
use ruma::serde::Base64;
use serde_json::{Value, json};

/// A key pair, with its public half in unpadded base64.
struct Pair(SigningKey, String);

fn pair(seed: u8) -> Pair {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let public: Base64 = Base64::new(key.verifying_key().to_bytes().to_vec());
    let public = public.encode();
    Pair(key, public)
}

/// `object` with the signature of `by`, named `key_id`, added.
fn signed(mut object: Value, user_id: &str, key_id: &str, by: &Pair) -> Value {
    let mut bare = object.clone();
    let fields = bare.as_object_mut().unwrap();
    fields.remove("signatures");
    fields.remove("unsigned");
    let canonical: ruma::CanonicalJsonValue = bare.try_into().unwrap();
    let signature: Base64 = Base64::new(by.0.sign(canonical.to_string().as_bytes()).to_vec());
    object["signatures"][user_id][key_id] = signature.encode().into();
    object
}

fn key(user_id: &str, usage: &str, pair: &Pair) -> Value {
    json!({
        "user_id": user_id, "usage": [usage],
        "keys": { format!("ed25519:{}", pair.1): pair.1 },
    })
}

/// A user with all three keys, made from seeds that follow `seed`, and the keys of their device.
struct Signer {
    client: Client,
    master: Pair,
    own: Pair,
    others: Pair,
    device: Pair,
}

fn keys_of(of: &Client, [master, own, others]: [&Pair; 3]) -> Value {
    let (user_id, id) = (&of.user_id, format!("ed25519:{}", master.1));
    json!({
        "master_key": key(user_id, "master", master),
        "self_signing_key": signed(key(user_id, "self_signing", own), user_id, &id, master),
        "user_signing_key": signed(key(user_id, "user_signing", others), user_id, &id, master),
    })
}

impl Signer {
    async fn new(world: &World, name: &str, seed: u8) -> Self {
        let client = world.register(name).await;
        let [master, own, others, device] = [0, 1, 2, 3].map(|more| pair(seed + more));
        let device_keys = json!({
            "user_id": client.user_id, "device_id": client.device_id, "algorithms": ["m.olm.v1"],
            "keys": { format!("ed25519:{}", client.device_id): device.1 }, "signatures": {},
        });
        client
            .post("/v3/keys/upload", json!({ "device_keys": device_keys }))
            .await
            .ok();
        let keys = keys_of(&client, [&master, &own, &others]);
        client
            .post("/v3/keys/device_signing/upload", keys)
            .await
            .ok();
        Self {
            client,
            master,
            own,
            others,
            device,
        }
    }

    async fn query(&self, of: &Client) -> Value {
        let query = json!({ "device_keys": { &of.user_id: [] } });
        self.client.post("/v3/keys/query", query).await.ok()
    }

    async fn sign(&self, whose: &Client, name: &str, object: Value) -> Value {
        let body = json!({ &whose.user_id: { name: object } });
        let reply = self.client.post("/v3/keys/signatures/upload", body).await;
        reply.ok()["failures"][&whose.user_id][name]["errcode"].clone()
    }
}

#[tokio::test] // "POST /keys/device_signing/upload", "POST /keys/signatures/upload"
async fn users_sign_their_devices_and_each_other() {
    let world = World::new().await;
    let alice = Signer::new(&world, "alice", 10).await;
    let bob = Signer::new(&world, "bob", 20).await;
    let (a, b) = (&alice.client, &bob.client);

    let device = alice.query(a).await["device_keys"][&a.user_id][&a.device_id].clone();
    let by_own = format!("ed25519:{}", alice.own.1);
    let good = signed(device.clone(), &a.user_id, &by_own, &alice.own);
    let forged = signed(device, &a.user_id, &by_own, &bob.own);
    assert_eq!(
        alice.sign(a, &a.device_id, forged).await,
        "M_INVALID_SIGNATURE"
    );
    assert_eq!(alice.sign(a, &a.device_id, good.clone()).await, Value::Null);
    assert_eq!(alice.sign(a, "NOSUCH", good).await, "M_NOT_FOUND");

    let master = alice.query(a).await["master_keys"][&a.user_id].clone();
    let by_device = format!("ed25519:{}", a.device_id);
    let vouched = signed(master.clone(), &a.user_id, &by_device, &alice.device);
    assert_eq!(alice.sign(a, &alice.master.1, vouched).await, Value::Null);
    let by_bob = format!("ed25519:{}", bob.others.1);
    let verified = signed(master, &b.user_id, &by_bob, &bob.others);
    assert_eq!(bob.sign(a, &alice.master.1, verified).await, Value::Null);

    let seen = bob.query(a).await;
    let device = &seen["device_keys"][&a.user_id][&a.device_id]["signatures"];
    assert!(device[&a.user_id][&by_own].is_string(), "{seen}");
    let master = &seen["master_keys"][&a.user_id]["signatures"];
    assert!(master[&a.user_id][&by_device].is_string());
    assert!(master[&b.user_id][&by_bob].is_string());
    assert_eq!(seen["user_signing_keys"], json!({}));
    let own = alice.query(a).await;
    assert!(own["user_signing_keys"][&a.user_id].is_object());
    let master = &own["master_keys"][&a.user_id]["signatures"];
    assert_eq!(
        master[&b.user_id],
        Value::Null,
        "whom bob verified is bob's affair"
    );
}

#[tokio::test] // "POST /keys/device_signing/upload"
async fn replacing_cross_signing_keys_needs_the_password_and_good_signatures() {
    let world = World::new().await;
    let alice = Signer::new(&world, "alice", 30).await;
    let client = &alice.client;
    let path = "/v3/keys/device_signing/upload";
    let same = keys_of(client, [&alice.master, &alice.own, &alice.others]);
    client.post(path, same.clone()).await.ok();
    let (master, own, others) = (pair(40), pair(41), pair(42));
    let mut new = keys_of(client, [&master, &own, &others]);
    let reply = client.post(path, new.clone()).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    let session = reply.json()["session"].clone();
    new["auth"] = json!({
        "type": "m.login.password", "session": session, "password": "password-of-alice",
        "identifier": { "type": "m.id.user", "user": client.user_id },
    });
    client.post(path, new).await.ok();
    let found = alice.query(client).await;
    let id = format!("ed25519:{}", master.1);
    assert_eq!(found["master_keys"][&client.user_id]["keys"][&id], master.1);

    let fresh = world.register("carol").await;
    let mut stolen = same;
    stolen["master_key"] = key(&fresh.user_id, "master", &master);
    let replies = [
        (stolen, "M_INVALID_PARAM"),
        (
            json!({ "self_signing_key": key(&fresh.user_id, "self_signing", &own) }),
            "M_MISSING_PARAM",
        ),
        (
            json!({
                "master_key": key(&fresh.user_id, "master", &master),
                "self_signing_key": key(&fresh.user_id, "self_signing", &own),
            }),
            "M_INVALID_SIGNATURE",
        ),
    ];
    for (body, errcode) in replies {
        fresh.post(path, body).await.fails(400, errcode);
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[tokio::test] // "Tracking the device list for a user"
async fn device_lists_tell_who_changed_who_came_and_who_left() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let next = |sync: &Value| sync["next_batch"].as_str().unwrap().to_owned();
    let start = next(&alice.sync(None, "").await);
    bob.join(&room).await.ok();
    let sync = alice.sync(Some(&start), "").await;
    assert_eq!(
        names(&sync["device_lists"]["changed"]),
        [bob.user_id.as_str()]
    );
    let joined = next(&sync);
    alice.say(&room, "hello").await;
    let sync = alice.sync(Some(&joined), "").await;
    assert_eq!(sync["device_lists"], Value::Null);
    let said = next(&sync);
    let keys = json!({
        "user_id": bob.user_id, "device_id": bob.device_id, "algorithms": [],
        "keys": { format!("ed25519:{}", bob.device_id): "k" }, "signatures": {},
    });
    bob.post("/v3/keys/upload", json!({ "device_keys": keys }))
        .await
        .ok();
    let sync = alice.sync(Some(&said), "").await;
    assert_eq!(
        names(&sync["device_lists"]["changed"]),
        [bob.user_id.as_str()]
    );
    let uploaded = next(&sync);
    bob.leave(&room).await.ok();
    let sync = alice.sync(Some(&uploaded), "").await;
    assert_eq!(names(&sync["device_lists"]["left"]), [bob.user_id.as_str()]);
    let end = next(&sync);
    let path = |from: &str, to: &str| {
        format!("/v3/keys/changes?from={}&to={}", segment(from), segment(to))
    };
    let changes = alice.get(&path(&said, &end)).await.ok();
    assert_eq!(names(&changes["left"]), [bob.user_id.as_str()]);
    let changes = alice.get(&path(&start, &said)).await.ok();
    assert_eq!(
        names(&changes["changed"]),
        [] as [&str; 0],
        "bob is gone since"
    );
    alice
        .get("/v3/keys/changes?from=x")
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "Server-side key backups"
async fn a_backup_keeps_the_better_key_and_only_the_current_version_takes_any() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    alice
        .get("/v3/room_keys/version")
        .await
        .fails(404, "M_NOT_FOUND");
    let describe = json!({ "algorithm": "m.megolm_backup.v1", "auth_data": { "public_key": "p" } });
    let reply = alice.post("/v3/room_keys/version", describe.clone()).await;
    assert_eq!(reply.ok()["version"], "1");
    let key = |index: u64, verified: bool| {
        json!({
            "first_message_index": index, "forwarded_count": 0, "is_verified": verified,
            "session_data": { "ciphertext": index },
        })
    };
    let path = "/v3/room_keys/keys/!r:x/s?version=1";
    let first = alice.put(path, key(5, false)).await.ok();
    assert_eq!(first["count"], 1);
    let worse = alice.put(path, key(7, false)).await.ok();
    assert_eq!(worse["etag"], first["etag"], "nothing was changed");
    let better = alice.put(path, key(9, true)).await.ok();
    assert_ne!(better["etag"], first["etag"]);
    assert_eq!(alice.get(path).await.ok(), key(9, true));
    let all = json!({ "rooms": { "!r:x": { "sessions": { "t": key(1, false) } } } });
    let reply = alice.put("/v3/room_keys/keys?version=1", all).await.ok();
    assert_eq!(reply["count"], 2);
    let all = alice.get("/v3/room_keys/keys?version=1").await.ok();
    assert_eq!(all["rooms"]["!r:x"]["sessions"]["t"], key(1, false));
    alice
        .get("/v3/room_keys/keys/!r:x/none?version=1")
        .await
        .fails(404, "M_NOT_FOUND");
    let empty = alice
        .get("/v3/room_keys/keys/!other:x?version=1")
        .await
        .ok();
    assert_eq!(empty, json!({ "sessions": {} }));
    let gone = alice.delete(path).await.ok();
    assert_eq!(gone["count"], 1);
    alice.post("/v3/room_keys/version", describe).await.ok();
    alice
        .put(path, key(1, true))
        .await
        .fails(403, "M_WRONG_ROOM_KEYS_VERSION");
    let other = json!({ "algorithm": "another", "auth_data": {} });
    alice
        .put("/v3/room_keys/version/2", other)
        .await
        .fails(400, "M_INVALID_PARAM");
    alice.delete("/v3/room_keys/version/2").await.ok();
    let current = alice.get("/v3/room_keys/version").await.ok();
    assert_eq!(
        (&current["version"], &current["count"]),
        (&json!("1"), &json!(1))
    );
    alice
        .get("/v3/room_keys/version/2")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test] // MSC3814
async fn a_dehydrated_device_receives_messages_until_it_is_replaced() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let path = "/unstable/org.matrix.msc3814.v1/dehydrated_device";
    alice.get(path).await.fails(404, "M_NOT_FOUND");
    let device = |id: &str| {
        json!({
            "device_id": id, "device_data": { "algorithm": "a", "pickle": "p" },
            "device_keys": {
                "user_id": alice.user_id, "device_id": id, "algorithms": [], "signatures": {},
                "keys": { format!("ed25519:{id}"): "k" }, "dehydrated": true,
            },
            "one_time_keys": { "signed_curve25519:1": { "key": "1" } },
        })
    };
    let mut without = device("DRY");
    without.as_object_mut().unwrap().remove("device_keys");
    alice.put(path, without).await.fails(400, "M_BAD_JSON");
    let reply = alice.put(path, device("DRY")).await.ok();
    assert_eq!(reply["device_id"], "DRY");
    assert_eq!(alice.get(path).await.ok()["device_data"]["pickle"], "p");
    let message = json!({ "messages": { &alice.user_id: { "DRY": { "n": 1 } } } });
    bob.put("/v3/sendToDevice/m.room_key/t", message).await.ok();
    let events = format!("{path}/DRY/events");
    let reply = alice.post(&events, json!({})).await.ok();
    assert_eq!(reply["events"][0]["content"], json!({ "n": 1 }));
    assert_eq!(alice.get(&events).await.ok()["events"], reply["events"]);
    let next = json!({ "next_batch": reply["next_batch"] });
    let reply = alice.post(&events, next).await.ok();
    assert_eq!(reply["events"], json!([]));
    let reply = alice.get(&events).await.ok();
    assert_eq!(
        reply,
        json!({ "events": [] }),
        "they are deleted, and that was all"
    );
    alice.put(path, device("DRIER")).await.ok();
    alice
        .post(&events, json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    alice.get("/v3/devices/DRY").await.fails(404, "M_NOT_FOUND");
    assert_eq!(alice.delete(path).await.ok()["device_id"], "DRIER");
    alice.get(path).await.fails(404, "M_NOT_FOUND");
}
