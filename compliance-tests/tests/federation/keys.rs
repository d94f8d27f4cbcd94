//! Server-server API, "Retrieving server keys": telling one's own, having those of others, passing them on.

use std::future::Future;

use axum::{Router, body::Body, response::Response, routing::any};
use compliance_tests::{Network, Stranger, World};
use homeserver::{config::OldVerifyKey, error::ApiResult, peers};
use http::Method;
use ruma::{CanonicalJsonObject, RoomVersionId, room_version_rules::RoomVersionRules};
use serde_json::{Value, json};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const KEYS: &str = "/_matrix/key/v2/server";
const QUERY: &str = "/_matrix/key/v2/query";

fn rules() -> RoomVersionRules {
    RoomVersionId::V11.rules().unwrap()
}

/// An event of a user of `server`, as of `at_ms`.
fn event(server: &Stranger, at_ms: u64) -> Value {
    let event = json!({
        "type": "m.test", "sender": format!("@u:{}", server.name()), "room_id": "!r:hs1", "content": {},
        "origin_server_ts": at_ms, "depth": 1, "prev_events": [], "auth_events": [],
    });
    server.sign_event(event, &RoomVersionId::V11).1
}

async fn verify(world: &World, event: &Value) -> ApiResult<CanonicalJsonObject> {
    let object = serde_json::from_value(event.clone()).unwrap();
    peers::verify_event(&world.server().app, &object, &rules()).await
}

async fn verifies(world: &World, event: &Value) -> bool {
    verify(world, event).await.is_ok()
}

/// Every signed endpoint would do; the router of the server has none that a stranger may ask for anything, so this is
/// one that is not found, by a server that is known.
async fn is_known(world: &World, server: &Stranger) -> bool {
    use homeserver::http::{Origin, RawRequest, Routes};
    async fn nothing(_: homeserver::server::App, _: Origin, _: RawRequest) -> ApiResult<Value> {
        Ok(json!({}))
    }
    let mut routes = Routes::new(world.server().app.clone());
    let target = "/_matrix/federation/v1/query/profile";
    routes.raw(Method::GET, target, nothing);
    let authorization = server.authorization(world.name(), &Method::GET, target, b"");
    let request = http::Request::builder()
        .uri(target)
        .header("Authorization", authorization);
    let request = request.body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(routes.into_router(), request)
        .await
        .unwrap();
    response.status() == http::StatusCode::OK
}

async fn get(world: &World, path: &str) -> Value {
    world.request(Method::GET, path, None, None).await.ok()
}

async fn query(world: &World, server_keys: Value) -> Vec<Value> {
    let body = json!({ "server_keys": server_keys });
    let reply = world
        .request(Method::POST, QUERY, None, Some(&body))
        .await
        .ok();
    reply["server_keys"].as_array().unwrap().clone()
}

/// The answer without the signature of `notary`, which must be there.
fn without_signature(mut answer: Value, notary: &str) -> Value {
    let signatures = answer["signatures"].as_object_mut().unwrap();
    signatures.remove(notary).unwrap();
    answer
}

#[tokio::test] // "GET /_matrix/key/v2/server"
async fn a_server_tells_its_keys_and_those_it_had_before() {
    let network = Network::new();
    let old = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";
    let hs1 = network
        .server_with("hs1", |config| {
            config.federation.old_verify_keys = vec![OldVerifyKey {
                id: "ed25519:old".to_owned(),
                public_key: old.to_owned(),
                expired_unix_seconds: 1_700_000_000,
            }];
        })
        .await;
    let keys = get(&hs1, KEYS).await;
    assert_eq!(keys["server_name"], "hs1");
    assert!(keys["valid_until_ts"].as_u64().unwrap() >= network.now_ms() + 60 * 60 * 1_000);
    let expired = json!({ "ed25519:old": { "key": old, "expired_ts": 1_700_000_000_000_u64 } });
    assert_eq!(keys["old_verify_keys"], expired);
    assert_eq!(keys["verify_keys"].as_object().unwrap().len(), 1);
    let (key_id, _) = keys["verify_keys"]
        .as_object()
        .unwrap()
        .iter()
        .next()
        .unwrap();
    assert!(keys["signatures"]["hs1"][key_id.as_str()].is_string());
    assert_eq!(get(&hs1, "/_matrix/key/v2/server/ed25519:any").await, keys);
    // What it says is what another server believes.
    let hs2 = network.server("hs2").await;
    let [passed_on] = &query(&hs2, json!({ "hs1": {} })).await[..] else {
        panic!("no keys");
    };
    assert_eq!(without_signature(passed_on.clone(), "hs2"), keys);
}

