//! Server-server API, "Backfilling and retrieving missing events", "Retrieving events", "Server Access Control Lists".

use std::collections::BTreeSet;

use compliance_tests::{Client, Network, Stranger, World, segment};
use homeserver::peers::{self, PeerError};
use http::Method;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomVersionId,
    UInt,
    api::{
        Direction, OutgoingRequest,
        federation::{
            authorization::get_event_authorization,
            backfill::get_backfill,
            event::{
                get_event, get_event_by_timestamp, get_missing_events, get_room_state,
                get_room_state_ids,
            },
        },
        path_builder::SinglePath,
    },
    room_version_rules::RoomVersionRules,
    signatures::reference_hash,
};
use serde_json::{Value, json, value::RawValue};

const NO_DEPTH: UInt = UInt::MIN;

fn room_id(room: &str) -> OwnedRoomId {
    room.try_into().unwrap()
}

fn id(event: &str) -> OwnedEventId {
    event.try_into().unwrap()
}

fn ids(events: &[&str]) -> Vec<OwnedEventId> {
    events.iter().map(|event| id(event)).collect()
}

/// An event of a room of version 12 by its own hash, which a redaction does not change, and its content.
fn read(raw: &RawValue) -> (String, Value) {
    let rules = RoomVersionRules::V12;
    let object: CanonicalJsonObject = serde_json::from_str(raw.get()).unwrap();
    for key in ["event_id", "unsigned"] {
        assert!(!object.contains_key(key), "{key} is no part of a PDU");
    }
    let content = serde_json::to_value(&object["content"]).unwrap();
    (
        format!("${}", reference_hash(&object, &rules).unwrap()),
        content,
    )
}

fn read_all(raw: &[Box<RawValue>]) -> Vec<(String, Value)> {
    raw.iter().map(|raw| read(raw)).collect()
}

fn ids_of(raw: &[Box<RawValue>]) -> Vec<String> {
    read_all(raw).into_iter().map(|(id, _)| id).collect()
}

