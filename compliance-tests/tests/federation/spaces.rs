//! Server-server API, "Spaces". Client-server API, "Spaces" and "Room summary", of rooms of other servers.

use compliance_tests::{Client, Network, segment};
use http::Method;
use serde_json::{Value, json};

fn hierarchy(room_id: &str) -> String {
    format!("/_matrix/federation/v1/hierarchy/{}", segment(room_id))
}

async fn space(by: &Client, name: &str) -> String {
    let body = json!({
        "preset": "public_chat", "name": name, "creation_content": { "type": "m.space" },
    });
    by.create_room(body).await
}

async fn room(by: &Client, preset: &str, name: &str) -> String {
    by.create_room(json!({ "preset": preset, "name": name }))
        .await
}

async fn link(by: &Client, space: &str, room: &str, content: Value) {
    by.set_state(space, "m.space.child", room, content)
        .await
        .ok();
}

/// The names of the rooms of a hierarchy, in order.
async fn walk(by: &Client, space: &str) -> Vec<String> {
    let path = format!("/v1/rooms/{}/hierarchy", segment(space));
    let reply = by.get(&path).await.ok();
    let rooms = reply["rooms"].as_array().unwrap().iter();
    rooms
        .map(|room| room["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test] // "all the space-room's children the requesting server could feasibly peek/join are returned"
async fn a_server_is_told_of_a_space_and_of_the_children_that_it_could_join() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let top = space(&alice, "top").await;
    let open = room(&alice, "public_chat", "open").await;
    let closed = room(&alice, "private_chat", "closed").await;
    for (child, suggested) in [
        (&*open, false),
        (&*closed, true),
        ("!elsewhere:nowhere", true),
    ] {
        link(
            &alice,
            &top,
            child,
            json!({ "via": ["hs1"], "suggested": suggested }),
        )
        .await;
    }
    let told = other
        .ask(&hs1, Method::GET, &hierarchy(&top), None)
        .await
        .ok();
    assert_eq!(told["room"]["name"], "top");
    assert_eq!(told["room"]["room_type"], "m.space");
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 3);
    let [child] = told["children"].as_array().unwrap().as_slice() else {
        panic!("{told}");
    };
    assert_eq!(child["name"], "open");
    assert_eq!(child.get("children_state"), None);
    assert_eq!(told["inaccessible_children"], json!([closed]));
    let path = format!("{}?suggested_only=true", hierarchy(&top));
    let told = other.ask(&hs1, Method::GET, &path, None).await.ok();
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 2);
    assert_eq!(told["children"], json!([]));
}

#[tokio::test]
async fn a_room_that_a_server_may_not_know_of_is_like_one_that_does_not_exist() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let closed = room(&alice, "private_chat", "closed").await;
    let unseen = other
        .ask(&hs1, Method::GET, &hierarchy(&closed), None)
        .await;
    let unknown = other
        .ask(&hs1, Method::GET, &hierarchy("!no:hs1"), None)
        .await;
    assert_eq!(unseen.error(), (404, "M_NOT_FOUND".to_owned()));
    assert_eq!(unseen.json(), unknown.json());
}

#[tokio::test] // "any user of the server could join"
async fn a_server_is_told_of_a_closed_room_when_one_of_its_users_is_invited() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let carol = hs2.register("carol").await;
    let closed = room(&alice, "private_chat", "closed").await;
    let path = format!("/v1/room_summary/{}?via=hs1", segment(&closed));
    alice.invite(&closed, &bob.user_id).await.ok();
    let told = bob.get(&path).await.ok();
    assert_eq!(told["name"], "closed");
    assert_eq!(told["membership"], "invite");
    // What the server was told is for those who may know it.
    carol.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test] // "The servers listed in the `via` array should be contacted to attempt to fill in missing rooms"
async fn rooms_of_a_space_that_are_on_another_server_are_asked_for_there() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let top = space(&alice, "top").await;
    let inner = space(&bob, "inner").await;
    let open = room(&bob, "public_chat", "open").await;
    let closed = room(&bob, "private_chat", "closed").await;
    link(&bob, &inner, &open, json!({ "via": ["hs2"], "order": "a" })).await;
    link(
        &bob,
        &inner,
        &closed,
        json!({ "via": ["hs2"], "order": "b" }),
    )
    .await;
    link(&alice, &top, &inner, json!({ "via": ["hs2"] })).await;
    assert_eq!(walk(&alice, &top).await, ["top", "inner", "open"]);
    assert_eq!(walk(&bob, &inner).await, ["inner", "open", "closed"]);
    let asked = || network.count("hs1", "hs2", "/hierarchy/");
    // The summary of a room that is no space came with that of the space, and the closed one is not asked for.
    assert_eq!(asked(), 1);
    assert_eq!(walk(&alice, &top).await, ["top", "inner", "open"]);
    assert_eq!(asked(), 1);
    network.pass_ms(5 * 60 * 1_000);
    network.cut("hs1", "hs2");
    assert_eq!(walk(&alice, &top).await, ["top"]);
    assert_eq!(asked(), 2);
}

#[tokio::test]
async fn what_a_server_says_of_another_room_than_it_was_asked_about_is_not_believed() {
    let network = Network::new();
    let (hs1, liar) = (network.server("hs1").await, network.stranger("liar"));
    let alice = hs1.register("alice").await;
    let top = space(&alice, "top").await;
    for child in ["!a:liar", "!b:liar"] {
        link(&alice, &top, child, json!({ "via": ["liar"] })).await;
    }
    let summary = json!({
        "room_id": "!b:liar", "name": "b", "num_joined_members": 1, "join_rule": "public",
        "world_readable": false, "guest_can_join": false, "children_state": [],
    });
    let body = json!({ "room": summary, "children": [], "inaccessible_children": [] });
    liar.answer(
        Method::GET,
        "/_matrix/federation/v1/hierarchy/{room_id}",
        200,
        body,
    );
    assert_eq!(walk(&alice, &top).await, ["top", "b"]);
}

#[tokio::test] // "GET /room_summary/{roomIdOrAlias}": `via`
async fn the_summary_of_a_room_of_another_server_is_asked_for_by_via_or_by_alias() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let body = json!({ "preset": "public_chat", "name": "open", "room_alias_name": "open" });
    let open = bob.create_room(body).await;
    let closed = room(&bob, "private_chat", "closed").await;
    let summary = async |what: &str| {
        let path = format!("/v1/room_summary/{}?via=hs2", segment(what));
        alice.get(&path).await
    };
    for what in [&*open, "#open:hs2"] {
        let told = summary(what).await.ok();
        assert_eq!(
            (&told["name"], &told["room_id"]),
            (&json!("open"), &json!(open))
        );
        assert_eq!(told["membership"], "leave");
        assert_eq!(told.get("children_state"), None);
    }
    let unseen = summary(&closed).await;
    let unknown = summary("!no:hs1").await;
    assert_eq!(unseen.error(), (404, "M_NOT_FOUND".to_owned()));
    assert_eq!(unseen.json(), unknown.json());
}
