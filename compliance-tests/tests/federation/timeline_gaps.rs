//! Server-server API, "Backfilling and retrieving missing events", for what was said while a server was away;
//! client-server API, "Syncing", `limited`.

use axum::{Json, Router, routing::get};
use compliance_tests::{Client, Network, World, event_ids, segment};
use serde_json::{Value, json};

use crate::rooms::until;

/// How many messages are sent while the second server is away: more than are asked for at a time.
const AWAY: usize = 130;

/// A room of the first server that a user of the second left and came back to.
struct Scene {
    network: Network,
    hs1: World,
    hs2: World,
    alice: Client,
    bob: Client,
    room: String,
    /// What bob's client knew before he left.
    since: String,
    /// What was said before, meanwhile, and since then.
    said: [Vec<String>; 3],
}

impl Scene {
    async fn new(visibility: &str, away: usize) -> Self {
        let network = Network::new();
        let hs1 = network.server("hs1").await;
        let hs2 = network.server_on_disk("hs2", |_| {}).await;
        let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
        let visibility = json!({
            "type": "m.room.history_visibility", "state_key": "",
            "content": { "history_visibility": visibility },
        });
        let body = json!({ "preset": "public_chat", "initial_state": [visibility] });
        let room = alice.create_room(body).await;
        let path = format!("/v3/join/{}?via=hs1", segment(&room));
        bob.post(&path, json!({})).await.ok();
        let before = vec![bob.say(&room, "before").await];
        let since = bob.sync(None, "").await["next_batch"]
            .as_str()
            .unwrap()
            .to_owned();
        leave(&alice, &bob, &room).await;
        let mut meanwhile = Vec::new();
        for number in 0..away {
            meanwhile.push(alice.say(&room, &number.to_string()).await);
        }
        bob.post(&path, json!({})).await.ok();
        let after = vec![bob.say(&room, "after").await];
        Self {
            network,
            hs1,
            hs2,
            alice,
            bob,
            room,
            since,
            said: [before, meanwhile, after],
        }
    }

    fn all(&self) -> Vec<String> {
        self.said.concat()
    }

    /// One page backwards, and where the next begins.
    async fn page(&self, from: Option<&str>, limit: usize) -> (Vec<String>, Option<String>) {
        let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
        let page = self
            .bob
            .messages(&self.room, &format!("limit={limit}{from}"))
            .await;
        let end = page["end"].as_str().map(str::to_owned);
        (messages(&page["chunk"]), end)
    }

    /// All messages, oldest first, paged back from `from`.
    async fn pages(&self, mut from: Option<String>, limit: usize) -> Vec<String> {
        let mut seen = Vec::new();
        for _ in 0..100 {
            let (page, end) = self.page(from.as_deref(), limit).await;
            seen.extend(page);
            let Some(end) = end else {
                seen.reverse();
                return seen;
            };
            assert_ne!(from.as_deref(), Some(&*end), "a page leads somewhere");
            from = Some(end);
        }
        panic!("paging back has no end");
    }
}

/// Bob leaves, and the first server knows it.
async fn leave(alice: &Client, bob: &Client, room: &str) {
    bob.leave(room).await.ok();
    let is_left = |event: &Value| {
        event["state_key"] == "@bob:hs2" && event["content"]["membership"] == "leave"
    };
    until(alice, room, is_left).await;
}

/// The IDs of messages among some events.
fn messages(events: &Value) -> Vec<String> {
    let mut events = events.clone();
    let list = events.as_array_mut().unwrap();
    list.retain(|event| event["type"] == "m.room.message");
    event_ids(&events)
}

#[tokio::test] // "Backfilling"
async fn paging_through_a_gap_sees_every_event_once_and_in_order() {
    let scene = Scene::new("shared", AWAY).await;
    for limit in [7, 200] {
        assert_eq!(
            scene.pages(None, limit).await,
            scene.all(),
            "{limit} at a time"
        );
    }
    let asked = scene.network.count("hs2", "hs1", "/backfill/");
    scene.pages(None, 50).await;
    let again = scene.network.count("hs2", "hs1", "/backfill/");
    assert_eq!(asked, again, "a gap that is filled is not asked for");
    // Forwards, through it.
    let path = format!(
        "/v3/rooms/{}/messages?dir=f&limit=1000",
        segment(&scene.room)
    );
    let forwards = scene.bob.get(&path).await.ok();
    assert_eq!(messages(&forwards["chunk"]), scene.all());
    // Around what fills it.
    let middle = &scene.said[1];
    let path = format!(
        "/v3/rooms/{}/context/{}?limit=4",
        segment(&scene.room),
        segment(&middle[60])
    );
    let around = scene.bob.get(&path).await.ok();
    assert_eq!(
        event_ids(&around["events_before"]),
        [&*middle[59], &middle[58]]
    );
    assert_eq!(
        event_ids(&around["events_after"]),
        [&*middle[61], &middle[62]]
    );
    let end = around["start"].as_str().map(str::to_owned);
    let older = scene.pages(end, 20).await;
    assert_eq!(older, scene.all()[..59]);
}