#[tokio::test] // "The notary server will additionally sign the response"
async fn a_notary_gives_what_the_server_said_with_its_own_signature_added() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let mut said = other.keys();
    said["more"] = json!({ "than": ["is", "understood", null] });
    let said = other.sign(said);
    other.answer(Method::GET, KEYS, 200, said.clone());
    let by_post = query(&hs1, json!({ "other": { "ed25519:stranger": {} } })).await;
    let by_get = get(&hs1, &format!("{QUERY}/other")).await["server_keys"].clone();
    assert_eq!(by_get, json!(by_post));
    let [answer] = &by_post[..] else {
        panic!("{by_post:?}")
    };
    assert_eq!(without_signature(answer.clone(), "hs1"), said);
    // Asked once, and not again while that counts.
    assert_eq!(network.count("hs1", "other", "/key/"), 1);

    let own = query(&hs1, json!({ "hs1": {}, "nobody": {}, "no name/": {} })).await;
    let [own] = &own[..] else { panic!("{own:?}") };
    assert_eq!(own["server_name"], "hs1");
    assert_eq!(query(&hs1, json!({})).await, Vec::<Value>::new());
    let wrong = json!({ "server_keys": { "other": [] } });
    let reply = hs1.request(Method::POST, QUERY, None, Some(&wrong)).await;
    reply.fails(400, "M_BAD_JSON");
    let path = format!("{QUERY}/other?minimum_valid_until_ts=soon");
    hs1.request(Method::GET, &path, None, None)
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test] // "minimum_valid_until_ts"
async fn a_notary_asks_again_for_what_must_count_longer_and_gives_a_stale_copy_of_who_is_gone() {
    let network = Network::new();
    let (hs1, _other) = (network.server("hs1").await, network.stranger("other"));
    let begin = network.now_ms();
    let ask = async |until_ms: u64| {
        let criteria =
            json!({ "other": { "ed25519:stranger": { "minimum_valid_until_ts": until_ms } } });
        let answers = query(&hs1, criteria).await;
        answers
            .first()
            .map(|answer| answer["valid_until_ts"].as_u64().unwrap())
    };
    assert_eq!(ask(begin).await, Some(begin + DAY_MS));
    network.pass_ms(120_000);
    assert_eq!(ask(begin + DAY_MS).await, Some(begin + DAY_MS));
    assert_eq!(network.count("hs1", "other", KEYS), 1);
    assert_eq!(
        ask(begin + DAY_MS + 1).await,
        Some(begin + 120_000 + DAY_MS)
    );
    assert_eq!(network.count("hs1", "other", KEYS), 2);
    // Nobody can make it ask more than once a minute.
    for _ in 0..3 {
        ask(begin + 100 * DAY_MS).await.unwrap();
    }
    assert_eq!(network.count("hs1", "other", KEYS), 2);
    network.cut("hs1", "other");
    network.pass_ms(30 * DAY_MS);
    assert_eq!(ask(network.now_ms()).await, Some(begin + 120_000 + DAY_MS));
    assert_eq!(network.count("hs1", "other", KEYS), 3);
}

#[tokio::test] // "Validating hashes and signatures on received events"
async fn an_event_is_verified_with_the_keys_of_its_senders_server() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let good = event(&other, network.now_ms());
    assert_eq!(
        serde_json::to_value(verify(&hs1, &good).await.unwrap()).unwrap(),
        good
    );
    let mut changed = good.clone();
    changed["content"] = json!({ "body": "changed" });
    changed["unsigned"] = json!({ "age": 1 });
    let redacted = serde_json::to_value(verify(&hs1, &changed).await.unwrap()).unwrap();
    assert_eq!(
        (&redacted["content"], redacted.get("unsigned")),
        (&json!({}), None)
    );
    let mut forged = good.clone();
    forged["depth"] = json!(2);
    let error = verify(&hs1, &forged).await.unwrap_err();
    assert_eq!(error.errcode, "M_INVALID_PARAM");
    assert!(!verifies(&hs1, &event(&other.with_key(9, "stranger"), 1)).await);
    assert_eq!(network.count("hs1", "other", KEYS), 1);
}

