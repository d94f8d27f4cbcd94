//! Server-server API, "Request Authentication": requests of servers to each other.

use std::time::Duration;

use axum::{Router, body::Body, response::Response, routing::any};
use compliance_tests::{Network, Stranger, World};
use homeserver::{
    http::{Origin, RawRequest, Routes},
    peers::{self, Limits, PeerError},
    server::App,
};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use ruma::{
    api::federation::{discovery::get_server_version, query::get_profile_information},
    server_name, user_id,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// A router that says who asked for what, at the paths of signed endpoints, and all else that `world` answers.
fn signed_routes(world: &World) -> Router {
    async fn echo(
        _: App,
        origin: Origin,
        request: RawRequest,
    ) -> homeserver::error::ApiResult<Value> {
        Ok(json!({ "displayname": origin.name, "body": request.json::<Value>()? }))
    }
    let mut routes = Routes::new(world.server().app.clone());
    routes.raw(Method::GET, "/_matrix/federation/v1/query/profile", echo);
    routes.raw(Method::GET, "/_matrix/federation/v1/event/{event_id}", echo);
    routes.raw(Method::PUT, "/_matrix/federation/v1/send/{txn_id}", echo);
    routes
        .into_router()
        .fallback_service(world.server().router.clone())
}

/// A request to `router` with this `Authorization`; status and body.
async fn request(
    router: &Router,
    method: &Method,
    target: &str,
    authorization: Option<&str>,
    body: &[u8],
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(target);
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Body::from(body.to_vec())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn signed(
    router: &Router,
    by: &Stranger,
    method: Method,
    target: &str,
    body: &[u8],
) -> (StatusCode, Value) {
    let authorization = by.authorization("hs1", &method, target, body);
    request(router, &method, target, Some(&authorization), body).await
}

#[track_caller]
fn assert_refused(answer: &(StatusCode, Value), status: u16, errcode: &str) {
    let (found, body) = answer;
    assert_eq!(
        (found.as_u16(), &body["errcode"]),
        (status, &json!(errcode)),
        "{body}"
    );
}

fn profile() -> get_profile_information::v1::Request {
    get_profile_information::v1::Request::new(user_id!("@a b:hs2").to_owned())
}

#[tokio::test]
async fn two_servers_ask_each_other_signed_and_unsigned() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    for (from, to) in [(&hs1, &hs2), (&hs2, &hs1)] {
        let name = ruma::ServerName::parse(to.name()).unwrap();
        let request = get_server_version::v1::Request::new();
        let answer = peers::ask(&from.server().app, &name, request)
            .await
            .unwrap();
        assert_eq!(answer.server.unwrap().name.as_deref(), Some("Guildhall"));
        network.serve(&name, signed_routes(to));
        let answer = peers::ask(&from.server().app, &name, profile())
            .await
            .unwrap();
        assert_eq!(answer.get("displayname"), Some(&json!(from.name())));
    }
    // The keys were asked for once, by whom the request was made to.
    assert_eq!(network.count("hs1", "hs2", "/key/"), 1);
    assert_eq!(network.count("hs2", "hs1", "/key/"), 1);
}

#[tokio::test] // "the target field should include the full path …, including the ? and any query parameters"
async fn the_signature_is_over_the_target_as_it_was_sent() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let (router, evil) = (signed_routes(&hs1), network.stranger("other"));
    for target in [
        "/_matrix/federation/v1/event/%24event",
        "/_matrix/federation/v1/event/$event",
        "/_matrix/federation/v1/event/%21room%3Ahs",
        "/_matrix/federation/v1/event/a+b%2Fc",
        "/_matrix/federation/v1/query/profile?user_id=@a:b",
        "/_matrix/federation/v1/query/profile?user_id=%40a%3Ab&x=+%20",
        "/_matrix/federation/v1/query/profile?",
        "/_matrix/federation/v1/query/profile",
    ] {
        let (status, body) = signed(&router, &evil, Method::GET, target, b"").await;
        assert_eq!(
            (status, &body["displayname"]),
            (StatusCode::OK, &json!("other")),
            "{target}"
        );
    }
    let (method, body) = (Method::GET, b"");
    let event = "/_matrix/federation/v1/event/";
    for (sent, signed_for) in [
        ("$event", "%24event"),
        ("%24event", "$event"),
        ("a%2fb", "a%2Fb"),
        ("a", "a?"),
    ] {
        let authorization =
            evil.authorization("hs1", &method, &format!("{event}{signed_for}"), body);
        let answer = request(
            &router,
            &method,
            &format!("{event}{sent}"),
            Some(&authorization),
            body,
        )
        .await;
        assert_refused(&answer, 401, "M_UNAUTHORIZED");
    }
}

