use ruma::{
    RoomVersionId, ServerName,
    signatures::{Ed25519KeyPair, hash_and_sign_event, sign_event},
};
use serde_json::{Value, json};

use super::*;
use crate::event::{ServerKey, rules_of as rules_of_version};

type Keys = BTreeMap<OwnedServerName, BTreeMap<String, Vec<u8>>>;

fn rules(version: &RoomVersionId) -> RoomVersionRules {
    rules_of_version(version).unwrap()
}

fn server(name: &str) -> OwnedServerName {
    ServerName::parse(name).unwrap()
}

fn key(name: &str) -> ServerKey {
    let seed = [name.as_bytes()[0]; 32];
    ServerKey::from_seed(server(name), &seed, "k")
}

fn keys(names: &[&str]) -> Keys {
    let key_of = |name: &&str| {
        let public = key(name).key_pair().public_key().to_vec();
        (
            server(name),
            BTreeMap::from([("ed25519:k".to_owned(), public)]),
        )
    };
    names.iter().map(key_of).collect()
}

/// An event of @u:a with `change` made to it before `a` signs it.
fn event(change: impl FnOnce(&mut Value), version: &RoomVersionId) -> CanonicalJsonObject {
    let mut json = json!({
        "type": "m.test", "sender": "@u:a", "room_id": "!r:a", "content": { "body": "hello" },
        "origin_server_ts": 1_000, "depth": 1, "prev_events": [], "auth_events": [], "odd": { "key": [] },
    });
    change(&mut json);
    let mut object = serde_json::from_value(json).unwrap();
    hash_and_sign_event(
        "a",
        key("a").key_pair(),
        &mut object,
        &rules(version).redaction,
    )
    .unwrap();
    object
}

fn plain() -> CanonicalJsonObject {
    event(|_| {}, &RoomVersionId::V11)
}

fn check(object: &CanonicalJsonObject, keys: &Keys) -> Result<CanonicalJsonObject, Unverified> {
    verify(object, &rules(&RoomVersionId::V11), keys)
}

#[test]
fn a_signed_event_passes_as_it_is_but_for_unsigned() {
    let good = plain();
    let mut received = good.clone();
    received.insert("unsigned".to_owned(), "anything".into());
    assert_eq!(check(&received, &keys(&["a"])).unwrap(), good);
    let required = required(&received, &rules(&RoomVersionId::V11)).unwrap();
    let expected = Want {
        key_ids: BTreeSet::from(["ed25519:k".to_owned()]),
        at_ms: Some(1_000),
        current: false,
    };
    assert_eq!(required.servers, BTreeMap::from([(server("a"), expected)]));
}

#[test] // Check 3
fn changed_content_is_redacted_and_keeps_the_events_id() {
    let good = plain();
    let mut changed = good.clone();
    changed.insert(
        "content".to_owned(),
        CanonicalJsonObject::from([("body".to_owned(), "bye".into())]).into(),
    );
    changed.insert("unsigned".to_owned(), CanonicalJsonObject::new().into());
    let redacted = check(&changed, &keys(&["a"])).unwrap();
    assert_eq!(redacted["content"], CanonicalJsonObject::new());
    assert_eq!(redacted["signatures"], good["signatures"]);
    assert!(!redacted.contains_key("unsigned") && !redacted.contains_key("odd"));
    let id =
        |object| ruma::signatures::reference_hash(object, &rules(&RoomVersionId::V11)).unwrap();
    assert_eq!(id(&redacted), id(&good));
}