/// Status and errcode of what must be an error.
fn refusal<T>(answer: Result<T, PeerError>) -> (u16, String, String) {
    match answer {
        Err(PeerError::Refused {
            status,
            errcode,
            message,
            ..
        }) => (status.as_u16(), errcode, message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("an answer, where an error is due"),
    }
}

/// Two servers, a user of each, and a room of the first.
struct Scene {
    network: Network,
    hs1: World,
    hs2: World,
    alice: Client,
    bob: Client,
    room: String,
}

impl Scene {
    /// A public room with this history visibility, in which Bob is not yet.
    async fn new(visibility: &str) -> Self {
        let network = Network::new();
        let (hs1, hs2) = (network.server("hs1").await, network.server("hs2").await);
        let (alice, bob) = (hs1.register("alice").await, hs2.register("bob").await);
        let visibility = json!({
            "type": "m.room.history_visibility", "state_key": "",
            "content": { "history_visibility": visibility },
        });
        let body = json!({ "preset": "public_chat", "initial_state": [visibility] });
        let room = alice.create_room(body).await;
        Self {
            network,
            hs1,
            hs2,
            alice,
            bob,
            room,
        }
    }

    async fn join(&self) {
        let path = format!("/v3/join/{}?via=hs1", segment(&self.room));
        self.bob.post(&path, json!({})).await.ok();
    }

    async fn say(&self, texts: &[&str]) -> Vec<String> {
        let mut said = Vec::new();
        for text in texts {
            said.push(self.alice.say(&self.room, text).await);
        }
        said
    }

    async fn topic(&self, topic: &str) -> String {
        let body = json!({ "topic": topic });
        let reply = self
            .alice
            .set_state(&self.room, "m.room.topic", "", body)
            .await;
        reply.ok()["event_id"].as_str().unwrap().to_owned()
    }

    /// Asks the first server in the name of the second.
    async fn ask<R>(&self, request: R) -> Result<R::IncomingResponse, PeerError>
    where
        R: OutgoingRequest<PathBuilder = SinglePath> + Send,
    {
        let hs1 = "hs1".try_into().unwrap();
        peers::ask(&self.hs2.server().app, hs1, request).await
    }

    async fn backfill(&self, from: &[&str], limit: u32) -> Result<Vec<Box<RawValue>>, PeerError> {
        let limit = UInt::from(limit);
        let request = get_backfill::v1::Request::new(room_id(&self.room), ids(from), limit);
        Ok(self.ask(request).await?.pdus)
    }

    async fn missing(
        &self,
        earliest: &[&str],
        latest: &[&str],
        (limit, min_depth): (Option<u32>, UInt),
    ) -> Result<Vec<String>, PeerError> {
        let room = room_id(&self.room);
        let mut request = get_missing_events::v1::Request::new(room, ids(earliest), ids(latest));
        request.limit = limit.map_or(request.limit, UInt::from);
        request.min_depth = min_depth;
        Ok(ids_of(&self.ask(request).await?.events))
    }

    async fn event(&self, event: &str) -> Result<(String, Value), PeerError> {
        let answer = self.ask(get_event::v1::Request::new(id(event))).await?;
        assert_eq!(answer.origin, "hs1");
        Ok(read(&answer.pdu))
    }

    async fn state_ids(&self, event: &str) -> Result<get_room_state_ids::v1::Response, PeerError> {
        let request = get_room_state_ids::v1::Request::new(id(event), room_id(&self.room));
        self.ask(request).await
    }

    async fn auth(&self, event: &str) -> Result<Vec<Box<RawValue>>, PeerError> {
        let request = get_event_authorization::v1::Request::new(room_id(&self.room), id(event));
        Ok(self.ask(request).await?.auth_chain)
    }

    async fn near(&self, ms: u64, direction: Direction) -> Result<String, PeerError> {
        let time = MilliSecondsSinceUnixEpoch(UInt::try_from(ms).unwrap());
        let room = room_id(&self.room);
        let request = get_event_by_timestamp::v1::Request::new(room, time, direction);
        Ok(self.ask(request).await?.event_id.to_string())
    }

    /// What each endpoint that names the room answers to the second server.
    async fn refusals(&self, event: &str) -> Vec<(u16, String, String)> {
        let state = get_room_state::v1::Request::new(id(event), room_id(&self.room));
        vec![
            refusal(self.backfill(&[event], 1).await),
            refusal(self.missing(&[], &[event], (None, NO_DEPTH)).await),
            refusal(self.ask(state).await),
            refusal(self.state_ids(event).await),
            refusal(self.auth(event).await),
            refusal(self.near(0, Direction::Forward).await),
        ]
    }
}

#[tokio::test] // "GET /backfill/{roomId}"
async fn backfill_gives_the_named_events_and_those_behind_them_newest_first() {
    let scene = Scene::new("shared").await;
    let said = scene.say(&["a", "b", "c", "d", "e"]).await;
    scene.join().await;
    let pdus = scene.backfill(&[&said[3]], 3).await.unwrap();
    let expected = [&said[3], &said[2], &said[1]];
    assert_eq!(ids_of(&pdus).iter().collect::<Vec<_>>(), expected);
    assert_eq!(read(&pdus[0]).1["body"], "d");
    // Two that are named, one of them behind the other: each event comes once.
    let pdus = scene.backfill(&[&said[1], &said[3]], 4).await.unwrap();
    let expected = [&said[3], &said[2], &said[1], &said[0]];
    assert_eq!(ids_of(&pdus).iter().collect::<Vec<_>>(), expected);
    let pdus = scene.backfill(&["$nosuch"], 4).await.unwrap();
    assert_eq!(ids_of(&pdus), [""; 0]);
}

#[tokio::test] // "GET /backfill/{roomId}": `limit`, of which more than 100 are never served
async fn backfill_gives_at_most_a_hundred_events_and_all_up_to_the_create_event() {
    let scene = Scene::new("shared").await;
    let mut last = String::new();
    for number in 0..101 {
        last = scene.alice.say(&scene.room, &number.to_string()).await;
    }
    scene.join().await;
    let pdus = scene.backfill(&[&last], 1_000).await.unwrap();
    assert_eq!(pdus.len(), 100);
    let (oldest, _) = read(&pdus[99]);
    let rest = scene.backfill(&[&oldest], 1_000).await.unwrap();
    let create: Value = serde_json::from_str(rest.last().unwrap().get()).unwrap();
    assert_eq!(create["type"], "m.room.create");
    assert_eq!(create.get("room_id"), None);
}

#[tokio::test] // "Room history visibility": what none of a server's users could see it gets redacted
async fn what_was_said_before_a_servers_first_user_joined_is_redacted_where_only_members_see_it() {
    for (visibility, seen) in [("shared", true), ("invited", false), ("joined", false)] {
        let scene = Scene::new(visibility).await;
        let before = scene.alice.say(&scene.room, "before").await;
        scene.join().await;
        let after = scene.alice.say(&scene.room, "after").await;
        let body = |content: &Value| content.get("body").cloned();
        let pdus = read_all(&scene.backfill(&[&after], 3).await.unwrap());
        assert_eq!([&pdus[0].0, &pdus[2].0], [&after, &before], "{visibility}");
        assert_eq!(body(&pdus[0].1), Some(json!("after")), "{visibility}");
        assert_eq!(
            body(&pdus[2].1),
            seen.then(|| json!("before")),
            "{visibility}"
        );
        let (same, content) = scene.event(&before).await.unwrap();
        assert_eq!((same, content), pdus[2], "{visibility}");
    }
}

#[tokio::test] // "invited": from the invite of one of its users on
async fn what_was_said_after_an_invite_is_told_whole_to_the_invited_users_server() {
    let scene = Scene::new("invited").await;
    let before = scene.alice.say(&scene.room, "before").await;
    scene.alice.invite(&scene.room, "@bob:hs2").await.ok();
    let between = scene.alice.say(&scene.room, "between").await;
    scene.join().await;
    assert_eq!(scene.event(&before).await.unwrap().1, json!({}));
    assert_eq!(scene.event(&between).await.unwrap().1["body"], "between");
}

/// A user of a stranger joins a room of version 12.
async fn enter(stranger: &Stranger, world: &World, room: &str, user_id: &str) {
    let prefix = "/_matrix/federation";
    let (room, user_id) = (segment(room), segment(user_id));
    let path = format!("{prefix}/v1/make_join/{room}/{user_id}?ver=12");
    let proposal = stranger.ask(world, Method::GET, &path, None).await.ok();
    let (event_id, event) = stranger.sign_event(proposal["event"].clone(), &RoomVersionId::V12);
    let path = format!("{prefix}/v2/send_join/{room}/{}", segment(&event_id));
    stranger
        .ask(world, Method::PUT, &path, Some(event))
        .await
        .ok();
}

#[tokio::test] // "joined": until the last of its users left
async fn what_was_said_while_none_of_a_servers_users_was_there_stays_hidden_from_it() {
    let scene = Scene::new("joined").await;
    let (hs1, stranger) = (&scene.hs1, scene.network.stranger("other"));
    enter(&stranger, hs1, &scene.room, "@eve:other").await;
    let here = scene.alice.say(&scene.room, "here").await;
    let body = json!({ "user_id": "@eve:other" });
    let kick = format!("/v3/rooms/{}/kick", segment(&scene.room));
    scene.alice.post(&kick, body).await.ok();
    let away = scene.alice.say(&scene.room, "away").await;
    enter(&stranger, hs1, &scene.room, "@eve:other").await;
    for (event, body) in [(here, json!("here")), (away, Value::Null)] {
        let path = format!("/_matrix/federation/v1/event/{}", segment(&event));
        let answer = stranger.ask(hs1, Method::GET, &path, None).await.ok();
        assert_eq!(answer["pdus"][0]["content"]["body"], body);
    }
}

#[tokio::test] // "POST /get_missing_events/{roomId}"
async fn missing_events_are_those_between_the_latest_and_the_earliest_oldest_first() {
    let scene = Scene::new("shared").await;
    let said = scene.say(&["a", "b", "c", "d", "e"]).await;
    scene.join().await;
    let [a, c, d, e] = [0, 2, 3, 4].map(|index| &*said[index]);
    let between = scene.missing(&[a], &[e], (None, NO_DEPTH)).await.unwrap();
    assert_eq!(between, said[1..4]);
    // Breadth first from the latest: what is nearest to it comes when there is too much.
    let nearest = scene.missing(&[a], &[e], (Some(2), NO_DEPTH)).await;
    assert_eq!(nearest.unwrap(), [c, d]);
    let several = scene
        .missing(&[a], &[c, e], (None, NO_DEPTH))
        .await
        .unwrap();
    assert_eq!(several, [&*said[1], d]);
}

#[tokio::test] // "`limit`: The maximum number of events to retrieve. Defaults to 10"; "`min_depth`"
async fn missing_events_are_ten_by_default_twenty_at_most_and_none_below_the_least_depth() {
    let scene = Scene::new("shared").await;
    let mut said = Vec::new();
    for number in 0..25 {
        said.push(scene.alice.say(&scene.room, &number.to_string()).await);
    }
    scene.join().await;
    let latest = said[24].clone();
    let ten = scene
        .missing(&[], &[&latest], (None, NO_DEPTH))
        .await
        .unwrap();
    assert_eq!(ten, said[14..24]);
    let most = scene.missing(&[], &[&latest], (Some(500), NO_DEPTH)).await;
    assert_eq!(most.unwrap(), said[4..24]);
    let pdus = scene.backfill(&[&said[20]], 1).await.unwrap();
    let depth: Value = serde_json::from_str(pdus[0].get()).unwrap();
    let depth = UInt::try_from(depth["depth"].as_u64().unwrap()).unwrap();
    let deep = scene.missing(&[], &[&latest], (None, depth)).await;
    assert_eq!(deep.unwrap(), said[20..24]);
}

#[tokio::test] // "GET /state/{roomId}", "GET /state_ids/{roomId}": prior to the event
async fn the_state_is_that_before_the_event_with_every_event_that_it_rests_on() {
    let scene = Scene::new("shared").await;
    let old = scene.topic("old").await;
    let new = scene.topic("new").await;
    scene.join().await;
    let ids = scene.state_ids(&new).await.unwrap();
    let state: BTreeSet<String> = ids.pdu_ids.iter().map(ToString::to_string).collect();
    assert!(state.contains(&old) && !state.contains(&new), "{state:?}");
    assert!(!ids.pdu_ids.is_empty() && !ids.auth_chain_ids.is_empty());
    let request = get_room_state::v1::Request::new(id(&new), room_id(&scene.room));
    let whole = scene.ask(request).await.unwrap();
    let texts = |ids: &[OwnedEventId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ids_of(&whole.pdus), texts(&ids.pdu_ids));
    assert_eq!(ids_of(&whole.auth_chain), texts(&ids.auth_chain_ids));
    let known: BTreeSet<String> = [texts(&ids.pdu_ids), texts(&ids.auth_chain_ids)]
        .concat()
        .into_iter()
        .collect();
    for raw in whole.pdus.iter().chain(&whole.auth_chain) {
        let pdu: Value = serde_json::from_str(raw.get()).unwrap();
        for auth in pdu["auth_events"].as_array().unwrap() {
            assert!(known.contains(auth.as_str().unwrap()), "{auth} of {pdu}");
        }
    }
    let unknown = refusal(scene.state_ids("$nosuch").await);
    assert_eq!((unknown.0, &*unknown.1), (404, "M_NOT_FOUND"));
}

#[tokio::test] // "GET /event_auth/{roomId}/{eventId}": "The full set of authorization events that make up the state"
async fn the_auth_chain_of_an_event_reaches_the_create_event_and_leaves_out_the_event_itself() {
    let scene = Scene::new("shared").await;
    let said = scene.alice.say(&scene.room, "a").await;
    scene.join().await;
    let chain = scene.auth(&said).await.unwrap();
    let kinds: Vec<String> = chain
        .iter()
        .map(|raw| {
            let pdu: Value = serde_json::from_str(raw.get()).unwrap();
            pdu["type"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(
        kinds,
        ["m.room.create", "m.room.member", "m.room.power_levels"]
    );
    assert!(!ids_of(&chain).contains(&said));
    let unknown = refusal(scene.auth("$nosuch").await);
    assert_eq!((unknown.0, &*unknown.1), (404, "M_NOT_FOUND"));
}

#[tokio::test] // "GET /timestamp_to_event/{roomId}"
async fn the_event_nearest_to_a_time_is_found_in_both_directions() {
    let scene = Scene::new("shared").await;
    scene.join().await;
    scene.network.pass_ms(1_000);
    let first = scene.alice.say(&scene.room, "a").await;
    let at = scene.network.now_ms();
    scene.network.pass_ms(1_000);
    let second = scene.alice.say(&scene.room, "b").await;
    for (ms, direction, found) in [
        (at, Direction::Forward, &first),
        (at, Direction::Backward, &first),
        (at + 1, Direction::Forward, &second),
        (at + 999, Direction::Backward, &first),
        (at + 5_000, Direction::Backward, &second),
    ] {
        assert_eq!(&scene.near(ms, direction).await.unwrap(), found, "{ms}");
    }
    let none = refusal(scene.near(at + 5_000, Direction::Forward).await);
    assert_eq!((none.0, &*none.1), (404, "M_NOT_FOUND"));
}

#[tokio::test] // An event that the asker may not see is not found
async fn by_its_time_no_event_is_found_that_the_server_may_not_see() {
    let scene = Scene::new("joined").await;
    scene.network.pass_ms(1_000);
    let hidden_at = scene.network.now_ms();
    let hidden = scene.alice.say(&scene.room, "hidden").await;
    scene.network.pass_ms(1_000);
    scene.join().await;
    let found = scene.near(hidden_at, Direction::Forward).await.unwrap();
    assert_ne!(found, hidden);
}

#[tokio::test] // A room that is not known, and one that the server is not in, cannot be told apart
async fn a_server_that_is_not_in_the_room_learns_nothing_of_it() {
    let mut scene = Scene::new("shared").await;
    let said = scene.alice.say(&scene.room, "a").await;
    let outside = scene.refusals(&said).await;
    let unseen = refusal(scene.event(&said).await);
    let unknown = refusal(scene.event("$nosuch").await);
    assert_eq!((unseen.0, &*unseen.1), (404, "M_NOT_FOUND"));
    assert_eq!(unseen, unknown);
    scene.room = "!nosuch:hs1".to_owned();
    let nowhere = scene.refusals(&said).await;
    assert_eq!(outside, nowhere);
    for (status, errcode, _) in outside {
        assert_eq!((status, &*errcode), (403, "M_FORBIDDEN"));
    }
}

#[tokio::test] // The state at an event of another room is not told
async fn an_event_of_another_room_is_not_found_in_this_one() {
    let scene = Scene::new("shared").await;
    scene.join().await;
    let other = scene.alice.public_room().await;
    let said = scene.alice.say(&other, "elsewhere").await;
    for refused in [
        refusal(scene.state_ids(&said).await),
        refusal(scene.auth(&said).await),
    ] {
        assert_eq!((refused.0, &*refused.1), (404, "M_NOT_FOUND"));
    }
    assert_eq!(ids_of(&scene.backfill(&[&said], 5).await.unwrap()), [""; 0]);
    assert_eq!(
        scene
            .missing(&[], &[&said], (None, NO_DEPTH))
            .await
            .unwrap(),
        [""; 0]
    );
}

#[tokio::test] // "Server Access Control Lists (ACLs)": "403 HTTP status code and an `errcode` of `M_FORBIDDEN`"
async fn a_server_that_the_room_shuts_out_is_refused_everything_of_it() {
    let scene = Scene::new("shared").await;
    scene.join().await;
    let said = scene.alice.say(&scene.room, "a").await;
    assert_eq!(scene.event(&said).await.unwrap().0, said);
    let acl = json!({ "allow": ["*"], "deny": ["HS2"] });
    scene
        .alice
        .set_state(&scene.room, "m.room.server_acl", "", acl)
        .await
        .ok();
    for (status, errcode, _) in scene.refusals(&said).await {
        assert_eq!((status, &*errcode), (403, "M_FORBIDDEN"));
    }
    let event = refusal(scene.event(&said).await);
    assert_eq!((event.0, &*event.1), (404, "M_NOT_FOUND"));
}

#[tokio::test] // "world_readable": anybody may read from then on, but not the state by `/state`
async fn a_server_outside_a_room_that_anybody_may_read_gets_what_anybody_may_read() {
    let scene = Scene::new("shared").await;
    let secret = scene.alice.say(&scene.room, "secret").await;
    let open = json!({ "history_visibility": "world_readable" });
    let kind = "m.room.history_visibility";
    scene
        .alice
        .set_state(&scene.room, kind, "", open)
        .await
        .ok();
    let said = scene.alice.say(&scene.room, "open").await;
    let pdus = read_all(&scene.backfill(&[&said], 3).await.unwrap());
    assert_eq!(pdus[0].1["body"], "open");
    assert_eq!(pdus[1].1["history_visibility"], "world_readable");
    assert_eq!(pdus[2], (secret.clone(), json!({})));
    assert_eq!(scene.event(&secret).await.unwrap().1, json!({}));
    let state = refusal(scene.state_ids(&said).await);
    assert_eq!((state.0, &*state.1), (403, "M_FORBIDDEN"));
}

#[tokio::test] // Client-server API, "Account deactivation": `erase`
async fn what_a_user_said_who_asked_to_be_forgotten_is_redacted_for_other_servers() {
    let scene = Scene::new("shared").await;
    scene.join().await;
    let carol = scene.hs1.register("carol").await;
    carol.join(&scene.room).await.ok();
    let said = carol.say(&scene.room, "mine").await;
    assert_eq!(scene.event(&said).await.unwrap().1["body"], "mine");
    let auth = json!({
        "type": "m.login.password", "password": "password-of-carol",
        "identifier": { "type": "m.id.user", "user": "carol" },
    });
    let body = json!({ "auth": auth, "erase": true });
    carol.post("/v3/account/deactivate", body).await.ok();
    assert_eq!(scene.event(&said).await.unwrap(), (said, json!({})));
}

#[tokio::test] // "Request Authentication"
async fn every_answer_needs_a_signed_request() {
    let scene = Scene::new("world_readable").await;
    let path = format!(
        "/_matrix/federation/v1/backfill/{}?v=$a&limit=1",
        segment(&scene.room)
    );
    let reply = scene.hs1.request(Method::GET, &path, None, None).await;
    reply.fails(401, "M_UNAUTHORIZED");
}
