//! Server-server API, "Content Repository". Client-server API, "Content repository", for media of other servers.

use axum::{Router, routing::get};
use compliance_tests::{Client, Network, Reply, World, png};
use homeserver::media::remote;
use http::Method;
use serde_json::json;

/// How many bytes are two thirds of a megabyte, about.
const LARGE: usize = 700_000;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Uploads bytes; `server/id`.
async fn upload(world: &World, by: &Client, kind: &str, bytes: Vec<u8>) -> String {
    let path = "/_matrix/media/v3/upload?filename=cat.txt";
    let reply = world
        .raw(Method::POST, path, Some(&by.token), kind, bytes)
        .await
        .ok();
    let uri = reply["content_uri"].as_str().unwrap();
    uri.trim_start_matches("mxc://").to_owned()
}

async fn download(by: &Client, path: &str) -> Reply {
    by.get(&format!("/v1/media/download/{path}")).await
}

fn federated(path: &str) -> String {
    let id = path.split('/').next_back().unwrap();
    format!("/_matrix/federation/v1/media/download/{id}")
}

#[tokio::test] // "The response body is `multipart/mixed`", with a JSON part and the media
async fn media_are_given_to_other_servers_in_two_parts() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let path = upload(&hs1, &alice, "text/plain", b"the bytes".to_vec()).await;
    let reply = other.ask(&hs1, Method::GET, &federated(&path), None).await;
    assert_eq!(reply.status, 200);
    let kind = reply.headers["content-type"].to_str().unwrap().to_owned();
    let boundary = kind.strip_prefix("multipart/mixed; boundary=").unwrap();
    let length = reply.headers["content-length"].to_str().unwrap();
    assert_eq!(length, reply.bytes.len().to_string());
    let body = String::from_utf8(reply.bytes).unwrap();
    let parts: Vec<&str> = body.split(&format!("--{boundary}")).collect();
    assert_eq!(parts[1], "\r\nContent-Type: application/json\r\n\r\n{}\r\n");
    assert!(
        parts[2].starts_with("\r\nContent-Type: text/plain"),
        "{}",
        parts[2]
    );
    assert!(parts[2].contains("cat.txt"), "{}", parts[2]);
    assert!(parts[2].ends_with("\r\n\r\nthe bytes\r\n"), "{}", parts[2]);
    assert_eq!(parts[3], "--\r\n");
    let reply = other
        .ask(&hs1, Method::GET, &federated("hs1/nosuch"), None)
        .await;
    reply.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "GET /_matrix/federation/v1/media/thumbnail/{mediaId}"
async fn thumbnails_are_given_to_other_servers() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let path = upload(&hs1, &alice, "image/png", png(64, 64)).await;
    let path = federated(&path).replace("/download/", "/thumbnail/");
    let small = format!("{path}?width=32&height=32&method=crop");
    let reply = other.ask(&hs1, Method::GET, &small, None).await;
    assert_eq!(reply.status, 200);
    let kind = reply.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("multipart/mixed"), "{kind}");
    let body = String::from_utf8_lossy(&reply.bytes).into_owned();
    assert!(body.contains("Content-Type: image/"), "{body}");
    let reply = other.ask(&hs1, Method::GET, &path, None).await;
    reply.fails(400, "M_MISSING_PARAM");
}

#[tokio::test] // "GET /_matrix/client/v1/media/download/{serverName}/{mediaId}"
async fn media_of_another_server_are_fetched_once_and_kept() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let path = upload(&hs2, &bob, "text/plain", b"the bytes".to_vec()).await;
    let (first, second) = tokio::join!(download(&alice, &path), download(&alice, &path));
    for reply in [first, second] {
        assert_eq!(
            (reply.status.as_u16(), &*reply.bytes),
            (200, &b"the bytes"[..])
        );
        let header = |name| reply.headers[name].to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with("text/plain"));
        assert!(header("content-disposition").contains("cat.txt"));
        assert!(header("content-security-policy").contains("sandbox"));
    }
    assert_eq!(network.count("hs1", "hs2", "/media/"), 1);
    network.cut("hs1", "hs2");
    for prefix in ["/v1/media", "/_matrix/media/v3", "/_matrix/media/r0"] {
        let reply = alice.get(&format!("{prefix}/download/{path}")).await;
        assert_eq!(reply.bytes, b"the bytes");
    }
    assert_eq!(network.count("hs1", "hs2", "/media/"), 1);
}