#[test] // Check 2
fn what_is_protected_cannot_be_changed_and_who_must_sign_must() {
    let good = plain();
    let changes: [(&str, CanonicalJsonValue); 5] = [
        ("sender", "@v:a".into()),
        ("type", "m.other".into()),
        ("state_key", "".into()),
        ("room_id", "!s:a".into()),
        ("prev_events", CanonicalJsonValue::Array(vec!["$e".into()])),
    ];
    for (field, value) in changes {
        let mut changed = good.clone();
        changed.insert(field.to_owned(), value);
        check(&changed, &keys(&["a"])).expect_err(field);
    }
    // No key, another key, another server's name.
    check(&good, &Keys::new()).unwrap_err();
    check(&good, &BTreeMap::from([(server("a"), BTreeMap::new())])).unwrap_err();
    check(
        &good,
        &BTreeMap::from([(server("a"), keys(&["b"])[&server("b")].clone())]),
    )
    .unwrap_err();
    let mut other = good.clone();
    other.insert("sender".to_owned(), "@u:b".into());
    check(&other, &keys(&["a", "b"])).unwrap_err();
    assert!(matches!(
        required(&other, &rules(&RoomVersionId::V11)),
        Err(Unverified::Unsigned(_))
    ));
}

#[test]
fn what_is_not_an_event_is_an_error() {
    let bad = [
        json!({}),
        json!({ "sender": 5 }),
        json!({ "sender": "@u:a", "type": "m.test" }),
        json!({ "sender": "@u:a", "type": "m.test", "origin_server_ts": "now" }),
        json!({ "sender": "u", "type": "m.test", "origin_server_ts": 1 }),
        json!({ "sender": "@u:a", "type": "m.room.member", "origin_server_ts": 1, "content": [] }),
        json!({ "sender": "@u:a", "type": "m.test", "origin_server_ts": 1, "signatures": [] }),
        json!({ "sender": "@u:a", "type": "m.test", "origin_server_ts": 1, "signatures": { "a": 1 } }),
        json!({ "sender": "@u:a", "type": "m.test", "origin_server_ts": 1,
                "signatures": { "a": { "ed25519:": "AAAA", "rsa:1": "AAAA" } } }),
    ];
    for json in bad {
        let object: CanonicalJsonObject = serde_json::from_value(json.clone()).unwrap();
        required(&object, &rules(&RoomVersionId::V11)).expect_err(&json.to_string());
        check(&object, &keys(&["a"])).expect_err(&json.to_string());
    }
}

#[test] // "clarified in v1.19": signatures by unknown keys are skipped
fn signatures_by_keys_that_are_not_known_are_passed_over_and_wrong_ones_by_known_keys_are_not() {
    let mut event = plain();
    let CanonicalJsonValue::Object(signatures) = event.get_mut("signatures").unwrap() else {
        panic!("signatures are an object");
    };
    let CanonicalJsonValue::Object(by_a) = signatures.get_mut("a").unwrap() else {
        panic!("signatures are an object");
    };
    by_a.insert("ed25519:policy_server".to_owned(), "AAAA".into());
    by_a.insert("ed25519:odd".to_owned(), true.into());
    signatures.insert("z".to_owned(), "rubbish".into());
    let mut known = keys(&["a"]);
    assert_eq!(check(&event, &known).unwrap(), event);
    let other = key("b").key_pair().public_key().to_vec();
    known
        .get_mut(&server("a"))
        .unwrap()
        .insert("ed25519:policy_server".to_owned(), other);
    check(&event, &known).unwrap_err();
}

#[test]
fn a_signature_in_the_url_safe_alphabet_is_good() {
    let mut event = plain();
    let signature = event["signatures"].as_object().unwrap()["a"]
        .as_object()
        .unwrap()["ed25519:k"]
        .as_str()
        .unwrap()
        .replace('+', "-")
        .replace('/', "_");
    let by_a =
        CanonicalJsonObject::from([("ed25519:k".to_owned(), format!("{signature}==").into())]);
    event.insert(
        "signatures".to_owned(),
        CanonicalJsonObject::from([("a".to_owned(), by_a.into())]).into(),
    );
    check(&event, &keys(&["a"])).unwrap();
}

