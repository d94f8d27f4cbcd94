//! What the server tells those who run it.

use compliance_tests::World;
use http::Method;
use serde_json::json;

#[tokio::test]
async fn a_server_that_can_store_something_is_healthy() {
    let world = World::new().await;
    let reply = world.request(Method::GET, "/health", None, None).await;
    assert_eq!(reply.ok(), json!({ "status": "ok" }));
}

#[tokio::test]
async fn metrics_count_requests_and_measure_the_path_of_a_message() {
    let world = World::with(|config| {
        config.testing.rate_limits_off = false;
        config.limits.per_user.messages.burst = 2;
    })
    .await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    for _ in 0..2 {
        alice.say(&room, "hello").await;
    }
    let content = json!({ "msgtype": "m.text", "body": "too much" });
    let reply = alice.send(&room, "m.room.message", content).await;
    reply.fails(429, "M_LIMIT_EXCEEDED");
    let reply = world.request(Method::GET, "/metrics", None, None).await;
    assert_eq!(reply.status, 200);
    assert!(
        reply.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let text = String::from_utf8(reply.bytes).unwrap();
    let has = |line: &str| assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    let route =
        "method=\"PUT\",route=\"/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}\"";
    has(&format!(
        "guildhall_http_requests_total{{{route},status=\"200\"}} 2"
    ));
    has(&format!(
        "guildhall_http_requests_total{{{route},status=\"429\"}} 1"
    ));
    has(&format!(
        "guildhall_http_request_seconds_count{{{route}}} 3"
    ));
    for stage in ["receive", "turn", "decide", "flush"] {
        has(&format!(
            "guildhall_send_stage_seconds_count{{stage=\"{stage}\"}} 2"
        ));
    }
    has("guildhall_rate_limited_total{doing=\"messages\"} 1");
    let position = world.server().app.store.published();
    has(&format!("guildhall_log_position {position}"));
    has("guildhall_waiting_requests 0");
    for name in [
        "guildhall_log_reader_lag{reader=\"wakeups\"}",
        "guildhall_send_stage_seconds_count{stage=\"fan_out\"}",
        "guildhall_store_disk_bytes",
        "guildhall_resident_memory_bytes",
        "guildhall_cache_entries{cache=\"rooms\"}",
        "guildhall_cache_bytes{cache=\"events\"}",
        "guildhall_commit_queue_length",
        "guildhall_accounts_loaded",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(name)),
            "{name}\n{text}"
        );
    }
    for private in ["alice", &*room] {
        assert!(!text.contains(private), "{private} is in the metrics");
    }
}

#[tokio::test]
async fn what_is_too_large_for_the_store_costs_one_request_and_not_the_server() {
    let world = World::on_disk(|_| {}).await;
    let alice = world.register("alice").await;
    let large = "x".repeat(2 << 20);
    let messages = json!({ "messages": { "@alice:hs1": { "*": { "large": large } } } });
    let reply = alice.put("/v3/sendToDevice/m.test/1", messages).await;
    reply.fails(413, "M_TOO_LARGE");
    let path = "/v3/user/@alice:hs1/account_data/org.example";
    let reply = alice.put(path, json!({ "large": large })).await;
    reply.fails(413, "M_TOO_LARGE");
    alice.put(path, json!({ "small": true })).await.ok();
}