#[tokio::test] // "GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}"
async fn thumbnails_of_another_servers_images_are_made_here() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let path = upload(&hs2, &bob, "image/png", png(64, 64)).await;
    let small = format!("/v1/media/thumbnail/{path}?width=32&height=32&method=crop");
    for _ in 0..2 {
        let reply = alice.get(&small).await;
        assert_eq!(reply.status, 200);
        let kind = reply.headers["content-type"].to_str().unwrap();
        assert!(kind.starts_with("image/"), "{kind}");
    }
    assert_eq!(network.count("hs1", "hs2", "/media/"), 1);
}

#[tokio::test] // "404 M_UNRECOGNIZED": servers before v1.11
async fn a_server_without_the_endpoint_is_asked_in_the_old_way() {
    let network = Network::new();
    let (hs1, old) = (network.server("hs1").await, network.stranger("old"));
    let alice = hs1.register("alice").await;
    let file = || {
        std::future::ready((
            [
                ("content-type", "text/plain"),
                ("content-disposition", "inline; filename=old.txt"),
            ],
            "old bytes",
        ))
    };
    old.serve(Router::new().route("/_matrix/media/v3/download/{server}/{id}", get(file)));
    for (errcode, id) in [("M_UNRECOGNIZED", "abc"), ("M_NOT_FOUND", "def")] {
        let body = json!({ "errcode": errcode, "error": "" });
        let path = "/_matrix/federation/v1/media/download/{id}";
        old.answer(Method::GET, path, 404, body);
        let reply = download(&alice, &format!("old/{id}")).await;
        if errcode == "M_UNRECOGNIZED" {
            assert_eq!(reply.bytes, b"old bytes");
            let name = reply.headers["content-disposition"].to_str().unwrap();
            assert!(name.contains("old.txt"), "{name}");
        } else {
            reply.fails(404, "M_NOT_FOUND");
        }
    }
    let asked = network.requests("hs1", "old");
    let asked: Vec<&String> = asked
        .iter()
        .filter(|request| request.contains("/v3/"))
        .collect();
    assert_eq!(
        asked,
        ["GET /_matrix/media/v3/download/old/abc?allow_remote=false&timeout_ms=20000"]
    );
}

#[tokio::test]
async fn media_that_are_not_there_are_not_asked_for_again_for_a_minute() {
    let network = Network::new();
    let (hs1, _hs2) = (network.server("hs1").await, network.server("hs2").await);
    let alice = hs1.register("alice").await;
    for (pass_ms, asked) in [(0, 1), (59_999, 1), (1, 2)] {
        network.pass_ms(pass_ms);
        download(&alice, "hs2/nosuch")
            .await
            .fails(404, "M_NOT_FOUND");
        assert_eq!(network.count("hs1", "hs2", "/media/"), asked);
    }
    download(&alice, "nowhere/abc")
        .await
        .fails(502, "M_UNKNOWN");
}

#[tokio::test] // "`allow_remote`: Indicates to the server that it should not attempt to fetch the media"
async fn with_allow_remote_false_no_other_server_is_asked() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let path = upload(&hs2, &bob, "text/plain", b"the bytes".to_vec()).await;
    let path = format!("/_matrix/media/v3/download/{path}");
    let reply = alice.get(&format!("{path}?allow_remote=false")).await;
    reply.fails(404, "M_NOT_FOUND");
    assert_eq!(network.count("hs1", "hs2", "/media/"), 0);
    assert_eq!(alice.get(&path).await.bytes, b"the bytes");
}

