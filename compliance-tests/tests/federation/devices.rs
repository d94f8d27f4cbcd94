//! Server-server API, "Device Management", "End-to-End Encryption". Client-server API, "Key management API", for other
//! servers' users.

use compliance_tests::{Client, Network, Stranger, World, segment};
use ed25519_dalek::{Signer as _, SigningKey};
use http::Method;
use ruma::serde::Base64;
use serde_json::{Value, json};

const USER: &str = "/_matrix/federation/v1/user";

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
    let canonical: ruma::CanonicalJsonValue = bare.try_into().unwrap();
    let signature: Base64 = Base64::new(by.0.sign(canonical.to_string().as_bytes()).to_vec());
    object["signatures"][user_id][key_id] = signature.encode().into();
    object
}

fn device_keys(of: &Client) -> Value {
    json!({
        "user_id": of.user_id, "device_id": of.device_id, "algorithms": ["m.olm.v1"],
        "keys": { format!("ed25519:{}", of.device_id): "base64" },
        "signatures": { &of.user_id: { "ed25519:x": "mine" }, "@other:hs1": { "ed25519:y": "theirs" } },
    })
}

async fn upload(of: &Client) {
    let body = json!({ "device_keys": device_keys(of) });
    of.post("/v3/keys/upload", body).await.ok();
}

/// Uploads all three cross-signing keys.
async fn cross_sign(of: &Client) {
    let [master, own, others] = [1, 2, 3].map(pair);
    let key = |usage: &str, pair: &Pair| {
        json!({
            "user_id": of.user_id, "usage": [usage],
            "keys": { format!("ed25519:{}", pair.1): pair.1 },
        })
    };
    let id = format!("ed25519:{}", master.1);
    let mut first = key("master", &master);
    first["signatures"] = json!({ "@other:hs1": { "ed25519:y": "theirs" } });
    let body = json!({
        "master_key": first,
        "self_signing_key": signed(key("self_signing", &own), &of.user_id, &id, &master),
        "user_signing_key": signed(key("user_signing", &others), &of.user_id, &id, &master),
    });
    of.post("/v3/keys/device_signing/upload", body).await.ok();
}

async fn devices(by: &Stranger, of: &World, user_id: &str) -> Value {
    let path = format!("{USER}/devices/{}", segment(user_id));
    by.ask(of, Method::GET, &path, None).await.ok()
}

#[tokio::test] // "Gets information on all of the user's devices"
async fn devices_are_told_with_keys_and_a_stream_id_that_grows_with_each_change() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let before = devices(&other, &hs1, &alice.user_id).await;
    assert_eq!(before["devices"], json!([]));
    upload(&alice).await;
    let with_keys = devices(&other, &hs1, &alice.user_id).await;
    assert_eq!(with_keys["user_id"], alice.user_id);
    let [device] = with_keys["devices"].as_array().unwrap().as_slice() else {
        panic!("{with_keys}");
    };
    assert_eq!(device["device_id"], alice.device_id);
    let mut keys = device_keys(&alice);
    keys["signatures"]
        .as_object_mut()
        .unwrap()
        .remove("@other:hs1");
    assert_eq!(device["keys"], keys);
    cross_sign(&alice).await;
    let signing = devices(&other, &hs1, &alice.user_id).await;
    assert_eq!(signing["master_key"]["usage"], json!(["master"]));
    assert_eq!(signing["master_key"]["signatures"], json!({}));
    assert_eq!(
        signing["self_signing_key"]["usage"],
        json!(["self_signing"])
    );
    assert_eq!(signing.get("user_signing_key"), None);
    let ids = [&before, &with_keys, &signing].map(|reply| reply["stream_id"].as_u64().unwrap());
    assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
    let again = devices(&other, &hs1, &alice.user_id).await;
    assert_eq!(again, signing);
    let path = format!("{USER}/devices/%40nobody%3Ahs1");
    let reply = other.ask(&hs1, Method::GET, &path, None).await;
    reply.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "`device_display_name`: Optional display name for the device"
