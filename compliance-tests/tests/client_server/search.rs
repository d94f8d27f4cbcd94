//! Client-server API, "Server Side Search".

use compliance_tests::{Client, World, event_ids};
use serde_json::{Value, json};

/// The part of the answer about events.
async fn search(client: &Client, criteria: Value) -> Value {
    page(client, criteria, "").await
}

async fn page(client: &Client, criteria: Value, query: &str) -> Value {
    let body = json!({ "search_categories": { "room_events": criteria } });
    let reply = client.post(&format!("/v3/search{query}"), body).await.ok();
    reply["search_categories"]["room_events"].clone()
}

/// The IDs of what was found, in order.
fn found(reply: &Value) -> Vec<String> {
    let results = reply["results"].as_array().unwrap();
    event_ids(
        &results
            .iter()
            .map(|result| result["result"].clone())
            .collect(),
    )
}

#[tokio::test]
async fn an_event_with_all_of_the_words_is_found_in_any_case() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let hit = alice.say(&room, "Hello, big WORLD!").await;
    alice.say(&room, "hello there").await;
    let reply = search(&alice, json!({ "search_term": "world hello" })).await;
    assert_eq!(found(&reply), [hit]);
    assert_eq!(reply["count"], 1);
    assert_eq!(reply["highlights"], json!(["hello", "world"]));
    assert_eq!(reply["results"][0]["result"]["room_id"], *room);
    assert!(reply["results"][0]["rank"].as_f64().unwrap() > 0.6);
    assert_eq!(
        found(&search(&alice, json!({ "search_term": "wor" })).await).len(),
        0
    );
    assert_eq!(
        search(&alice, json!({ "search_term": "!?" })).await["count"],
        0
    );
}

#[tokio::test] // `keys`, `filter`
async fn names_and_topics_are_found_and_filters_hold() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Garden", "topic": "the garden" }))
        .await;
    let other = alice.public_room().await;
    bob.join(&room).await.ok();
    let said = bob.say(&room, "garden").await;
    let elsewhere = alice.say(&other, "garden").await;
    let count = |more: Value| {
        let mut criteria = json!({ "search_term": "garden" });
        criteria
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let alice = &alice;
        async move { search(alice, criteria).await["count"].as_u64().unwrap() }
    };
    assert_eq!(count(json!({})).await, 4);
    assert_eq!(count(json!({ "keys": ["content.name"] })).await, 1);
    assert_eq!(
        count(json!({ "filter": { "types": ["m.room.topic"] } })).await,
        1
    );
    assert_eq!(count(json!({ "filter": { "rooms": [other] } })).await, 1);
    assert_eq!(
        count(json!({ "filter": { "not_senders": [bob.user_id] } })).await,
        3
    );
    let mine = json!({ "search_term": "garden", "filter": { "senders": [bob.user_id] } });
    assert_eq!(found(&search(&alice, mine).await), [said]);
    // Who is ignored is not heard, and who was never there finds nothing.
    let path = format!(
        "/v3/user/{}/account_data/m.ignored_user_list",
        alice.user_id
    );
    let ignored = json!({ "ignored_users": { &bob.user_id: {} } });
    alice.put(&path, ignored).await.ok();
    assert_eq!(count(json!({})).await, 3);
    let bobs = search(&bob, json!({ "search_term": "garden" })).await;
    assert!(!found(&bobs).contains(&elsewhere));
}

#[tokio::test] // `next_batch`, `order_by`, `groupings`
async fn results_come_in_pages_newest_first_and_in_groups() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let rooms = [alice.public_room().await, alice.public_room().await];
    let mut said = Vec::new();
    for n in 0..7 {
        said.push(
            alice
                .say(&rooms[n % 2], &format!("Message number {n}"))
                .await,
        );
    }
    said.reverse();
    let criteria = json!({
        "search_term": "message",
        "order_by": "recent",
        "filter": { "limit": 3 },
        "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
    });
    let first = search(&alice, criteria.clone()).await;
    assert_eq!(found(&first), said[..3]);
    assert_eq!(first["count"], 7);
    let next = |page: &Value| format!("?next_batch={}", page["next_batch"].as_str().unwrap());
    let second = page(&alice, criteria.clone(), &next(&first)).await;
    assert_eq!(found(&second), said[3..6]);
    let third = page(&alice, criteria.clone(), &next(&second)).await;
    assert_eq!(found(&third), said[6..]);
    assert_eq!(
        (&third["count"], &third["next_batch"]),
        (&json!(7), &Value::Null)
    );
    let group = &first["groups"]["room_id"][&rooms[1]];
    assert_eq!(group["results"], json!([said[1]]));
    let rest = page(&alice, criteria, &next(group)).await;
    assert_eq!(found(&rest), [said[3].clone(), said[5].clone()]);
    assert_eq!(
        first["groups"]["sender"][&alice.user_id]["results"],
        json!(said[..3])
    );
    let broken = json!({ "search_categories": { "room_events": { "search_term": "x" } } });
    let reply = alice.post("/v3/search?next_batch=nonsense", broken).await;
    reply.fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // `order_by`: rank is the default
