//! Client-server API, "Device Management", "Account management", "Profiles", "Presence", "Server
//! Administration".

use compliance_tests::{Client, World, segment};
use serde_json::{Value, json};

fn password_of(name: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": format!("password-of-{name}"),
    })
}

/// Reads a member event until its name is `name`: rooms learn of a profile in the background.
async fn wait_for_name(client: &Client, room: &str, user_id: &str, name: Option<&str>) {
    for _ in 0..1_000 {
        let content = client.state(room, "m.room.member", user_id).await.ok();
        if content["displayname"].as_str() == name {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the room never learned of the name {name:?}");
}

#[tokio::test] // "GET/PUT /devices/{deviceId}"
async fn a_device_can_be_renamed_and_another_users_device_cannot_be_seen() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let path = format!("/v3/devices/{}", alice.device_id);
    alice
        .put(&path, json!({ "display_name": "phone" }))
        .await
        .ok();
    assert_eq!(alice.get(&path).await.ok()["display_name"], "phone");
    let devices = alice.get("/v3/devices").await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    bob.get(&path).await.fails(404, "M_NOT_FOUND");
    bob.put(&path, json!({ "display_name": "x" }))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "DELETE /devices/{deviceId}"
async fn deleting_a_device_takes_the_password_and_ends_its_session() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    world.register("bob").await;
    let other = world.log_in("alice").await;
    let path = format!("/v3/devices/{}", other.device_id);
    let challenge = alice.delete(&path).await;
    assert_eq!(challenge.error(), (401, String::new()));
    assert_eq!(
        challenge.json()["flows"][0]["stages"][0],
        "m.login.password"
    );
    let mut wrong = password_of("alice");
    wrong["password"] = "wrong".into();
    let body = |auth: Value| Some(json!({ "auth": auth }));
    let delete = http::Method::DELETE;
    alice
        .call(delete.clone(), &path, body(wrong))
        .await
        .fails(401, "M_FORBIDDEN");
    alice
        .call(delete.clone(), &path, body(password_of("bob")))
        .await
        .fails(403, "M_FORBIDDEN");
    other.get("/v3/account/whoami").await.ok();
    alice
        .call(delete, &path, body(password_of("alice")))
        .await
        .ok();
    other
        .get("/v3/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    alice.get("/v3/account/whoami").await.ok();
}

#[tokio::test] // "POST /account/password"
async fn a_new_password_logs_the_other_devices_out() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let other = world.log_in("alice").await;
    let body = json!({ "new_password": "a new one", "auth": password_of("alice") });
    alice.post("/v3/account/password", body).await.ok();
    other
        .get("/v3/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    alice.get("/v3/account/whoami").await.ok();
    let login = world
        .request(
            http::Method::POST,
            "/_matrix/client/v3/login",
            None,
            Some(&password_of("alice")),
        )
        .await;
    login.fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "POST /account/deactivate"
async fn a_deactivated_user_leaves_all_rooms_and_cannot_log_in() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let body = json!({ "auth": password_of("bob") });
    bob.post("/v3/account/deactivate", body).await.ok();
    bob.get("/v3/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    wait_for_name(&alice, &room, &bob.user_id, None).await;
    let member = alice.state(&room, "m.room.member", &bob.user_id).await.ok();
    assert_eq!(member["membership"], "leave");
    let path = format!("/v3/profile/{}", segment(&bob.user_id));
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "Events on Change of Profile Information"
async fn a_new_display_name_reaches_every_joined_room() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let rooms = [alice.public_room().await, alice.public_room().await];
    let path = format!("/v3/profile/{}/displayname", segment(&alice.user_id));
    alice
        .put(&path, json!({ "displayname": "Alice!" }))
        .await
        .ok();
    for room in &rooms {
        wait_for_name(&alice, room, &alice.user_id, Some("Alice!")).await;
    }
    alice.delete(&path).await.ok();
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    wait_for_name(&alice, &rooms[0], &alice.user_id, None).await;
}

#[tokio::test] // "PUT /profile/{userId}/{keyName}"
async fn a_profile_takes_any_field_within_its_limits_from_its_user_only() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let path = |field: &str| format!("/v3/profile/{}/{field}", segment(&alice.user_id));
    alice
        .put(
            &path("org.example.job"),
            json!({ "org.example.job": ["baker"] }),
        )
        .await
        .ok();
    assert_eq!(
        bob.get(&path("org.example.job")).await.ok()["org.example.job"][0],
        "baker"
    );
    bob.put(&path("displayname"), json!({ "displayname": "x" }))
        .await
        .fails(403, "M_FORBIDDEN");
    alice
        .put(&path("a.b"), json!({}))
        .await
        .fails(400, "M_MISSING_PARAM");
    alice
        .put(&path("displayname"), json!({ "displayname": 7 }))
        .await
        .fails(400, "M_INVALID_PARAM");
    let long = "a".repeat(256);
    alice
        .put(&path(&long), json!({ &long: 1 }))
        .await
        .fails(400, "M_KEY_TOO_LARGE");
    let large = json!({ "a.b": "x".repeat(70_000) });
    alice
        .put(&path("a.b"), large)
        .await
        .fails(400, "M_PROFILE_TOO_LARGE");
}

#[tokio::test] // "Presence": told to those who share a room, in the next sync
async fn presence_is_told_to_those_who_share_a_room() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let eve = world.register("eve").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let path = format!("/v3/presence/{}/status", segment(&bob.user_id));
    assert_eq!(alice.get(&path).await.ok()["presence"], "offline");
    let since = alice.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.put(
        &path,
        json!({ "presence": "unavailable", "status_msg": "lunch" }),
    )
    .await
    .ok();
    let next = alice.sync(Some(&since), "").await;
    let event = &next["presence"]["events"][0];
    assert_eq!(event["sender"], json!(bob.user_id));
    assert_eq!(event["content"]["presence"], "unavailable");
    assert_eq!(event["content"]["status_msg"], "lunch");
    eve.get(&path).await.fails(403, "M_FORBIDDEN");
    eve.put(&path, json!({ "presence": "online" }))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.put(&path, json!({ "presence": "elsewhere" }))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "POST /login/get_token"
async fn a_login_token_logs_in_once() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let body = json!({ "auth": password_of("alice") });
    let token = alice.post("/v1/login/get_token", body).await.ok()["login_token"].clone();
    let login = json!({ "type": "m.login.token", "token": token });
    let log_in = || {
        world.request(
            http::Method::POST,
            "/_matrix/client/v3/login",
            None,
            Some(&login),
        )
    };
    assert_eq!(log_in().await.ok()["user_id"], json!(alice.user_id));
    log_in().await.fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "PUT /admin/lock/{userId}"
async fn only_an_admin_locks_accounts() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let path = format!("/v1/admin/lock/{}", segment(&bob.user_id));
    alice
        .put(&path, json!({ "locked": true }))
        .await
        .fails(403, "M_FORBIDDEN");
    world.make_admin(&alice).await;
    alice.put(&path, json!({ "locked": true })).await.ok();
    assert_eq!(alice.get(&path).await.ok()["locked"], true);
    bob.get("/v3/account/whoami")
        .await
        .fails(401, "M_USER_LOCKED");
    alice.put(&path, json!({ "locked": false })).await.ok();
    bob.get("/v3/account/whoami").await.ok();
    let own = format!("/v1/admin/lock/{}", segment(&alice.user_id));
    alice
        .put(&own, json!({ "locked": true }))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test] // "User Directory"
async fn the_directory_shows_those_in_public_rooms_and_shared_rooms_only() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let search = json!({ "search_term": "BOB" });
    let found = |reply: Value| reply["results"].as_array().unwrap().len();
    let path = "/v3/user_directory/search";
    assert_eq!(found(alice.post(path, search.clone()).await.ok()), 0);
    let room = bob.create_room(json!({ "preset": "private_chat" })).await;
    assert_eq!(found(alice.post(path, search.clone()).await.ok()), 0);
    bob.invite(&room, &alice.user_id).await.ok();
    alice.join(&room).await.ok();
    assert_eq!(found(alice.post(path, search).await.ok()), 1);
    let mutual = format!("/v1/mutual_rooms?user_id={}", segment(&bob.user_id));
    assert_eq!(alice.get(&mutual).await.ok()["joined"], json!([room]));
}

