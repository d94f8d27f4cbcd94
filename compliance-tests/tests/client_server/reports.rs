//! Client-server API, "Reporting Content"; Synapse's admin API, "Show reported events".

use compliance_tests::{World, segment};
use serde_json::{Value, json};

const REPORTS: &str = "/_synapse/admin/v1/event_reports";

#[tokio::test] // "POST /rooms/{roomId}/report/{eventId}"
async fn an_event_reported_by_a_member_stays_with_the_admins_until_they_delete_it() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let admin = world.register("admin").await;
    world.make_admin(&admin).await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Tavern" }))
        .await;
    let said = alice.say(&room, "rude").await;
    let path = format!("/v3/rooms/{}/report/{}", segment(&room), segment(&said));
    let reason = json!({ "reason": "rude words", "score": -50 });
    bob.post(&path, reason.clone())
        .await
        .fails(404, "M_NOT_FOUND");
    bob.join(&room).await.ok();
    bob.post(&path, reason).await.ok();
    bob.post(&path, json!({ "score": 1 }))
        .await
        .fails(400, "M_INVALID_PARAM");
    bob.post(&path, json!({ "reason": "x".repeat(4_097) }))
        .await
        .fails(413, "M_TOO_LARGE");
    bob.post(&path, json!({ "reason": "x".repeat(4_096) }))
        .await
        .ok();
    let nothing = format!("/v3/rooms/{}/report/$nothing", segment(&room));
    bob.post(&nothing, json!({}))
        .await
        .fails(404, "M_NOT_FOUND");

    bob.get(REPORTS).await.fails(403, "M_FORBIDDEN");
    let list = admin.get(&format!("{REPORTS}?dir=f&limit=1")).await.ok();
    assert_eq!(
        (&list["total"], &list["next_token"]),
        (&json!(2), &json!(1))
    );
    let first = &list["event_reports"][0];
    assert_eq!(first["event_id"], *said);
    assert_eq!(first["sender"], json!(alice.user_id));
    assert_eq!(first["user_id"], json!(bob.user_id));
    assert_eq!(
        (&first["reason"], &first["score"]),
        (&json!("rude words"), &json!(-50))
    );
    assert_eq!(first["name"], "Tavern");
    let one = format!("{REPORTS}/{}", first["id"]);
    let details = admin.get(&one).await.ok();
    assert_eq!(details["event_json"]["content"]["body"], "rude");
    admin.delete(&one).await.ok();
    admin.get(&one).await.fails(404, "M_NOT_FOUND");
    admin.delete(&one).await.fails(404, "M_NOT_FOUND");
    bob.delete(&one).await.fails(403, "M_FORBIDDEN");
    assert_eq!(admin.get(REPORTS).await.ok()["total"], 1);
}

#[tokio::test] // "POST /rooms/{roomId}/report", "POST /users/{userId}/report"
async fn rooms_and_users_are_reported_if_they_exist() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    world.make_admin(&alice).await;
    let room = alice.public_room().await;
    let body = json!({ "reason": "spam" });
    let report = |what: &'static str, id: &str| {
        let path = format!("/v3/{what}/{}/report", segment(id));
        let (bob, body) = (&bob, body.clone());
        async move { bob.post(&path, body).await }
    };
    report("rooms", &room).await.ok();
    report("rooms", "!nothing:hs1")
        .await
        .fails(404, "M_NOT_FOUND");
    report("users", &alice.user_id).await.ok();
    report("users", "@nobody:hs1")
        .await
        .fails(404, "M_NOT_FOUND");
    report("users", "nobody")
        .await
        .fails(400, "M_INVALID_PARAM");
    let rooms = alice.get("/_synapse/admin/v1/room_reports").await.ok();
    assert_eq!(rooms["room_reports"][0]["room_id"], *room);
    let users = alice.get("/_synapse/admin/v1/user_reports").await.ok();
    assert_eq!(
        users["user_reports"][0]["target_user_id"],
        json!(alice.user_id)
    );
    assert_eq!(alice.get(REPORTS).await.ok()["total"], 0);
}

#[tokio::test]
async fn an_admin_with_a_room_for_notices_is_told_of_a_report() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    world.make_admin(&alice).await;
    let notice =
        json!({ "user_id": alice.user_id, "content": { "msgtype": "m.text", "body": "hi" } });
    alice
        .post("/_synapse/admin/v1/send_server_notice", notice)
        .await
        .ok();
    let invites = alice.sync(None, "").await["rooms"]["invite"].clone();
    let room = invites.as_object().unwrap().keys().next().unwrap().clone();
    alice.join(&room).await.ok();
    let path = format!("/v3/users/{}/report", segment(&bob.user_id));
    bob.post(&path, json!({ "reason": "me" })).await.ok();
    let told: Value = alice.messages(&room, "limit=1").await["chunk"][0].clone();
    let body = told["content"]["body"].as_str().unwrap();
    assert!(
        body.contains(&bob.user_id) && body.ends_with("me"),
        "{body}"
    );
}
