//! Which invites users take: MSC4380 and MSC4155.

use compliance_tests::{Client, World, segment};
use serde_json::{Value, json};

const LISTS: &str = "org.matrix.msc4155.invite_permission_config";

async fn permit(client: &Client, kind: &str, config: Value) {
    let user = segment(&client.user_id);
    let path = format!("/v3/user/{user}/account_data/{kind}");
    client.put(&path, config).await.ok();
}

async fn invited(client: &Client) -> Vec<String> {
    let answer = client.sync(None, "").await;
    let invites = answer["rooms"]["invite"].as_object().cloned();
    invites
        .unwrap_or_default()
        .into_iter()
        .map(|(room, _)| room)
        .collect()
}

#[tokio::test] // Client-server API, "Invite permissions"
async fn who_takes_no_invites_gets_none_but_by_those_they_allow() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let eve = world.register("eve").await;
    let config = json!({ "default_action": "block" });
    permit(&alice, "m.invite_permission_config", config).await;
    permit(&alice, LISTS, json!({ "allowed_users": [&*bob.user_id] })).await;
    let (room, other) = (
        bob.create_room(json!({})).await,
        eve.create_room(json!({})).await,
    );
    bob.invite(&room, &alice.user_id).await.ok();
    let reply = eve.invite(&other, &alice.user_id).await;
    reply.fails(403, "M_INVITE_BLOCKED");
    assert_eq!(invited(&alice).await, [room]);
}

#[tokio::test] // MSC4155, order of evaluation
async fn lists_of_users_come_before_those_of_servers_and_allowing_before_blocking() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = bob.create_room(json!({})).await;
    for blocking in [
        json!({ "blocked_users": ["@bo?:*"] }),
        json!({ "blocked_servers": ["hs*"] }),
        json!({ "blocked_users": [&*bob.user_id], "allowed_servers": ["hs1"] }),
    ] {
        permit(&alice, LISTS, blocking).await;
        let reply = bob.invite(&room, &alice.user_id).await;
        reply.fails(403, "M_INVITE_BLOCKED");
    }
    for allowing in [
        json!({ "blocked_users": ["@eve:hs1", 7, null], "ignored_users": null }),
        json!({ "blocked_servers": ["hs1"], "allowed_users": [&*bob.user_id] }),
        json!({ "blocked_users": ["*"], "ignored_users": ["*"], "allowed_users": ["@bob:hs1"] }),
        json!({ "blocked_users": "@bob:hs1" }),
    ] {
        permit(&alice, LISTS, allowing).await;
        let room = bob.create_room(json!({})).await;
        bob.invite(&room, &alice.user_id).await.ok();
        assert!(invited(&alice).await.contains(&room));
    }
}

#[tokio::test] // MSC4155: an ignored invite fails invisibly
async fn an_ignored_invite_is_sent_and_not_shown() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    permit(&alice, LISTS, json!({ "ignored_servers": ["hs1"] })).await;
    let room = bob.create_room(json!({})).await;
    bob.invite(&room, &alice.user_id).await.ok();
    let member = bob.state(&room, "m.room.member", &alice.user_id).await.ok();
    assert_eq!(member["membership"], "invite");
    assert_eq!(invited(&alice).await, Vec::<String>::new());
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] });
    let path = "/unstable/org.matrix.simplified_msc3575/sync";
    let body = json!({ "lists": { "all": list } });
    let answer = alice.post(path, body).await.ok();
    assert_eq!(answer["rooms"], json!({}));
    // The room is there as before for who knows of it.
    alice.join(&room).await.ok();
}