#[tokio::test]
async fn the_servers_own_events_are_verified_without_asking_anybody() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let key = hs1.server().app.key.key_pair();
    let event = json!({
        "type": "m.test", "sender": "@u:hs1", "room_id": "!r:hs1", "content": {}, "origin_server_ts": 1,
        "depth": 1, "prev_events": [], "auth_events": [],
    });
    let mut event: CanonicalJsonObject = serde_json::from_value(event).unwrap();
    ruma::signatures::hash_and_sign_event("hs1", key, &mut event, &rules().redaction).unwrap();
    peers::verify_event(&hs1.server().app, &event, &rules())
        .await
        .unwrap();
    assert_eq!(network.requests("hs1", "hs1"), Vec::<String>::new());
}

#[tokio::test] // "batch by server"; one flight for each
async fn many_events_need_one_request_for_each_server_and_bad_ones_do_not_sink_the_rest() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let servers = ["a", "b", "c"].map(|name| network.stranger(name));
    let gone = network.stranger("gone");
    network.remove("gone");
    let mut events = Vec::new();
    for number in 0..20 {
        events.extend(servers.iter().map(|server| event(server, number)));
        events.push(event(&gone, number));
        events.push(json!({ "type": "nothing" }));
    }
    let objects = || {
        events
            .iter()
            .map(|event| serde_json::from_value(event.clone()).unwrap())
    };
    let (app, rules) = (&hs1.server().app, rules());
    let verify = || peers::verify_events(app, objects().collect(), &rules);
    let (one, other) = futures_util::future::join(verify(), verify()).await;
    for verified in [one, other] {
        let good: Vec<bool> = verified.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, true, true, false, false].repeat(20));
    }
    for name in ["a", "b", "c", "gone"] {
        assert_eq!(network.count("hs1", name, KEYS), 1, "{name}");
    }
}

#[tokio::test] // Room version 5: "the lesser of this field and 7 days into the future"
async fn keys_that_say_to_count_for_ever_count_for_seven_days() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    let mut for_ever = other.keys();
    for_ever["valid_until_ts"] = json!((1_u64 << 53) - 1);
    other.answer(Method::GET, KEYS, 200, other.sign(for_ever));
    let begin = network.now_ms();
    assert!(is_known(&hs1, &other).await);
    assert!(verifies(&hs1, &event(&other, begin + 7 * DAY_MS)).await);
    assert!(!verifies(&hs1, &event(&other, begin + 7 * DAY_MS + 1)).await);
    network.cut("hs1", "other");
    network.pass_ms(7 * DAY_MS);
    assert!(is_known(&hs1, &other).await);
    network.pass_ms(1);
    assert!(!is_known(&hs1, &other).await);
    // What it signed then is as good as it was.
    assert!(verifies(&hs1, &event(&other, begin)).await);
}

#[tokio::test] // "old_verify_keys … only valid for signing events"
async fn an_old_key_verifies_the_events_of_its_time_and_no_request() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let old = network.stranger("other");
    let new = old.with_key(5, "new");
    let now = network.now_ms();
    let mut keys = new.keys();
    keys["old_verify_keys"] =
        json!({ old.key_id(): { "key": old.public_key(), "expired_ts": now - 1_000 } });
    new.answer(Method::GET, KEYS, 200, new.sign(keys));
    assert!(verifies(&hs1, &event(&old, now - 1_000)).await);
    assert!(!verifies(&hs1, &event(&old, now - 999)).await);
    assert!(verifies(&hs1, &event(&new, now)).await);
    assert!(!is_known(&hs1, &old).await);
    assert!(is_known(&hs1, &new).await);
}

#[tokio::test]
async fn a_new_key_is_asked_for_when_it_is_met_but_not_more_often_than_once_a_minute() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    assert!(is_known(&hs1, &other).await);
    let new = other.with_key(5, "new");
    for _ in 0..3 {
        assert!(!is_known(&hs1, &new).await);
        assert!(!verifies(&hs1, &event(&new, 1)).await);
    }
    assert_eq!(network.count("hs1", "other", KEYS), 1);
    new.answer(Method::GET, KEYS, 200, new.sign(new.keys()));
    network.pass_ms(60_000);
    assert!(is_known(&hs1, &new).await);
    assert_eq!(network.count("hs1", "other", KEYS), 2);
    // The old one is not named any more: good for what was signed with it, not for more.
    assert!(!is_known(&hs1, &other).await);
    assert!(verifies(&hs1, &event(&other, network.now_ms())).await);
}