#[tokio::test] // "`limited`: True if the number of events returned was limited"
async fn a_sync_across_a_gap_is_limited_and_leads_back_into_it() {
    let scene = Scene::new("shared", 5).await;
    for since in [Some(&*scene.since), None] {
        let sync = scene.bob.sync(since, "").await;
        let timeline = &sync["rooms"]["join"][&scene.room]["timeline"];
        assert_eq!(timeline["limited"], true, "{timeline}");
        assert_eq!(messages(&timeline["events"]), scene.said[2]);
        let start = timeline["prev_batch"].as_str().map(str::to_owned);
        let older = scene.pages(start, 4).await;
        assert_eq!(older, [&*scene.said[0], &*scene.said[1]].concat());
    }
    let body = json!({ "lists": { "all": {
        "ranges": [[0, 9]], "timeline_limit": 20, "required_state": [],
    } } });
    let path = "/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
    let sync = scene.bob.post(path, body).await.ok();
    let room = &sync["rooms"][&scene.room];
    assert_eq!(room["limited"], true, "{room}");
    assert_eq!(messages(&room["timeline"]), scene.said[2]);
    let next = scene.bob.sync(None, "").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    let event = scene.alice.say(&scene.room, "later").await;
    until(&scene.bob, &scene.room, |told| told["event_id"] == event).await;
    let sync = scene.bob.sync(Some(&next), "").await;
    let timeline = &sync["rooms"]["join"][&scene.room]["timeline"];
    assert_eq!(timeline["limited"], false, "{timeline}");
    assert_eq!(messages(&timeline["events"]), [event]);
}

#[tokio::test] // client-server API, "Room history visibility", `joined`
async fn what_fills_a_gap_is_shown_only_to_who_may_see_it() {
    let scene = Scene::new("joined", 5).await;
    let expected = [&*scene.said[0], &*scene.said[2]].concat();
    assert_eq!(scene.pages(None, 3).await, expected);
}

#[tokio::test]
async fn a_gap_is_still_one_after_a_restart_in_the_middle_of_it() {
    let mut scene = Scene::new("shared", AWAY).await;
    let (first, end) = scene.page(None, 20).await;
    // Who has the old router has the old store.
    scene.bob = scene.hs1.log_in("alice").await;
    scene.hs2 = scene.hs2.restart(|_| {}).await;
    scene.bob = scene.hs2.log_in("bob").await;
    let mut seen = scene.pages(end, 20).await;
    seen.extend(first.into_iter().rev());
    assert_eq!(seen, scene.all());
    assert!(scene.network.count("hs2", "hs1", "/backfill/") > 1);
}

#[tokio::test]
async fn a_peer_that_tells_nothing_or_junk_leaves_the_gap_for_later() {
    let scene = Scene::new("shared", 5).await;
    let known = [&*scene.said[0], &*scene.said[2]].concat();
    let backfill = "/_matrix/federation/v1/backfill/{room}";
    for pdus in [
        json!([]),
        json!([{ "junk": true }, 7, { "room_id": scene.room }]),
    ] {
        let answer = json!({ "origin": "hs1", "origin_server_ts": 1, "pdus": pdus });
        let answers = move || async move { Json(answer) };
        let router = Router::new().route(backfill, get(answers));
        scene.network.serve("hs1".try_into().unwrap(), router);
        let asked = scene.network.count("hs2", "hs1", "/backfill/");
        let seen = scene.pages(None, 100).await;
        assert_eq!(seen, known, "what is known is shown all the same");
        let asked = scene.network.count("hs2", "hs1", "/backfill/") - asked;
        assert!((1..=3).contains(&asked), "{asked} times");
    }
    scene
        .network
        .serve("hs1".try_into().unwrap(), scene.hs1.server().router.clone());
    assert_eq!(scene.pages(None, 100).await, scene.all());
}

#[tokio::test]
async fn a_redaction_in_a_gap_empties_what_is_before_it() {
    let scene = Scene::new("shared", 1).await;
    let target = &scene.said[0][0];
    leave(&scene.alice, &scene.bob, &scene.room).await;
    let (room, event) = (segment(&scene.room), segment(target));
    let path = format!("/v3/rooms/{room}/redact/{event}/1");
    scene.alice.put(&path, json!({})).await.ok();
    let join = format!("/v3/join/{room}?via=hs1");
    scene.bob.post(&join, json!({})).await.ok();
    scene.pages(None, 100).await;
    let path = format!("/v3/rooms/{room}/event/{event}");
    let left = scene.bob.get(&path).await.ok();
    assert_eq!(left["content"], json!({}));
}
