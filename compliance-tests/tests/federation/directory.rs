//! Server-server API, "Querying for information": aliases; "Published room directory". Client-server API, "Room aliases",
//! "Published room directory", of other servers.

use compliance_tests::{Client, Network, segment};
use http::Method;
use serde_json::{Value, json};

const ROOMS: &str = "/_matrix/federation/v1/publicRooms";

fn query(alias: &str) -> String {
    format!(
        "/_matrix/federation/v1/query/directory?room_alias={}",
        segment(alias)
    )
}

async fn published(by: &Client, name: &str, more: Value) -> String {
    let mut body = json!({ "preset": "public_chat", "visibility": "public", "name": name });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    by.create_room(body).await
}

fn names(page: &Value) -> Vec<&str> {
    let rooms = page["chunk"].as_array().unwrap().iter();
    rooms.map(|room| room["name"].as_str().unwrap()).collect()
}

#[tokio::test] // "Performs a query to get the mapped room ID and list of resident homeservers"
async fn an_alias_of_this_server_leads_to_its_room_and_the_servers_in_it() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    let room = alice.create_room(json!({ "room_alias_name": "tea" })).await;
    let reply = other
        .ask(&hs1, Method::GET, &query("#tea:hs1"), None)
        .await
        .ok();
    assert_eq!(reply, json!({ "room_id": room, "servers": ["hs1"] }));
    let reply = other
        .ask(&hs1, Method::GET, &query("#coffee:hs1"), None)
        .await;
    reply.fails(404, "M_NOT_FOUND");
    let reply = other
        .ask(&hs1, Method::GET, &query("#tea:other"), None)
        .await;
    reply.fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "GET /directory/room/{roomAlias}"
async fn an_alias_of_another_server_leads_where_that_server_says() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    let room = bob.create_room(json!({ "room_alias_name": "tea" })).await;
    let path = |alias: &str| format!("/v3/directory/room/{}", segment(alias));
    let reply = alice.get(&path("#tea:hs2")).await.ok();
    assert_eq!(reply, json!({ "room_id": room, "servers": ["hs2"] }));
    let reply = alice.get(&path("#coffee:hs2")).await;
    reply.fails(404, "M_NOT_FOUND");
    network.cut("hs1", "hs2");
    let reply = alice.get(&path("#tea:hs2")).await;
    reply.fails(502, "M_UNKNOWN");
}

#[tokio::test] // "Lists the server's published room directory"
async fn the_published_rooms_of_this_server_are_listed_for_others_page_by_page() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    published(&alice, "one", json!({})).await;
    published(&alice, "two", json!({})).await;
    alice
        .create_room(json!({ "preset": "public_chat", "name": "unlisted" }))
        .await;
    let whole = other.ask(&hs1, Method::GET, ROOMS, None).await.ok();
    let mut listed = names(&whole);
    listed.sort_unstable();
    assert_eq!(listed, ["one", "two"]);
    assert_eq!(whole["total_room_count_estimate"], 2);
    let first = other
        .ask(&hs1, Method::GET, &format!("{ROOMS}?limit=1"), None)
        .await
        .ok();
    let since = segment(first["next_batch"].as_str().unwrap());
    let path = format!("{ROOMS}?limit=1&since={since}");
    let second = other.ask(&hs1, Method::GET, &path, None).await.ok();
    let mut pages = [names(&first), names(&second)].concat();
    pages.sort_unstable();
    assert_eq!(pages, ["one", "two"]);
    assert_eq!(second.get("next_batch"), None);
}

#[tokio::test] // "POST /publicRooms": `filter`; room types, of which null is a room without one
async fn the_published_rooms_are_searched_by_others_by_term_and_type() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let alice = hs1.register("alice").await;
    published(&alice, "Tea", json!({})).await;
    let space = json!({ "creation_content": { "type": "m.space" } });
    published(&alice, "Tea space", space).await;
    published(&alice, "Coffee", json!({})).await;
    let search = async |filter: Value| {
        let body = json!({ "filter": filter });
        other.ask(&hs1, Method::POST, ROOMS, Some(body)).await.ok()
    };
    let mut found = search(json!({ "generic_search_term": "tea" })).await;
    found["chunk"]
        .as_array_mut()
        .unwrap()
        .sort_by_key(|room| room["name"].as_str().map(str::len));
    assert_eq!(names(&found), ["Tea", "Tea space"]);
    let plain = json!({ "generic_search_term": "tea", "room_types": [null] });
    assert_eq!(names(&search(plain).await), ["Tea"]);
    let spaces = json!({ "room_types": ["m.space"] });
    assert_eq!(names(&search(spaces).await), ["Tea space"]);
}

#[tokio::test] // "`server`: The server to fetch the public room lists from"
async fn the_directory_of_another_server_is_read_there() {
    let network = Network::new();
    let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
    let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
    published(&alice, "here", json!({})).await;
    published(&bob, "there", json!({})).await;
    published(&bob, "tea", json!({})).await;
    let listed = alice.get("/v3/publicRooms?server=hs2").await.ok();
    let mut listed = names(&listed);
    listed.sort_unstable();
    assert_eq!(listed, ["tea", "there"]);
    let body = json!({ "filter": { "generic_search_term": "the" } });
    let found = alice.post("/v3/publicRooms?server=hs2", body).await.ok();
    assert_eq!(names(&found), ["there"]);
    let own = alice.get("/v3/publicRooms?server=hs1").await.ok();
    assert_eq!(names(&own), ["here"]);
    let path = "/_matrix/client/v3/publicRooms?server=hs2";
    let reply = hs1.request(Method::GET, path, None, None).await;
    reply.fails(401, "M_MISSING_TOKEN");
    let reply = alice.get("/v3/publicRooms?server=nowhere").await;
    reply.fails(502, "M_UNKNOWN");
}