#[tokio::test] // "content": absent without a body, present with one
async fn the_signature_is_over_the_body() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let (router, other) = (signed_routes(&hs1), network.stranger("other"));
    let (method, target) = (Method::PUT, "/_matrix/federation/v1/send/1");
    for body in [&b""[..], b"{}", br#"{"b": "\u00e9", "a": [1]}"#] {
        let (status, _) = signed(&router, &other, method.clone(), target, body).await;
        assert_eq!(status, StatusCode::OK);
    }
    let bodies = [&b""[..], b"{}", br#"{"a":1}"#, br#"{"a":2}"#];
    for sent in bodies {
        for signed_for in bodies.into_iter().filter(|signed_for| *signed_for != sent) {
            let authorization = other.authorization("hs1", &method, target, signed_for);
            let answer = request(&router, &method, target, Some(&authorization), sent).await;
            assert_refused(&answer, 401, "M_UNAUTHORIZED");
        }
    }
    // The method counts, too.
    let authorization = other.authorization("hs1", &Method::GET, target, b"");
    let answer = request(&router, &method, target, Some(&authorization), b"").await;
    assert_refused(&answer, 401, "M_UNAUTHORIZED");
}

#[tokio::test] // "the receiving server must deny the request with an HTTP status code 401"
async fn a_request_for_another_server_is_denied_and_one_for_nobody_is_not() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let (router, other) = (signed_routes(&hs1), network.stranger("other"));
    let (method, target) = (Method::GET, "/_matrix/federation/v1/query/profile");
    let elsewhere = other.authorization("hs2", &method, target, b"");
    let answer = request(&router, &method, target, Some(&elsewhere), b"").await;
    assert_refused(&answer, 401, "M_UNAUTHORIZED");
    let here = other.authorization("hs1", &method, target, b"");
    let old = here.replace("destination=hs1,", "");
    assert_ne!(here, old);
    let (status, _) = request(&router, &method, target, Some(&old), b"").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test] // "a 401 M_UNAUTHORIZED"
async fn who_is_not_who_they_say_is_denied() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let (router, other) = (signed_routes(&hs1), network.stranger("other"));
    let (method, target) = (Method::GET, "/_matrix/federation/v1/query/profile");
    let good = other.authorization("hs1", &method, target, b"");
    let in_anothers_name = good.replace("other", "hs2");
    let in_our_name = good.replace("other", "hs1");
    let in_nobodys_name = good.replace("other", "nobody");
    let with_another_key = other
        .with_key(9, "stranger")
        .authorization("hs1", &method, target, b"");
    let with_an_unknown_key = other
        .with_key(9, "unknown")
        .authorization("hs1", &method, target, b"");
    drop(network.server("hs2").await);
    for authorization in [
        None,
        Some(""),
        Some("Bearer token"),
        Some("X-Matrix"),
        Some("X-Matrix origin=other"),
        Some("X-Matrix origin=other,key=\"ed25519:stranger\",sig=AAAA"),
        Some(&in_anothers_name),
        Some(&in_our_name),
        Some(&in_nobodys_name),
        Some(&with_another_key),
        Some(&with_an_unknown_key),
        Some(&good.replace("ed25519:", "rsa:")),
        Some(&"X-Matrix ".repeat(10_000)),
    ] {
        let answer = request(&router, &method, target, authorization, b"").await;
        assert_refused(&answer, 401, "M_UNAUTHORIZED");
    }
    let (status, _) = request(&router, &method, target, Some(&good), b"").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_server_without_federation_tells_its_keys_and_its_version_and_nothing_else() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| config.federation.enabled = false)
        .await;
    let (router, other) = (signed_routes(&hs1), network.stranger("other"));
    let target = "/_matrix/federation/v1/query/profile";
    let answer = signed(&router, &other, Method::GET, target, b"").await;
    assert_refused(&answer, 403, "M_FORBIDDEN");
    assert_eq!(network.requests("hs1", "other"), Vec::<String>::new());
    for open in ["/_matrix/key/v2/server", "/_matrix/federation/v1/version"] {
        let (status, _) = request(&router, &Method::GET, open, None, b"").await;
        assert_eq!(status, StatusCode::OK);
    }
    let denied = peers::ask(&hs1.server().app, server_name!("other"), profile()).await;
    assert!(matches!(denied, Err(PeerError::Denied(_))));
    assert_eq!(network.requests("hs1", "other"), Vec::<String>::new());
}

