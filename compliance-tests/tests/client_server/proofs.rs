//! Client-server API, "User-Interactive Authentication API", "Login fallback", `OpenID`, "Adding Account
//! Administrative Contact Information".

use compliance_tests::{Client, World, segment};
use homeserver::config::RegistrationMode;
use http::Method;
use serde_json::{Value, json};

const REGISTER: &str = "/_matrix/client/v3/register";

fn password(user_id: &str, name: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user_id },
        "password": format!("password-of-{name}"),
    })
}

async fn change(client: &Client, auth: Value) -> compliance_tests::Reply {
    let body = json!({ "new_password": "quite another", "auth": auth });
    client.post("/v3/account/password", body).await
}

#[tokio::test] // what clients send before they know a session
async fn an_empty_auth_is_answered_with_flows_and_a_password_needs_no_session() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let challenge = change(&alice, json!({})).await;
    assert_eq!(challenge.error(), (401, String::new()));
    assert_eq!(
        challenge.json()["flows"],
        json!([{ "stages": ["m.login.password"] }])
    );
    assert!(challenge.json()["session"].is_string());
    let mut legacy = password(&alice.user_id, "alice");
    legacy["user"] = "alice".into();
    legacy.as_object_mut().unwrap().remove("identifier");
    change(&alice, legacy).await.ok();
}

#[tokio::test]
async fn a_stage_that_is_not_served_and_a_foreign_session_are_answered_with_flows() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let unknown = change(&alice, json!({ "type": "org.example.dance" })).await;
    assert_eq!(unknown.json()["flows"][0]["stages"][0], "m.login.password");
    unknown.fails(401, "M_UNRECOGNIZED");
    // A session for something else proves nothing here, with or without the right password.
    let other = alice.post("/v1/login/get_token", json!({})).await.json()["session"].clone();
    for session in [other, json!("nonsense")] {
        let mut auth = password(&alice.user_id, "alice");
        auth["session"] = session;
        let refused = change(&alice, auth).await;
        assert_eq!(refused.json()["flows"][0]["stages"][0], "m.login.password");
        refused.fails(401, "M_UNKNOWN");
    }
    let mut nameless = password(&alice.user_id, "alice");
    nameless.as_object_mut().unwrap().remove("password");
    change(&alice, nameless).await.fails(401, "M_MISSING_PARAM");
}

/// Opens a session for registration.
async fn session(world: &World, body: Value) -> String {
    let challenge = world
        .request(Method::POST, REGISTER, None, Some(&body))
        .await;
    challenge.json()["session"].as_str().unwrap().to_owned()
}

#[tokio::test] // "Fallback"
async fn a_stage_done_on_its_page_is_good_for_one_registration() {
    let world = World::with(|config| config.registration.mode = RegistrationMode::Token).await;
    let app = &world.server().app;
    let token = homeserver::accounts::registration::first_admin_token(&app.store)
        .unwrap()
        .unwrap();
    let body = json!({ "username": "alice", "password": "password-of-alice" });
    let session = session(&world, body.clone()).await;
    let page = "/_matrix/client/v3/auth/m.login.registration_token/fallback/web";
    let url = format!("{page}?session={session}");
    let shown = world.request(Method::GET, &url, None, None).await;
    assert_eq!(shown.status, 200);
    let policy = shown.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    let post = |token: &str| {
        let form = format!("session={session}&token={token}").into_bytes();
        let kind = "application/x-www-form-urlencoded";
        world.raw(Method::POST, page, None, kind, form)
    };
    assert_eq!(post("wrong").await.status, 401);
    let done = post(&token).await;
    assert!(String::from_utf8(done.bytes).unwrap().contains("authDone"));
    let mut with = body.clone();
    with["auth"] = json!({ "session": session });
    world
        .request(Method::POST, REGISTER, None, Some(&with))
        .await
        .ok();
    // The token was used up with the session.
    assert_eq!(
        homeserver::accounts::registration::first_admin_token(&app.store).unwrap(),
        None
    );
    with["username"] = "bob".into();
    let again = world
        .request(Method::POST, REGISTER, None, Some(&with))
        .await;
    again.fails(401, "M_UNKNOWN");
    let missing = world.request(Method::GET, page, None, None).await;
    missing.fails(400, "M_MISSING_PARAM");
    let url = format!("{page}?session=%3Cscript%3E");
    let unknown = world.request(Method::GET, &url, None, None).await;
    unknown.fails(404, "M_NOT_FOUND");
    let page = "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?session=x";
    let reply = world.request(Method::GET, page, None, None).await;
    reply.fails(404, "M_UNRECOGNIZED");
}

