//! Client-server API, "Content repository".

use compliance_tests::{Client, Reply, World, png, png_claiming};
use http::Method;
use serde_json::json;

async fn upload(world: &World, client: &Client, query: &str, kind: &str, body: Vec<u8>) -> Reply {
    world
        .raw(
            Method::POST,
            &format!("/_matrix/media/v3/upload{query}"),
            Some(&client.token),
            kind,
            body,
        )
        .await
}

/// `server/id` of a content URI.
fn path(uri: &serde_json::Value) -> String {
    uri["content_uri"]
        .as_str()
        .unwrap()
        .trim_start_matches("mxc://")
        .to_owned()
}

#[tokio::test] // "POST /upload", "GET /_matrix/client/v1/media/download"
async fn what_is_uploaded_comes_back_as_it_was() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let bytes = b"not really an image".to_vec();
    let uri = path(
        &upload(
            &world,
            &alice,
            "?filename=%E2%98%83.png",
            "img/png",
            bytes.clone(),
        )
        .await
        .ok(),
    );
    let reply = alice.get(&format!("/v1/media/download/{uri}")).await;
    assert_eq!(reply.bytes, bytes);
    assert_eq!(reply.headers["content-type"], "img/png");
    assert!(
        reply.headers["content-disposition"]
            .to_str()
            .unwrap()
            .contains("%E2%98%83.png")
    );
    assert!(
        reply.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("sandbox")
    );
    let renamed = alice
        .get(&format!("/v1/media/download/{uri}/other.txt"))
        .await;
    assert!(
        renamed.headers["content-disposition"]
            .to_str()
            .unwrap()
            .contains("other.txt")
    );
    world
        .request(
            Method::GET,
            &format!("/_matrix/client/v1/media/download/{uri}"),
            None,
            None,
        )
        .await
        .fails(401, "M_MISSING_TOKEN");
    let legacy = world
        .request(
            Method::GET,
            &format!("/_matrix/media/v3/download/{uri}"),
            None,
            None,
        )
        .await;
    assert_eq!(legacy.bytes, bytes);
    alice
        .get("/v1/media/download/hs1/nosuchmedia")
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get("/v1/media/download/elsewhere.example/nosuchmedia")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "Size limits": m.upload.size is what is enforced
async fn an_upload_over_the_limit_is_refused_and_leaves_nothing() {
    let world = World::with(|config| config.limits.upload_mb = 1).await;
    let alice = world.register("alice").await;
    assert_eq!(
        alice.get("/v1/media/config").await.ok(),
        json!({ "m.upload.size": 1_048_576 })
    );
    upload(&world, &alice, "", "a/b", vec![0; 1_048_576])
        .await
        .ok();
    upload(&world, &alice, "", "a/b", vec![0; 1_048_577])
        .await
        .fails(413, "M_TOO_LARGE");
}