#[test] // Client-server API, "Size limits"
fn exactly_65536_bytes_pass_and_one_more_does_not() {
    let sized = |padding: usize| {
        event(
            |json| json["content"]["body"] = "x".repeat(padding).into(),
            &RoomVersionId::V11,
        )
    };
    let bare = serde_json::to_vec(&sized(0)).unwrap().len();
    let mut largest = sized(PDU_BYTES_MAX - bare);
    assert_eq!(serde_json::to_vec(&largest).unwrap().len(), PDU_BYTES_MAX);
    largest.insert("unsigned".to_owned(), "not counted".into());
    check(&largest, &keys(&["a"])).unwrap();
    let larger = sized(PDU_BYTES_MAX - bare + 1);
    let refused = check(&larger, &keys(&["a"]));
    assert!(matches!(
        refused,
        Err(Unverified::TooLarge { bytes: 65_537 })
    ));
    assert!(required(&larger, &rules(&RoomVersionId::V11)).is_err());
}

fn join(version: &RoomVersionId, membership: &str, authorised_via: &str) -> CanonicalJsonObject {
    event(
        |json| {
            json["type"] = "m.room.member".into();
            json["state_key"] = "@u:a".into();
            json["content"] = json!({ "membership": membership, "join_authorised_via_users_server": authorised_via });
        },
        version,
    )
}

#[test] // Room version 8: "the join must be signed by the authorising server"
fn a_restricted_join_needs_the_authorising_servers_signature_from_version_8_on() {
    let (v7, v8) = (RoomVersionId::V7, RoomVersionId::V8);
    let both = keys(&["a", "b"]);
    let mut restricted = join(&v8, "join", "@v:b");
    verify(&restricted, &rules(&v8), &both).unwrap_err();
    assert!(required(&restricted, &rules(&v8)).is_err());
    let pair: &Ed25519KeyPair = &key_pair("b");
    sign_event("b", pair, &mut restricted, &rules(&v8).redaction).unwrap();
    verify(&restricted, &rules(&v8), &both).unwrap();
    verify(&restricted, &rules(&v8), &keys(&["a"])).unwrap_err();
    let servers = required(&restricted, &rules(&v8)).unwrap().servers;
    assert_eq!(
        servers.into_keys().collect::<Vec<_>>(),
        [server("a"), server("b")]
    );

    verify(&join(&v7, "join", "@v:b"), &rules(&v7), &both).unwrap();
    // Only joins are authorised by somebody, and only what is a user can authorise.
    verify(&join(&v8, "leave", "unused"), &rules(&v8), &both).unwrap();
    verify(&join(&v8, "join", "unused"), &rules(&v8), &both).unwrap_err();
}

fn key_pair(name: &str) -> Ed25519KeyPair {
    let header = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let seed = [name.as_bytes()[0]; 32];
    let document: Vec<u8> = header.into_iter().chain(seed).collect();
    Ed25519KeyPair::from_der(&document, "k".to_owned()).unwrap()
}

#[test] // "except if it's an invite that results from a third-party invite"
fn an_invite_by_a_third_party_may_be_sent_by_any_server() {
    let invite = |third_party: bool| {
        event(
            |json| {
                json["type"] = "m.room.member".into();
                json["sender"] = "@w:z".into();
                json["content"] = json!({ "membership": "invite" });
                if third_party {
                    json["content"]["third_party_invite"] = json!({ "signed": {} });
                }
            },
            &RoomVersionId::V11,
        )
    };
    check(&invite(true), &Keys::new()).unwrap();
    check(&invite(false), &Keys::new()).unwrap_err();
}

#[test] // Room version 5
fn every_served_version_asks_for_the_time_of_a_key() {
    for version in crate::event::SERVED_ROOM_VERSIONS {
        let required = required(&event(|_| {}, &version), &rules(&version)).unwrap();
        assert_eq!(
            required.servers[&server("a")].at_ms,
            Some(1_000),
            "{version}"
        );
    }
}