#[tokio::test]
async fn a_server_that_does_not_tell_its_keys_is_asked_less_and_less_often() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    network.cut("hs1", "other");
    let old = event(&other, 1);
    let minute = 60_000;
    for (wait_ms, asked) in [
        (0, 1),
        (minute - 1, 1),
        (1, 2),
        (2 * minute - 1, 2),
        (1, 3),
        (3 * minute, 3),
        (minute, 4),
    ] {
        network.pass_ms(wait_ms);
        assert!(!verifies(&hs1, &old).await);
        assert_eq!(
            network.count("hs1", "other", KEYS),
            asked,
            "after {wait_ms} ms"
        );
    }
    // It asks for something itself: that is worth another try.
    network.heal("hs1", "other");
    network.pass_ms(minute);
    assert!(!verifies(&hs1, &old).await);
    assert!(is_known(&hs1, &other).await);
    assert!(verifies(&hs1, &old).await);
}

#[tokio::test]
async fn keys_survive_a_restart() {
    let network = Network::new();
    let (hs1, other) = (
        network.server_on_disk("hs1", |_| {}).await,
        network.stranger("other"),
    );
    let event = event(&other, network.now_ms());
    assert!(verifies(&hs1, &event).await);
    let hs1 = hs1.restart(|_| {}).await;
    network.cut("hs1", "other");
    assert!(verifies(&hs1, &event).await);
    assert_eq!(network.count("hs1", "other", KEYS), 1);
}

#[tokio::test]
async fn a_server_that_comes_back_and_asks_for_something_is_believed_within_ten_seconds() {
    let network = Network::new();
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    network.cut("hs1", "other");
    for _ in 0..5 {
        assert!(!verifies(&hs1, &event(&other, 1)).await);
    }
    assert_eq!(network.count("hs1", "other", KEYS), 1);
    network.heal("hs1", "other");
    network.pass_ms(9_999);
    assert!(!is_known(&hs1, &other).await);
    network.pass_ms(1);
    assert!(is_known(&hs1, &other).await);
}

/// A network in which hs1 trusts `notary`, which knows the keys of `a`, `b` and `c`, which are gone.
async fn with_notary(network: &Network) -> (World, World, [Stranger; 3]) {
    let hs1 = network
        .server_with("hs1", |config| {
            config.federation.trusted_notaries = vec!["notary".try_into().unwrap()];
        })
        .await;
    let notary = network.server("notary").await;
    let servers = ["a", "b", "c"].map(|name| network.stranger(name));
    for server in &servers {
        assert!(is_known(&notary, server).await);
    }
    for name in ["a", "b", "c"] {
        network.remove(name);
    }
    (hs1, notary, servers)
}

#[tokio::test] // "Notary servers can return keys for servers that are offline"
async fn the_keys_of_servers_that_are_gone_come_from_a_notary_in_one_request() {
    let network = Network::new();
    let (hs1, _notary, servers) = with_notary(&network).await;
    let objects: Vec<CanonicalJsonObject> = servers
        .iter()
        .map(|server| serde_json::from_value(event(server, network.now_ms())).unwrap())
        .collect();
    let verified = peers::verify_events(&hs1.server().app, objects, &rules()).await;
    assert!(verified.iter().all(Result::is_ok), "{verified:?}");
    assert_eq!(network.count("hs1", "notary", "POST"), 1);
    assert_eq!(network.count("hs1", "a", KEYS), 1);
    // A server that is there is asked itself.
    let there = network.stranger("there");
    assert!(verifies(&hs1, &event(&there, 1)).await);
    assert_eq!(network.count("hs1", "notary", "POST"), 1);
}