#[tokio::test] // "Thumbnails"
async fn a_thumbnail_is_smaller_and_made_of_images_only() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let uri = path(
        &upload(&world, &alice, "", "image/png", png(400, 300))
            .await
            .ok(),
    );
    for _ in 0..2 {
        let small = alice
            .get(&format!(
                "/v1/media/thumbnail/{uri}?width=32&height=32&method=crop"
            ))
            .await;
        assert_eq!(small.headers["content-type"], "image/png");
        assert_eq!(small.bytes[16..24], [0, 0, 0, 32, 0, 0, 0, 32]);
    }
    let text = path(
        &upload(&world, &alice, "", "image/png", b"hello".to_vec())
            .await
            .ok(),
    );
    alice
        .get(&format!("/v1/media/thumbnail/{text}?width=32&height=32"))
        .await
        .fails(400, "M_UNKNOWN");
    alice
        .get(&format!("/v1/media/thumbnail/{uri}?width=no&height=32"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // A zip bomb costs nothing
async fn an_image_that_claims_to_be_huge_is_not_opened() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let bomb = png_claiming(8, 8, [50_000, 50_000]);
    let uri = path(&upload(&world, &alice, "", "image/png", bomb).await.ok());
    alice
        .get(&format!("/v1/media/thumbnail/{uri}?width=32&height=32"))
        .await
        .fails(413, "M_TOO_LARGE");
}

#[tokio::test] // "POST /_matrix/media/v1/create", "PUT /_matrix/media/v3/upload/{serverName}/{mediaId}"
async fn an_announced_upload_arrives_once() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let announced = alice.post("/_matrix/media/v1/create", json!({})).await.ok();
    let uri = path(&announced);
    assert!(announced["unused_expires_at"].as_u64().is_some());
    alice
        .get(&format!("/v1/media/download/{uri}?timeout_ms=0"))
        .await
        .fails(504, "M_NOT_YET_UPLOADED");
    let put = |token: String| {
        let path = format!("/_matrix/media/v3/upload/{uri}");
        let world = &world;
        async move {
            world
                .raw(
                    Method::PUT,
                    &path,
                    Some(&token),
                    "text/plain",
                    b"late".to_vec(),
                )
                .await
        }
    };
    put(bob.token.clone()).await.fails(403, "M_FORBIDDEN");
    put(alice.token.clone()).await.ok();
    assert_eq!(
        alice.get(&format!("/v1/media/download/{uri}")).await.bytes,
        b"late"
    );
    put(alice.token.clone())
        .await
        .fails(409, "M_CANNOT_OVERWRITE_MEDIA");
}

#[tokio::test] // "POST /_matrix/media/v1/create": announced uploads expire, and are limited
async fn announced_uploads_are_few_and_expire() {
    let world = World::with(|config| config.media.pending_uploads_max = 1).await;
    let alice = world.register("alice").await;
    let uri = path(&alice.post("/_matrix/media/v1/create", json!({})).await.ok());
    alice
        .post("/_matrix/media/v1/create", json!({}))
        .await
        .fails(429, "M_LIMIT_EXCEEDED");
    world.pass_ms(25 * 60 * 60 * 1_000);
    let late = world
        .raw(
            Method::PUT,
            &format!("/_matrix/media/v3/upload/{uri}"),
            Some(&alice.token),
            "a/b",
            vec![1],
        )
        .await;
    late.fails(404, "M_NOT_FOUND");
    alice.post("/_matrix/media/v1/create", json!({})).await.ok();
}

#[tokio::test] // Quotas
async fn a_user_uploads_no_more_than_their_quota() {
    let world = World::with(|config| config.limits.uploads_per_user_mb = Some(1)).await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    upload(&world, &alice, "", "a/b", vec![0; 700_000])
        .await
        .ok();
    upload(&world, &alice, "", "a/b", vec![1; 700_000])
        .await
        .fails(403, "M_RESOURCE_LIMIT_EXCEEDED");
    upload(&world, &bob, "", "a/b", vec![2; 700_000]).await.ok();
}

#[tokio::test] // "GET /_matrix/client/v1/media/preview_url": the server is not to be pointed inward
async fn previews_are_not_made_of_private_addresses() {
    let world = World::with(|config| config.testing.allow_private_addresses = false).await;
    let alice = world.register("alice").await;
    for url in [
        "http%3A%2F%2F127.0.0.1%2F",
        "http%3A%2F%2F%5B%3A%3A1%5D%2F",
        "http%3A%2F%2F10.0.0.1%2F",
        "file%3A%2F%2F%2Fetc%2Fpasswd",
    ] {
        let (status, _) = alice
            .get(&format!("/v1/media/preview_url?url={url}"))
            .await
            .error();
        assert!(status == 403 || status == 400, "{url}: {status}");
    }
    alice
        .get("/v1/media/preview_url")
        .await
        .fails(400, "M_MISSING_PARAM");
}