async fn the_names_of_devices_are_told_only_if_the_configuration_says_so() {
    let network = Network::new();
    let other = network.stranger("other");
    for (server, shared) in [("hs1", false), ("hs2", true)] {
        let world = network
            .server_with(server, |config| {
                config.federation.share_device_names = shared;
            })
            .await;
        let alice = world.register("alice").await;
        let path = format!("/v3/devices/{}", alice.device_id);
        alice
            .put(&path, json!({ "display_name": "Phone" }))
            .await
            .ok();
        upload(&alice).await;
        let name = if shared { json!("Phone") } else { Value::Null };
        let told = devices(&other, &world, &alice.user_id).await;
        assert_eq!(told["devices"][0]["device_display_name"], name);
        let body = json!({ "device_keys": { &alice.user_id: [] } });
        let path = format!("{USER}/keys/query");
        let found = other
            .ask(&world, Method::POST, &path, Some(body))
            .await
            .ok();
        let keys = &found["device_keys"][&alice.user_id][&alice.device_id];
        assert_eq!(keys["unsigned"]["device_display_name"], name);
    }
}

#[tokio::test] // "POST /user/keys/query"
async fn keys_are_told_without_user_signing_keys_and_signatures_of_others() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    upload(&alice).await;
    cross_sign(&alice).await;
    let body = json!({ "device_keys": { &alice.user_id: [], "@b:other": [], "@nobody:hs1": [] } });
    let path = format!("{USER}/keys/query");
    let found = other.ask(&hs1, Method::POST, &path, Some(body)).await.ok();
    let keys = &found["device_keys"][&alice.user_id][&alice.device_id];
    assert_eq!(keys["keys"], device_keys(&alice)["keys"]);
    assert_eq!(
        keys["signatures"],
        json!({ &alice.user_id: { "ed25519:x": "mine" } })
    );
    assert_eq!(found["device_keys"].get("@b:other"), None);
    assert_eq!(
        found["master_keys"][&alice.user_id]["signatures"],
        json!({})
    );
    assert!(found["self_signing_keys"].get(&alice.user_id).is_some());
    assert_eq!(found.get("user_signing_keys"), None);
}

#[tokio::test] // "POST /user/keys/claim": each key once, in upload order, then the fallback key
async fn keys_are_claimed_by_other_servers_each_once_and_then_the_fallback_key() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    for id in ["signed_curve25519:1", "signed_curve25519:0"] {
        let body = json!({ "one_time_keys": { id: { "key": id } } });
        alice.post("/v3/keys/upload", body).await.ok();
    }
    let fallback = json!({ "signed_curve25519:f": { "key": "f", "fallback": true } });
    let body = json!({ "fallback_keys": fallback });
    alice.post("/v3/keys/upload", body).await.ok();
    let claim = async || {
        let body = json!({ "one_time_keys": { &alice.user_id: { &alice.device_id: "signed_curve25519" } } });
        let path = format!("{USER}/keys/claim");
        let reply = other.ask(&hs1, Method::POST, &path, Some(body)).await.ok();
        reply["one_time_keys"][&alice.user_id][&alice.device_id].clone()
    };
    for id in ["signed_curve25519:1", "signed_curve25519:0"] {
        assert_eq!(claim().await, json!({ id: { "key": id } }));
    }
    for _ in 0..2 {
        assert_eq!(claim().await, fallback);
    }
}

#[tokio::test] // "POST /keys/query": "`failures`: If any remote homeservers could not be reached"
async fn keys_of_other_servers_users_are_looked_up_there_and_silent_servers_are_failures() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    upload(&alice).await;
    upload(&bob).await;
    cross_sign(&bob).await;
    let body = json!({ "device_keys": {
        &alice.user_id: [], &bob.user_id: [], "@carol:nowhere": [],
    } });
    let found = alice.post("/v3/keys/query", body).await.ok();
    for of in [&alice, &bob] {
        let keys = &found["device_keys"][&of.user_id][&of.device_id];
        assert_eq!(keys["keys"], device_keys(of)["keys"]);
    }
    for kind in ["master_keys", "self_signing_keys"] {
        assert!(found[kind].get(&bob.user_id).is_some(), "{kind}");
    }
    assert_eq!(found["user_signing_keys"], json!({}));
    let failures = found["failures"].as_object().unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), ["nowhere"]);
}

