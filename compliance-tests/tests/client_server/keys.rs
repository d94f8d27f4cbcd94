//! Client-server API, "Key management API".

use compliance_tests::{Client, World};
use serde_json::{Value, json};

fn device_keys(of: &Client) -> Value {
    json!({
        "user_id": of.user_id, "device_id": of.device_id, "algorithms": ["m.olm.v1"],
        "keys": { format!("ed25519:{}", of.device_id): "base64" }, "signatures": {},
    })
}

async fn claim(by: &Client, of: &Client) -> Value {
    let body = json!({ "one_time_keys": { &of.user_id: { &of.device_id: "signed_curve25519" } } });
    let reply = by.post("/v3/keys/claim", body).await.ok();
    reply["one_time_keys"][&of.user_id][&of.device_id].clone()
}

#[tokio::test] // "POST /keys/claim"
async fn one_time_keys_are_claimed_in_the_order_of_their_upload_then_the_fallback_key() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    for id in ["signed_curve25519:1", "signed_curve25519:0"] {
        let body = json!({ "one_time_keys": { id: { "key": id } } });
        alice.post("/v3/keys/upload", body.clone()).await.ok();
        alice.post("/v3/keys/upload", body).await.ok();
    }
    let fallback = json!({ "signed_curve25519:f": { "key": "f", "fallback": true } });
    let reply = alice
        .post("/v3/keys/upload", json!({ "fallback_keys": fallback }))
        .await
        .ok();
    assert_eq!(
        reply["one_time_key_counts"],
        json!({ "signed_curve25519": 2 })
    );
    let sync = alice.sync(None, "").await;
    assert_eq!(sync["device_one_time_keys_count"]["signed_curve25519"], 2);
    assert_eq!(
        sync["device_unused_fallback_key_types"],
        json!(["signed_curve25519"])
    );
    for id in ["signed_curve25519:1", "signed_curve25519:0"] {
        assert_eq!(claim(&bob, &alice).await, json!({ id: { "key": id } }));
    }
    for _ in 0..2 {
        assert_eq!(claim(&bob, &alice).await, fallback);
    }
    let sync = alice.sync(None, "").await;
    assert_eq!(sync["device_one_time_keys_count"]["signed_curve25519"], 0);
    assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test] // "POST /keys/query"
async fn device_keys_are_found_until_the_device_logs_out() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let keys = device_keys(&alice);
    alice
        .post("/v3/keys/upload", json!({ "device_keys": keys }))
        .await
        .ok();
    let query = json!({ "device_keys": { &alice.user_id: [] } });
    let found = bob.post("/v3/keys/query", query.clone()).await.ok();
    let found = &found["device_keys"][&alice.user_id][&alice.device_id];
    assert_eq!(found["keys"], keys["keys"]);
    alice.post("/v3/logout", json!({})).await.ok();
    let found = bob.post("/v3/keys/query", query).await.ok();
    assert_eq!(found["device_keys"][&alice.user_id], json!({}));
    assert_eq!(claim(&bob, &alice).await, Value::Null);
}

#[tokio::test] // "POST /keys/upload", "POST /keys/query"
async fn keys_of_another_shape_or_device_are_refused() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let other = json!({ "device_keys": device_keys(&alice) });
    bob.post("/v3/keys/upload", other)
        .await
        .fails(400, "M_BAD_JSON");
    let bare = json!({ "device_keys": { "user_id": bob.user_id, "device_id": bob.device_id } });
    bob.post("/v3/keys/upload", bare)
        .await
        .fails(400, "M_BAD_JSON");
    let object = json!({ "device_keys": { &alice.user_id: { "device": true } } });
    bob.post("/v3/keys/query", object)
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test] // "PUT /sendToDevice": once for a transaction, in batches, until acknowledged
async fn messages_to_a_device_arrive_once_in_order_and_in_batches() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    for number in 0..101 {
        let body = json!({ "messages": { &bob.user_id: { "*": { "number": number } } } });
        let path = format!("/v3/sendToDevice/m.test/{number}");
        alice.put(&path, body.clone()).await.ok();
        alice.put(&path, body).await.ok();
    }
    let first = bob.sync(None, "").await;
    assert_eq!(first["to_device"]["events"].as_array().unwrap().len(), 100);
    let again = bob.sync(None, "").await;
    assert_eq!(again["to_device"], first["to_device"]);
    let rest = bob.sync(first["next_batch"].as_str(), "").await;
    let last = json!([{ "type": "m.test", "sender": alice.user_id, "content": { "number": 100 } }]);
    assert_eq!(rest["to_device"]["events"], last);
    let after = bob.sync(rest["next_batch"].as_str(), "").await;
    assert_eq!(after["to_device"], Value::Null);
    assert_eq!(bob.sync(None, "").await["to_device"], Value::Null);
}
