//! Client-server API, "Room aliases", "Published room directory".

use compliance_tests::{Client, World, segment};
use homeserver::config::Who;
use http::Method;
use serde_json::{Value, json};

fn alias_path(alias: &str) -> String {
    format!("/v3/directory/room/{}", segment(alias))
}

async fn put_alias(client: &Client, alias: &str, room: &str) -> compliance_tests::Reply {
    client
        .put(&alias_path(alias), json!({ "room_id": room }))
        .await
}

async fn aliases(client: &Client, room: &str) -> compliance_tests::Reply {
    client
        .get(&format!("/v3/rooms/{}/aliases", segment(room)))
        .await
}

async fn list(client: &Client, room: &str, visibility: &str) -> compliance_tests::Reply {
    client
        .put(
            &format!("/v3/directory/list/room/{}", segment(room)),
            json!({ "visibility": visibility }),
        )
        .await
}

fn room_ids(page: &Value) -> Vec<String> {
    let rooms = page["chunk"].as_array().expect("a chunk");
    rooms
        .iter()
        .filter_map(|room| room["room_id"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test] // "PUT /directory/room/{roomAlias}", "GET /directory/room/{roomAlias}"
async fn an_alias_leads_to_its_room_for_everybody() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let alias = "#老虎Â£я🤨👉ඞ:hs1";
    put_alias(&alice, alias, &room).await.ok();
    let path = format!("/_matrix/client{}", alias_path(alias));
    let reply = world.request(Method::GET, &path, None, None).await.ok();
    assert_eq!(reply, json!({ "room_id": room, "servers": ["hs1"] }));
    bob.join(alias).await.ok();
    let summary = format!("/v1/room_summary/{}", segment(alias));
    assert_eq!(bob.get(&summary).await.ok()["room_id"], room);
    assert_eq!(
        aliases(&bob, &room).await.ok(),
        json!({ "aliases": [alias] })
    );
}

#[tokio::test] // "PUT /directory/room/{roomAlias}": what cannot be an alias
async fn an_alias_that_cannot_be_is_refused_with_its_errcode() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    put_alias(&alice, "#taken:hs1", &room).await.ok();
    for (alias, status, errcode) in [
        ("#taken:hs1", 409, "M_ROOM_IN_USE"),
        ("#there:elsewhere", 400, "M_INVALID_PARAM"),
        ("#white space:hs1", 400, "M_INVALID_PARAM"),
        ("no alias", 400, "M_INVALID_PARAM"),
    ] {
        put_alias(&alice, alias, &room).await.fails(status, errcode);
    }
    put_alias(&bob, "#mine:hs1", &room)
        .await
        .fails(403, "M_FORBIDDEN");
    put_alias(&alice, "#lost:hs1", "!unknown:hs1")
        .await
        .fails(404, "M_NOT_FOUND");
    for alias in ["#none:hs1", "#none:elsewhere"] {
        alice
            .get(&alias_path(alias))
            .await
            .fails(404, "M_NOT_FOUND");
    }
    let body = json!({ "room_alias_name": "taken" });
    alice
        .post("/v3/createRoom", body)
        .await
        .fails(409, "M_ROOM_IN_USE");
}

#[tokio::test] // "GET /rooms/{roomId}/aliases": members, or anybody in a world readable room
async fn only_members_list_aliases_unless_the_room_is_world_readable() {
    let world = World::new().await;
    let _admin = world.register("admin").await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    assert_eq!(aliases(&alice, &room).await.ok(), json!({ "aliases": [] }));
    aliases(&bob, &room).await.fails(403, "M_FORBIDDEN");
    let readable = json!({ "history_visibility": "world_readable" });
    alice
        .set_state(&room, "m.room.history_visibility", "", readable)
        .await
        .ok();
    aliases(&bob, &room).await.ok();
}

#[tokio::test] // "DELETE /directory/room/{roomAlias}"
async fn an_alias_is_removed_by_its_maker_or_with_power() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let carol = world.register("carol").await;
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    put_alias(&bob, "#bobs:hs1", &room).await.ok();
    put_alias(&bob, "#other:hs1", &room).await.ok();
    carol
        .delete(&alias_path("#bobs:hs1"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.delete(&alias_path("#bobs:hs1")).await.ok();
    alice.delete(&alias_path("#other:hs1")).await.ok();
    bob.delete(&alias_path("#bobs:hs1"))
        .await
        .fails(404, "M_NOT_FOUND");
    assert_eq!(aliases(&alice, &room).await.ok(), json!({ "aliases": [] }));
}

#[tokio::test] // "DELETE /directory/room/{roomAlias}": the canonical alias follows, if the user may
async fn a_removed_alias_leaves_the_canonical_alias_if_its_remover_may_change_that() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    bob.join(&room).await.ok();
    put_alias(&alice, "#main:hs1", &room).await.ok();
    put_alias(&bob, "#alt:hs1", &room).await.ok();
    let content = json!({ "alias": "#main:hs1", "alt_aliases": ["#alt:hs1"] });
    alice
        .set_state(&room, "m.room.canonical_alias", "", content.clone())
        .await
        .ok();
    bob.delete(&alias_path("#alt:hs1")).await.ok();
    let present = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(present, content, "bob may not change it");
    alice.delete(&alias_path("#main:hs1")).await.ok();
    let present = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(present, json!({ "alt_aliases": ["#alt:hs1"] }));
}