#[tokio::test]
async fn who_is_not_on_the_lists_neither_asks_nor_is_asked() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| {
            config.federation.allow_servers = vec!["*.example".to_owned(), "hs?".to_owned()];
            config.federation.deny_servers =
                vec!["evil.example".to_owned(), "*.EVIL.example".to_owned()];
        })
        .await;
    let router = signed_routes(&hs1);
    let target = "/_matrix/federation/v1/query/profile";
    for (name, allowed) in [
        ("good.example", true),
        ("good.example:8448", true),
        ("hs9", true),
        ("hs10", false),
        ("other", false),
        ("evil.example", false),
        ("Evil.Example:99", false),
        ("x.evil.example", false),
        ("notevil.example", true),
    ] {
        let stranger = network.stranger(name);
        stranger.answer(Method::GET, target, 200, json!({}));
        let answer = signed(&router, &stranger, Method::GET, target, b"").await;
        let asked = peers::ask(
            &hs1.server().app,
            stranger.name().try_into().unwrap(),
            profile(),
        )
        .await;
        if allowed {
            assert_eq!(answer.0, StatusCode::OK, "{name}");
            asked.unwrap();
        } else {
            assert_refused(&answer, 403, "M_FORBIDDEN");
            assert!(matches!(asked, Err(PeerError::Denied(_))), "{name}");
            assert_eq!(network.requests("hs1", name), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn an_error_of_another_server_is_told_with_all_it_says() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let path = "/_matrix/federation/v1/query/profile";
    let error =
        json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no", "room_version": "9" });
    other.answer(Method::GET, path, 400, error.clone());
    match peers::ask(&hs1.server().app, server_name!("other"), profile()).await {
        Err(PeerError::Refused {
            status,
            errcode,
            message,
            body,
            ..
        }) => {
            assert_eq!(
                (status.as_u16(), &*errcode, &*message),
                (400, "M_INCOMPATIBLE_ROOM_VERSION", "no")
            );
            assert_eq!(Value::Object(body), error);
        }
        other => panic!("{other:?}"),
    }
    // Neither a redirect nor something else than was asked for is an answer.
    for (status, body) in [(302, json!({})), (200, json!([])), (200, json!("x"))] {
        other.answer(Method::GET, path, status, body);
        let answer = peers::ask(&hs1.server().app, server_name!("other"), profile()).await;
        assert!(
            matches!(answer, Err(PeerError::Unreachable { .. })),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_is_limited_in_size_and_in_time() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let app = &hs1.server().app;
    let path = "/_matrix/federation/v1/query/profile";
    // 200 MB, never as a whole anywhere.
    let endless = || async {
        let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
        let chunks = futures_util::stream::iter(
            (0..200).map(move |_| Ok::<_, std::io::Error>(chunk.clone())),
        );
        Response::new(Body::from_stream(chunks))
    };
    other.serve(Router::new().route(path, any(endless)));
    match peers::ask(app, server_name!("other"), profile()).await {
        Err(PeerError::Unreachable { cause, .. }) => {
            assert!(cause.contains("larger than 10485760"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
    // The head comes, and then nothing ever.
    let silent = || async {
        Response::new(Body::from_stream(futures_util::stream::pending::<
            Result<bytes::Bytes, std::io::Error>,
        >()))
    };
    other.serve(Router::new().route(path, any(silent)));
    let limits = Limits {
        timeout: Duration::from_millis(50),
        bytes_max: 1_000,
    };
    match peers::ask_within(app, server_name!("other"), profile(), limits).await {
        Err(PeerError::Unreachable { cause, .. }) => assert!(cause.contains("in time"), "{cause}"),
        other => panic!("{other:?}"),
    }
    // An answer of exactly the limit is one.
    other.answer(
        Method::GET,
        path,
        200,
        json!({ "displayname": "x".repeat(100) }),
    );
    for (bytes_max, good) in [(118, true), (117, false)] {
        let limits = Limits {
            timeout: Duration::from_mins(1),
            bytes_max,
        };
        let answer = peers::ask_within(app, server_name!("other"), profile(), limits).await;
        assert_eq!(answer.is_ok(), good, "{bytes_max}: {answer:?}");
    }
}

#[tokio::test]
async fn a_server_that_was_not_reached_is_left_alone_until_half_a_minute_later_or_it_asks_itself() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let path = "/_matrix/federation/v1/query/profile";
    other.answer(Method::GET, path, 200, json!({}));
    let app = &hs1.server().app;
    let ask = || peers::ask(app, server_name!("other"), profile());
    ask().await.unwrap();
    network.cut("hs1", "other");
    for _ in 0..3 {
        assert!(matches!(ask().await, Err(PeerError::Unreachable { .. })));
    }
    assert_eq!(network.count("hs1", "other", "profile"), 2);
    network.heal("hs1", "other");
    network.pass_ms(29_999);
    ask().await.unwrap_err();
    network.pass_ms(1);
    ask().await.unwrap();

    network.cut("hs1", "other");
    ask().await.unwrap_err();
    network.heal("hs1", "other");
    // It asks for something: its key is known from before.
    network.pass_ms(30_000);
    let router = signed_routes(&hs1);
    let (status, _) = signed(&router, &other, Method::GET, path, b"").await;
    assert_eq!(status, StatusCode::OK);
    network.cut("hs1", "other");
    ask().await.unwrap_err();
    network.heal("hs1", "other");
    let (status, _) = signed(&router, &other, Method::GET, path, b"").await;
    assert_eq!(status, StatusCode::OK);
    ask().await.unwrap();
}

#[tokio::test]
async fn a_reply_that_is_lost_is_no_answer_although_the_request_arrived() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    network.lose_replies("hs1", "hs2", 1);
    let version = || {
        let request = get_server_version::v1::Request::new();
        peers::ask(&hs1.server().app, server_name!("hs2"), request)
    };
    assert!(matches!(
        version().await,
        Err(PeerError::Unreachable { .. })
    ));
    version().await.unwrap();
    assert_eq!(network.count("hs1", hs2.name(), "/version"), 2);
}

#[tokio::test] // "Unsupported endpoints"
async fn an_unknown_path_and_a_wrong_method_are_told_apart() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let ask = |method, path| other.ask(&hs1, method, path, None);
    ask(Method::GET, "/_matrix/federation/v1/nothing")
        .await
        .fails(404, "M_UNRECOGNIZED");
    ask(Method::PUT, "/_matrix/federation/v1/version")
        .await
        .fails(405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn nobody_asks_themselves_or_a_name_that_is_too_long() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let long = format!("{}.example", "x".repeat(250));
    for name in ["hs1", &long] {
        let name = ruma::ServerName::parse(name).unwrap();
        let answer = peers::ask(&hs1.server().app, &name, profile()).await;
        assert!(
            matches!(answer, Err(PeerError::Unreachable { .. })),
            "{answer:?}"
        );
        assert_eq!(network.requests("hs1", name.as_str()), Vec::<String>::new());
    }
}