async fn what_fits_best_comes_first_by_rank() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let best = alice.say(&room, "apple").await;
    let good = alice.say(&room, "an apple").await;
    let weak = alice.say(&room, "there is an apple on the table").await;
    let criteria = json!({ "search_term": "apple", "filter": { "limit": 2 } });
    let first = search(&alice, criteria.clone()).await;
    assert_eq!(found(&first), [best, good]);
    let query = format!("?next_batch={}", first["next_batch"].as_str().unwrap());
    assert_eq!(found(&page(&alice, criteria, &query).await), [weak]);
}

#[tokio::test] // `event_context`, `include_state`
async fn results_come_with_their_surroundings_and_the_state_of_their_rooms() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let room = alice.public_room().await;
    let mut said = Vec::new();
    for n in 0..5 {
        said.push(alice.say(&room, &format!("Message{n}")).await);
    }
    let criteria = json!({
        "search_term": "message2",
        "event_context": { "before_limit": 1, "after_limit": 2, "include_profile": true },
        "include_state": true,
    });
    let reply = search(&alice, criteria).await;
    let context = &reply["results"][0]["context"];
    assert_eq!(event_ids(&context["events_before"]), said[1..2]);
    assert_eq!(event_ids(&context["events_after"]), said[3..]);
    assert_eq!(
        context["profile_info"][&alice.user_id]["displayname"],
        "alice"
    );
    let query = format!("limit=1&from={}", context["start"].as_str().unwrap());
    let older = alice.messages(&room, &query).await;
    assert_eq!(event_ids(&older["chunk"]), said[..1]);
    let state = reply["state"][&room].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
}

#[tokio::test] // "Room history visibility", "Redactions"
async fn nobody_finds_what_they_may_not_see_or_what_was_redacted() {
    let world = World::new().await;
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let room = alice.public_room().await;
    let joined = json!({ "history_visibility": "joined" });
    alice
        .set_state(&room, "m.room.history_visibility", "", joined)
        .await
        .ok();
    let early = alice.say(&room, "treasure early").await;
    bob.join(&room).await.ok();
    let shared = alice.say(&room, "treasure shared").await;
    let criteria = json!({ "search_term": "treasure", "order_by": "recent" });
    bob.leave(&room).await.ok();
    alice.say(&room, "treasure late").await;
    let bobs = search(&bob, criteria.clone()).await;
    assert_eq!((found(&bobs), &bobs["count"]), (vec![shared], &json!(1)));
    let path = format!("/v3/rooms/{room}/redact/{early}/t1");
    alice.put(&path, json!({})).await.ok();
    assert!(!found(&search(&alice, criteria).await).contains(&early));
    // And its words are gone from the store.
    let store = &world.server().app.store;
    for keyspace in [
        store::keys::Keyspace::WORD,
        store::keys::Keyspace::EVENT_WORDS,
    ] {
        let prefix = store::keys::Packed::key(keyspace);
        let visit = |key: &[u8], value: &[u8]| {
            let text = String::from_utf8_lossy(&[key, value].concat()).into_owned();
            assert!(!text.contains("early"));
            Ok(true)
        };
        store
            .visit(&prefix, store::kv::Direction::Ascending, visit)
            .unwrap();
    }
}

#[tokio::test] // "Room Upgrades": a room is searched with what came before it
async fn a_search_in_a_room_finds_what_was_said_in_its_predecessor() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let old = alice.public_room().await;
    let said = alice.say(&old, "ancient wisdom").await;
    let creation = json!({ "predecessor": { "room_id": old, "event_id": said } });
    let new = alice
        .create_room(json!({ "creation_content": creation }))
        .await;
    let criteria = json!({ "search_term": "wisdom", "filter": { "rooms": [new] } });
    assert_eq!(found(&search(&alice, criteria).await), [said]);
}

#[tokio::test]
async fn a_search_that_makes_no_sense_is_refused() {
    let world = World::new().await;
    let alice = world.register("alice").await;
    let ask = |criteria: Value| {
        alice.post(
            "/v3/search",
            json!({ "search_categories": { "room_events": criteria } }),
        )
    };
    ask(json!({})).await.fails(400, "M_BAD_JSON");
    ask(json!({ "search_term": "x", "order_by": "luck" }))
        .await
        .fails(400, "M_BAD_JSON");
    ask(json!({ "search_term": "x".repeat(1_024) })).await.ok();
    ask(json!({ "search_term": "x".repeat(1_025) }))
        .await
        .fails(400, "M_INVALID_PARAM");
    ask(json!({ "search_term": "x", "filter": { "limit": 0 } }))
        .await
        .fails(400, "M_INVALID_PARAM");
}