#[tokio::test] // `m.room.canonical_alias`: M_BAD_ALIAS, M_INVALID_PARAM
async fn a_canonical_alias_must_lead_to_its_room() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let (room, other) = (alice.public_room().await, alice.public_room().await);
    put_alias(&alice, "#here:hs1", &room).await.ok();
    put_alias(&alice, "#there:hs1", &other).await.ok();
    let set = async |content: Value| {
        alice
            .set_state(&room, "m.room.canonical_alias", "", content)
            .await
    };
    for (content, errcode) in [
        (json!({ "alias": "#missing:hs1" }), "M_BAD_ALIAS"),
        (json!({ "alias": "#there:hs1" }), "M_BAD_ALIAS"),
        (json!({ "alt_aliases": ["#there:hs1"] }), "M_BAD_ALIAS"),
        (json!({ "alias": "%invalid:hs1" }), "M_INVALID_PARAM"),
        (json!({ "alias": 5 }), "M_INVALID_PARAM"),
        (json!({ "alt_aliases": "#here:hs1" }), "M_INVALID_PARAM"),
        (
            json!({ "alt_aliases": ["%invalid:hs1"] }),
            "M_INVALID_PARAM",
        ),
    ] {
        set(content).await.fails(400, errcode);
    }
    set(json!({ "alias": "#here:hs1", "alt_aliases": ["#here:hs1"] }))
        .await
        .ok();
    set(json!({})).await.ok();
    alice.delete(&alias_path("#here:hs1")).await.ok();
    set(json!({ "alias": "#here:hs1" }))
        .await
        .fails(400, "M_BAD_ALIAS");
}

#[tokio::test] // "POST /createRoom": `visibility`, `room_alias_name`; "GET /publicRooms"
async fn a_public_room_stands_in_the_directory_with_what_it_says_of_itself() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice
        .create_room(json!({
            "visibility": "public", "room_alias_name": "wombles", "name": "un nom français", "topic": "Wombling",
        }))
        .await;
    alice.create_room(json!({ "visibility": "private" })).await;
    let page = alice.get("/v3/publicRooms").await.ok();
    assert_eq!(
        page,
        json!({
            "chunk": [{
                "room_id": room, "name": "un nom français", "topic": "Wombling", "canonical_alias": "#wombles:hs1",
                "num_joined_members": 1, "world_readable": false, "guest_can_join": false, "join_rule": "public",
            }],
            "total_room_count_estimate": 1,
        })
    );
    let path = format!("/v3/directory/list/room/{}", segment(&room));
    assert_eq!(
        alice.get(&path).await.ok(),
        json!({ "visibility": "public" })
    );
    list(&alice, &room, "private").await.ok();
    assert_eq!(
        alice.get(&path).await.ok(),
        json!({ "visibility": "private" })
    );
    let page = alice.get("/v3/publicRooms").await.ok();
    assert_eq!(page["total_room_count_estimate"], 0);
}

#[tokio::test] // "PUT /directory/list/room/{roomId}"
async fn publishing_needs_the_power_to_set_the_canonical_alias() {
    let world = World::new().await;
    let _admin = world.register("admin").await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    list(&bob, &room, "public").await.fails(403, "M_FORBIDDEN");
    bob.join(&room).await.ok();
    list(&bob, &room, "public").await.fails(403, "M_FORBIDDEN");
    list(&alice, &room, "sideways")
        .await
        .fails(400, "M_INVALID_PARAM");
    list(&alice, "!unknown:hs1", "public")
        .await
        .fails(404, "M_NOT_FOUND");
    list(&alice, &room, "public").await.ok();
    let page = bob.get("/v3/publicRooms").await.ok();
    assert_eq!(room_ids(&page), [room]);
}

#[tokio::test] // "GET /publicRooms": a published room that became private is not shown
async fn a_published_room_that_nobody_may_know_of_is_left_out() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let private = alice
        .create_room(json!({ "visibility": "public", "preset": "private_chat" }))
        .await;
    let empty = alice.create_room(json!({ "visibility": "public" })).await;
    alice.leave(&empty).await.ok();
    let page = alice.get("/v3/publicRooms").await.ok();
    assert!(room_ids(&page).is_empty(), "{page}");
    let rule = json!({ "join_rule": "knock" });
    alice
        .set_state(&private, "m.room.join_rules", "", rule)
        .await
        .ok();
    let page = alice.get("/v3/publicRooms").await.ok();
    assert_eq!(room_ids(&page), [private]);
}