#[tokio::test] // "Server Notices"
async fn a_notice_invites_to_a_room_that_cannot_be_refused() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let path = "/_synapse/admin/v1/send_server_notice";
    bob.post(path, json!({})).await.fails(403, "M_FORBIDDEN");
    world.make_admin(&alice).await;
    let notice =
        json!({ "user_id": bob.user_id, "content": { "msgtype": "m.text", "body": "hi" } });
    let once = format!("{path}/once");
    let first = alice.put(&once, notice.clone()).await.ok();
    assert_eq!(alice.put(&once, notice.clone()).await.ok(), first);
    let invites = bob.sync(None, "").await["rooms"]["invite"].clone();
    let room = invites.as_object().unwrap().keys().next().unwrap().clone();
    bob.leave(&room)
        .await
        .fails(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM");
    bob.join(&room).await.ok();
    bob.leave(&room).await.ok();
    alice.post(path, notice).await.ok();
    let again = bob.sync(None, "").await["rooms"]["invite"].clone();
    assert!(again[&room].is_object(), "{again}");
}

#[tokio::test] // "Refreshing access tokens": the old tokens end when the new ones are used
async fn the_first_use_of_a_new_token_ends_the_old_ones() {
    let world = World::new().await;
    world.register("alice").await;
    let post = http::Method::POST;
    let mut login = json!({ "type": "m.login.password", "refresh_token": true });
    login["identifier"] = json!({ "type": "m.id.user", "user": "alice" });
    login["password"] = "password-of-alice".into();
    let path = "/_matrix/client/v3/login";
    let old = world
        .request(post.clone(), path, None, Some(&login))
        .await
        .ok();
    let refresh = |token: &Value| json!({ "refresh_token": token });
    let path = "/_matrix/client/v3/refresh";
    let body = refresh(&old["refresh_token"]);
    let new = world
        .request(post.clone(), path, None, Some(&body))
        .await
        .ok();
    let who = "/_matrix/client/v3/account/whoami";
    let ask = |token: &Value| {
        let token = token.as_str().unwrap().to_owned();
        let world = &world;
        async move {
            world
                .request(http::Method::GET, who, Some(&token), None)
                .await
        }
    };
    ask(&old["access_token"]).await.ok();
    ask(&new["access_token"]).await.ok();
    ask(&old["access_token"])
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    let again = world.request(post, path, None, Some(&body)).await;
    again.fails(401, "M_UNKNOWN_TOKEN");
    ask(&new["access_token"]).await.ok();
}

#[tokio::test] // Synapse's admin API, without a secret in the configuration
async fn registration_by_secret_is_refused_without_one() {
    let world = World::new().await;
    let path = "/_synapse/admin/v1/register";
    let reply = world.request(http::Method::GET, path, None, None).await;
    reply.fails(400, "M_UNKNOWN");
}