#[tokio::test]
async fn a_notary_is_believed_only_what_it_and_the_server_have_signed() {
    let network = Network::new();
    let hs1 = network
        .server_with("hs1", |config| {
            config.federation.trusted_notaries = vec!["notary".try_into().unwrap()];
        })
        .await;
    let (notary, gone) = (network.stranger("notary"), network.stranger("gone"));
    network.remove("gone");
    let event = event(&gone, network.now_ms());
    let said = gone.sign(gone.keys());
    let mut changed = said.clone();
    changed["valid_until_ts"] = json!(network.now_ms() + 2 * DAY_MS);
    let bad = [
        json!({}),
        json!({ "server_keys": {} }),
        json!({ "server_keys": [] }),
        json!({ "server_keys": [5, {}, { "server_name": "gone" }] }),
        // Not signed by the notary, by somebody else in its name, changed, of another server.
        json!({ "server_keys": [said] }),
        json!({ "server_keys": [notary.with_key(9, "stranger").sign(said.clone())] }),
        json!({ "server_keys": [notary.sign(changed)] }),
        json!({ "server_keys": [notary.sign(network.stranger("x").sign(network.stranger("x").keys()))] }),
    ];
    for answer in bad {
        notary.answer(Method::POST, QUERY, 200, answer.clone());
        assert!(!verifies(&hs1, &event).await, "{answer}");
        network.pass_ms(2 * 60 * 60 * 1_000);
    }
    notary.answer(Method::POST, QUERY, 500, json!({}));
    assert!(!verifies(&hs1, &event).await);
    network.pass_ms(2 * 60 * 60 * 1_000);
    notary.answer(
        Method::POST,
        QUERY,
        200,
        json!({ "server_keys": [notary.sign(said)] }),
    );
    verify(&hs1, &event).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_notary_that_tells_no_keys_either_is_not_waited_for() {
    let network = Network::new();
    let notaries = ["a", "b"];
    let hs1 = network.server_with("hs1", |config| {
        let notaries = notaries.map(|name| name.try_into().unwrap());
        config.federation.trusted_notaries = notaries.to_vec();
    });
    let hs1 = hs1.await;
    let events = notaries.map(|name| {
        let server = network.stranger(name);
        server.answer(Method::GET, KEYS, 500, json!({}));
        serde_json::from_value(event(&server, network.now_ms())).unwrap()
    });
    let rules = rules();
    let verified = peers::verify_events(&hs1.server().app, events.to_vec(), &rules);
    let minute = std::time::Duration::from_mins(1);
    let verified = tokio::time::timeout(minute, verified).await.unwrap();
    assert!(verified.iter().all(Result::is_err));
}

#[tokio::test]
async fn what_is_not_a_servers_own_word_is_no_key() {
    let network = Network::new();
    let hs1 = network.server("hs1").await;
    let other = network.stranger("other");
    let event = event(&other, network.now_ms());
    let (mut another, mut many) = (other.keys(), other.keys());
    another["server_name"] = json!("else");
    for number in 0..100 {
        many["verify_keys"][format!("ed25519:{number}")] = json!({ "key": other.public_key() });
    }
    let mut large = other.keys();
    large["padding"] = "x".repeat(100_000).into();
    for answer in [
        json!({}),
        json!([]),
        other.keys(),
        other.with_key(9, "stranger").sign(other.keys()),
        other.with_key(9, "unknown").sign(other.keys()),
        other.sign(another),
        other.sign(many),
        other.sign(large),
    ] {
        other.answer(Method::GET, KEYS, 200, answer.clone());
        assert!(!verifies(&hs1, &event).await, "{answer}");
        network.pass_ms(2 * 60 * 60 * 1_000);
    }
    for status in [302, 404, 500] {
        other.answer(Method::GET, KEYS, status, other.sign(other.keys()));
        assert!(!verifies(&hs1, &event).await, "{status}");
        network.pass_ms(2 * 60 * 60 * 1_000);
    }
}

/// What a server answers when asked for its keys.
async fn with_answer<F>(network: &Network, answer: fn() -> F) -> (World, Value)
where
    F: Future<Output = Response> + Send + 'static,
{
    let (hs1, other) = (network.server("hs1").await, network.stranger("other"));
    other.serve(Router::new().route(KEYS, any(answer)));
    let event = event(&other, network.now_ms());
    (hs1, event)
}

#[tokio::test]
async fn an_answer_of_200_mb_is_not_read() {
    let network = Network::new();
    let (hs1, event) = with_answer(&network, || async {
        let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
        let chunks = (0..200).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
        Response::new(Body::from_stream(futures_util::stream::iter(chunks)))
    })
    .await;
    assert!(!verifies(&hs1, &event).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_drips_is_given_up() {
    let network = Network::new();
    let (hs1, event) = with_answer(&network, || async {
        let drip = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" ")), ()))
        });
        Response::new(Body::from_stream(drip))
    })
    .await;
    // A few seconds, which pass at once while nothing else happens.
    let verified = tokio::time::timeout(std::time::Duration::from_secs(21), verifies(&hs1, &event));
    assert!(!verified.await.unwrap());
}
