//! Server-server API, "Querying for information": profiles. Client-server API, "Profiles", of other servers' users.

use compliance_tests::{Network, segment};
use http::Method;
use serde_json::json;

const QUERY: &str = "/_matrix/federation/v1/query";

#[tokio::test] // "The profile for the user"; custom fields
async fn a_whole_profile_is_told_or_the_one_field_that_is_asked_for() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    for (field, value) in [
        ("displayname", "Alice"),
        ("m.tz", "Europe/Paris"),
        ("com.example.pet", "cat"),
    ] {
        let path = format!("/v3/profile/{}/{field}", segment(&alice.user_id));
        alice.put(&path, json!({ field: value })).await.ok();
    }
    let path = format!("{QUERY}/profile?user_id={}", segment(&alice.user_id));
    let whole = other.ask(&hs1, Method::GET, &path, None).await.ok();
    assert_eq!(
        whole,
        json!({ "displayname": "Alice", "m.tz": "Europe/Paris", "com.example.pet": "cat" })
    );
    for (field, value) in [("displayname", "Alice"), ("com.example.pet", "cat")] {
        let path = format!("{path}&field={field}");
        let one = other.ask(&hs1, Method::GET, &path, None).await.ok();
        assert_eq!(one, json!({ field: value }));
    }
    let path = format!("{path}&field=avatar_url");
    let none = other.ask(&hs1, Method::GET, &path, None).await.ok();
    assert_eq!(none, json!({}));
}

#[tokio::test] // "The user does not exist", "MUST be a user local to the receiving homeserver"
async fn a_user_who_is_not_here_has_no_profile() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let ask = async |query: &str| {
        let path = format!("{QUERY}/profile{query}");
        other.ask(&hs1, Method::GET, &path, None).await
    };
    ask("?user_id=%40nobody%3Ahs1")
        .await
        .fails(404, "M_NOT_FOUND");
    ask("?user_id=%40a%3Aother")
        .await
        .fails(400, "M_INVALID_PARAM");
    ask("?user_id=a").await.fails(400, "M_INVALID_PARAM");
    ask("").await.fails(400, "M_MISSING_PARAM");
}

#[tokio::test] // "Unsupported endpoints"
async fn another_type_of_query_is_not_recognised() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let path = format!("{QUERY}/weather?city=paris");
    let reply = other.ask(&hs1, Method::GET, &path, None).await;
    reply.fails(404, "M_UNRECOGNIZED");
}

#[tokio::test] // "Requesting servers MAY wish to cache the response"
async fn the_profile_of_another_servers_user_is_asked_for_and_remembered_for_five_minutes() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let own = format!("/v3/profile/{}", segment(&bob.user_id));
    let name = async |name: &str| {
        let body = json!({ "displayname": name });
        bob.put(&format!("{own}/displayname"), body).await.ok();
    };
    name("Bob").await;
    let asked = || network.count("hs1", "hs2", "/query/profile");
    let whole = alice.get(&own).await.ok();
    assert_eq!(whole, json!({ "displayname": "Bob" }));
    name("Robert").await;
    let field = alice.get(&format!("{own}/displayname")).await.ok();
    assert_eq!(field, json!({ "displayname": "Bob" }));
    assert_eq!(asked(), 1);
    network.pass_ms(5 * 60 * 1_000);
    let field = alice.get(&format!("{own}/displayname")).await.ok();
    assert_eq!(field, json!({ "displayname": "Robert" }));
    assert_eq!(asked(), 2);
    let missing = alice.get(&format!("{own}/avatar_url")).await;
    missing.fails(404, "M_NOT_FOUND");
    assert_eq!(asked(), 2);
}

#[tokio::test] // "GET /profile/{userId}": 404, and what another server does not tell
async fn an_unknown_user_of_another_server_is_not_found_and_a_silent_server_is_a_bad_gateway() {
    let network = Network::new();
    let (hs1, _hs2) = (network.server("hs1").await, network.server("hs2").await);
    let alice = hs1.register("alice").await;
    for _ in 0..2 {
        let reply = alice.get("/v3/profile/%40nobody%3Ahs2").await;
        reply.fails(404, "M_NOT_FOUND");
    }
    assert_eq!(network.count("hs1", "hs2", "/query/profile"), 1);
    let reply = alice.get("/v3/profile/%40nobody%3Ahs3").await;
    reply.fails(502, "M_UNKNOWN");
    let closed = network.stranger("closed");
    let body = json!({ "errcode": "M_FORBIDDEN", "error": "no" });
    closed.answer(Method::GET, &format!("{QUERY}/profile"), 403, body);
    let reply = alice.get("/v3/profile/%40someone%3Aclosed").await;
    reply.fails(403, "M_FORBIDDEN");
}