#[tokio::test] // "POST /publicRooms": `filter`
async fn the_directory_is_searched_by_term_and_by_room_type() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice
        .create_room(json!({ "visibility": "public", "topic": "Test Topic Wombles" }))
        .await;
    let space = alice
        .create_room(json!({ "visibility": "public", "name": "Tidy bag", "creation_content": { "type": "m.space" } }))
        .await;
    let search = async |filter: Value| {
        let body = json!({ "filter": filter });
        room_ids(&alice.post("/v3/publicRooms", body).await.ok())
    };
    assert_eq!(
        search(json!({ "generic_search_term": "wombles" })).await,
        std::slice::from_ref(&room)
    );
    assert_eq!(
        search(json!({ "room_types": ["m.space"] })).await,
        std::slice::from_ref(&space)
    );
    assert_eq!(search(json!({ "room_types": [null] })).await, [room]);
    let both = json!({ "room_types": [null, "m.space"], "generic_search_term": "TIDY" });
    assert_eq!(search(both).await, [space]);
    assert!(
        search(json!({ "generic_search_term": "x" }))
            .await
            .is_empty()
    );
    let server = "/v3/publicRooms?server=elsewhere";
    alice
        .post(server, json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
    let own = alice.post("/v3/publicRooms?server=hs1", json!({})).await;
    assert_eq!(room_ids(&own.ok()).len(), 2);
}

#[tokio::test] // "GET /publicRooms": `limit`, `since`; the largest first
async fn the_directory_is_paged_from_the_largest_room_down() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..3 {
        rooms.push(alice.create_room(json!({ "visibility": "public" })).await);
    }
    rooms.sort();
    let large = rooms.remove(2);
    bob.join(&large).await.ok();
    let first = alice.get("/v3/publicRooms?limit=2").await.ok();
    assert_eq!(room_ids(&first), [large.clone(), rooms[0].clone()]);
    assert_eq!(first["total_room_count_estimate"], 3);
    let next = first["next_batch"].as_str().expect("a next page");
    let path = format!("/v3/publicRooms?limit=2&since={}", segment(next));
    let second = alice.get(&path).await.ok();
    assert_eq!(room_ids(&second), [rooms[1].clone()]);
    assert!(second["next_batch"].is_null());
    let back = second["prev_batch"].as_str().expect("a page before");
    let path = format!("/v3/publicRooms?limit=2&since={}", segment(back));
    assert_eq!(room_ids(&alice.get(&path).await.ok()), room_ids(&first));
    alice
        .get("/v3/publicRooms?since=nonsense")
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // Configuration: who reads the directory without an account
async fn the_directory_is_read_without_login_only_where_the_admin_allows_it() {
    let path = "/_matrix/client/v3/publicRooms";
    let world = World::new().await;
    world.request(Method::GET, path, None, None).await.ok();
    let body = json!({});
    world
        .request(Method::POST, path, None, Some(&body))
        .await
        .fails(401, "M_MISSING_TOKEN");
    let closed = World::with(|config| config.rooms.public_list_needs_login = true).await;
    closed
        .request(Method::GET, path, None, None)
        .await
        .fails(401, "M_MISSING_TOKEN");
}

#[tokio::test] // Configuration: who creates and who publishes rooms
async fn creating_and_publishing_is_for_admins_where_the_configuration_says_so() {
    let world = World::with(|config| {
        config.rooms.create = Who::Admins;
        config.rooms.publish = Who::Admins;
    })
    .await;
    let (admin, alice) = (world.register("admin").await, world.register("alice").await);
    world.make_admin(&admin).await;
    let create = |visibility: &str| json!({ "preset": "public_chat", "visibility": visibility });
    alice
        .post("/v3/createRoom", create("private"))
        .await
        .fails(403, "M_FORBIDDEN");
    let room = admin.post("/v3/createRoom", create("public")).await.ok();
    let room = room["room_id"].as_str().expect("a room").to_owned();
    // Power in the room does not make up for it.
    alice.join(&room).await.ok();
    let levels = json!({ "users": { "@alice:hs1": 100 } });
    admin
        .set_state(&room, "m.room.power_levels", "", levels)
        .await
        .ok();
    list(&alice, &room, "public")
        .await
        .fails(403, "M_FORBIDDEN");
    list(&alice, &room, "private").await.ok();
}

#[tokio::test] // Configuration: the switch for test rigs
async fn any_room_is_published_where_the_switch_for_test_rigs_says_so() {
    let world = World::with(|config| {
        config.rooms.publish = Who::Admins;
        config.testing.publish_any_room = true;
    })
    .await;
    let _admin = world.register("admin").await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    list(&bob, &room, "public").await.ok();
    let page = bob.get("/v3/publicRooms").await.ok();
    assert_eq!(room_ids(&page), [room]);
}