#[tokio::test] // media.remote_file_mb
async fn a_file_that_is_too_large_is_not_kept() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| config.media.remote_file_mb = 1)
        .await;
    let hs2 = network.server("hs2").await;
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let most = 1 << 20;
    let fits = upload(&hs2, &bob, "text/plain", vec![1; most]).await;
    assert_eq!(download(&alice, &fits).await.bytes.len(), most);
    let larger = upload(&hs2, &bob, "text/plain", vec![1; most + 1]).await;
    download(&alice, &larger).await.fails(413, "M_TOO_LARGE");
    let far_larger = upload(&hs2, &bob, "text/plain", vec![1; 2 * most]).await;
    download(&alice, &far_larger).await.fails(502, "M_UNKNOWN");
}

#[tokio::test] // media.remote_total_mb
async fn what_was_asked_for_the_longest_ago_goes_when_there_is_too_much() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| config.media.remote_total_mb = 2)
        .await;
    let hs2 = network.server("hs2").await;
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let mut paths = Vec::new();
    for number in 0..3 {
        paths.push(upload(&hs2, &bob, "text/plain", vec![number; LARGE]).await);
    }
    let asked = || network.count("hs1", "hs2", "/media/");
    for path in &paths[..2] {
        assert_eq!(download(&alice, path).await.bytes.len(), LARGE);
        network.pass_ms(DAY_MS);
    }
    // The first is asked for again: the second has been waiting longer.
    download(&alice, &paths[0]).await;
    assert_eq!(asked(), 2);
    download(&alice, &paths[2]).await;
    network.pass_ms(DAY_MS);
    assert_eq!(asked(), 3);
    for path in [&paths[0], &paths[2]] {
        assert_eq!(download(&alice, path).await.bytes.len(), LARGE);
    }
    assert_eq!(asked(), 3);
    assert_eq!(download(&alice, &paths[1]).await.bytes.len(), LARGE);
    assert_eq!(asked(), 4);
}

#[tokio::test] // media.remote_lifetime_seconds
async fn what_nobody_asks_for_goes_after_some_time_with_its_thumbnails() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| {
            config.media.remote_lifetime_seconds = 10 * 86_400;
        })
        .await;
    let hs2 = network.server("hs2").await;
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let path = upload(&hs2, &bob, "image/png", png(64, 64)).await;
    let twin = upload(&hs2, &bob, "image/png", png(64, 64)).await;
    let own = upload(&hs1, &alice, "image/png", png(64, 64)).await;
    let small = |path: &str| format!("/v1/media/thumbnail/{path}?width=32&height=32&method=crop");
    for path in [&path, &twin, &own] {
        assert_eq!(alice.get(&small(path)).await.status, 200);
    }
    let asked = || network.count("hs1", "hs2", "/media/");
    assert_eq!(asked(), 2);
    let app = &hs1.server().app;
    network.pass_ms(10 * DAY_MS);
    remote::clean(app).await.unwrap();
    // Asked for on the tenth day: it stays, and so does the file that both have in common.
    assert_eq!(download(&alice, &twin).await.bytes, png(64, 64));
    network.pass_ms(DAY_MS);
    remote::clean(app).await.unwrap();
    assert_eq!(alice.get(&small(&twin)).await.status, 200);
    assert_eq!(asked(), 2);
    download(&alice, &path).await;
    assert_eq!(asked(), 3);
    network.pass_ms(11 * DAY_MS);
    remote::clean(app).await.unwrap();
    let remote = app.config.media_directory().join("remote/content");
    assert_eq!(files(&remote), 0);
    assert_eq!(alice.get(&small(&own)).await.status, 200);
    assert_eq!(download(&alice, &own).await.bytes, png(64, 64));
}

/// How many files there are below a directory.
fn files(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap();
    let count = |path: std::path::PathBuf| if path.is_dir() { files(&path) } else { 1 };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}