#[tokio::test] // "Login fallback"
async fn the_login_page_runs_its_own_script_only() {
    let world = World::new().await;
    let page = world
        .request(Method::GET, "/_matrix/static/client/login/", None, None)
        .await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let policy = page.headers["content-security-policy"]
        .to_str()
        .unwrap()
        .to_owned();
    let nonce = policy
        .split("'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    let text = String::from_utf8(page.bytes).unwrap();
    assert!(text.contains(&format!("<script nonce=\"{nonce}\">")) && text.contains("onLogin"));
}

#[tokio::test] // server-server API, `OpenID`
async fn an_openid_token_names_its_user_until_it_expires() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let path = format!("/v3/user/{}/openid/request_token", segment(&alice.user_id));
    let token = alice.post(&path, json!({})).await.ok();
    let path = "/_matrix/federation/v1/openid/userinfo";
    let url = format!(
        "{path}?access_token={}",
        token["access_token"].as_str().unwrap()
    );
    let ask = || world.request(Method::GET, &url, None, None);
    assert_eq!(ask().await.ok(), json!({ "sub": alice.user_id }));
    world.pass_ms(token["expires_in"].as_u64().unwrap() * 1_000);
    ask().await.fails(401, "M_UNKNOWN_TOKEN");
    let without = world.request(Method::GET, path, None, None).await;
    without.fails(401, "M_MISSING_TOKEN");
}

#[tokio::test] // a server that sends no e-mail
async fn addresses_cannot_be_proved_and_lead_to_nobody() {
    let world = World::new().await;
    let body = json!({ "client_secret": "s", "email": "a@example.org", "send_attempt": 1 });
    for (path, status, errcode) in [
        ("account/3pid/email", 403, "M_THREEPID_DENIED"),
        ("register/msisdn", 403, "M_THREEPID_DENIED"),
        ("account/password/email", 400, "M_THREEPID_NOT_FOUND"),
    ] {
        let path = format!("/_matrix/client/v3/{path}/requestToken");
        let reply = world.request(Method::POST, &path, None, Some(&body)).await;
        reply.fails(status, errcode);
    }
}

#[tokio::test] // "Account deactivation"
async fn what_an_erased_user_said_is_hidden_from_those_who_were_not_there() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let said = bob.say(&room, "secret").await;
    let auth = password(&bob.user_id, "bob");
    bob.post(
        "/v3/account/deactivate",
        json!({ "auth": auth, "erase": true }),
    )
    .await
    .ok();
    carol.join(&room).await.ok();
    let path = format!("/v3/rooms/{}/event/{}", segment(&room), segment(&said));
    assert_eq!(alice.get(&path).await.ok()["content"]["body"], "secret");
    assert_eq!(carol.get(&path).await.ok()["content"], json!({}));
    let body = password(&bob.user_id, "bob");
    let login = world.request(Method::POST, "/_matrix/client/v3/login", None, Some(&body));
    login.await.fails(403, "M_USER_DEACTIVATED");
}

#[tokio::test] // "Refreshing access tokens": a refresh token that is used ends the one before
async fn using_the_new_refresh_token_ends_the_old_one() {
    let world = World::new().await;
    world.register("alice").await;
    let mut login = password("alice", "alice");
    login["refresh_token"] = true.into();
    let path = "/_matrix/client/v3/login";
    let first = world
        .request(Method::POST, path, None, Some(&login))
        .await
        .ok();
    let refresh = |token: Value| {
        let world = &world;
        async move {
            let body = json!({ "refresh_token": token });
            let path = "/_matrix/client/v3/refresh";
            world.request(Method::POST, path, None, Some(&body)).await
        }
    };
    let second = refresh(first["refresh_token"].clone()).await.ok();
    refresh(second["refresh_token"].clone()).await.ok();
    refresh(first["refresh_token"].clone())
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    let token = first["access_token"].as_str();
    let who = world
        .request(
            Method::GET,
            "/_matrix/client/v3/account/whoami",
            token,
            None,
        )
        .await;
    who.fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test] // "User Directory"
async fn the_directory_finds_by_the_present_display_name() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    let path = format!("/v3/profile/{}/displayname", segment(&bob.user_id));
    let found = |term: &'static str| {
        let alice = &alice;
        async move {
            let body = json!({ "search_term": term, "limit": 5 });
            alice.post("/v3/user_directory/search", body).await.ok()["results"].clone()
        }
    };
    bob.put(&path, json!({ "displayname": "Robert Ünal 17" }))
        .await
        .ok();
    assert_eq!(found("ROBERT ünal").await[0]["user_id"], json!(bob.user_id));
    bob.put(&path, json!({ "displayname": "Somebody" }))
        .await
        .ok();
    assert_eq!(found("robert").await, json!([]));
}