#[tokio::test] // "POST /keys/claim"
async fn keys_of_other_servers_users_are_claimed_there() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let key = json!({ "signed_curve25519:1": { "key": "one", "signatures": {} } });
    let body = json!({ "one_time_keys": key });
    bob.post("/v3/keys/upload", body).await.ok();
    let body = json!({ "one_time_keys": {
        &bob.user_id: { &bob.device_id: "signed_curve25519" },
        "@carol:nowhere": { "X": "signed_curve25519" },
    } });
    let reply = alice.post("/v3/keys/claim", body.clone()).await.ok();
    assert_eq!(reply["one_time_keys"][&bob.user_id][&bob.device_id], key);
    let failures = reply["failures"].as_object().unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), ["nowhere"]);
    let again = alice.post("/v3/keys/claim", body).await.ok();
    assert_eq!(again["one_time_keys"].get(&bob.user_id), None);
}

#[tokio::test] // A server speaks for its own users
async fn a_server_cannot_give_keys_of_users_or_devices_that_it_was_not_asked_about() {
    let network = Network::new();
    let (hs1, liar) = (network.server("hs1").await, network.stranger("liar"));
    let (alice, bob) = (hs1.register("alice").await, hs1.register("bob").await);
    upload(&bob).await;
    let forged = |user: &str, device: &str| {
        json!({
            "user_id": user, "device_id": device, "algorithms": [], "keys": {}, "signatures": {},
        })
    };
    let master = json!({ "user_id": bob.user_id, "usage": ["master"], "keys": {} });
    let body = json!({
        "device_keys": {
            &bob.user_id: { &bob.device_id: forged(&bob.user_id, &bob.device_id) },
            "@eve:liar": { "A": forged("@eve:liar", "A"), "B": forged("@eve:liar", "C") },
        },
        "master_keys": { &bob.user_id: master, "@eve:liar": master },
    });
    liar.answer(Method::POST, &format!("{USER}/keys/query"), 200, body);
    let body = json!({ "device_keys": { &bob.user_id: [], "@eve:liar": [] } });
    let found = alice.post("/v3/keys/query", body).await.ok();
    let keys = &found["device_keys"][&bob.user_id][&bob.device_id];
    assert_eq!(keys["keys"], device_keys(&bob)["keys"]);
    let of_eve = found["device_keys"]["@eve:liar"].as_object().unwrap();
    assert_eq!(of_eve.keys().collect::<Vec<_>>(), ["A"]);
    assert_eq!(found["master_keys"], json!({}));
}

#[tokio::test]
async fn the_name_of_another_servers_device_is_seen_when_it_changes() {
    let network = Network::new();
    let names = |config: &mut homeserver::config::Config| {
        config.federation.share_device_names = true;
    };
    let hs1 = network.server_with("hs1", names).await;
    let hs2 = network.server("hs2").await;
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = alice.public_room().await;
    let join = format!("/v3/join/{}?server_name=hs1", segment(&room));
    bob.post(&join, json!({})).await.ok();
    let mut since = bob.sync(None, "").await["next_batch"].clone();
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    upload(&alice).await;
    let one_time = json!({ "signed_curve25519:AAAA": { "key": "base64" } });
    let keys = json!({ "one_time_keys": one_time });
    alice.post("/v3/keys/upload", keys).await.ok();
    let device = json!({ &alice.device_id: "signed_curve25519" });
    let claim = json!({ "one_time_keys": { &alice.user_id: device } });
    for _ in 0..2 {
        bob.post("/v3/keys/claim", claim.clone()).await.ok();
    }
    for name in [None, Some("Phone"), Some("Tablet")] {
        if let Some(name) = name {
            let path = format!("/v3/devices/{}", alice.device_id);
            alice.put(&path, json!({ "display_name": name })).await.ok();
        }
        let path = format!("/v3/sync?timeout=20000&since={}", since.as_str().unwrap());
        let sync = bob.get(&path).await.ok();
        assert_eq!(
            sync["device_lists"]["changed"],
            json!([alice.user_id]),
            "{sync}"
        );
        since = sync["next_batch"].clone();
        let found = bob.post("/v3/keys/query", query.clone()).await.ok();
        let device = &found["device_keys"][&alice.user_id][&alice.device_id];
        let shown = device["unsigned"].get("device_display_name");
        assert_eq!(shown.and_then(Value::as_str), name, "{found}");
    }
}
