use ruma::{server_name, signatures::sign_json};
use serde_json::{Value, json};

use super::*;
use crate::{event::ServerKey, wire::request::public_key_base64};

const NOW_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn key(seed: u8, version: &str) -> ServerKey {
    ServerKey::from_seed("a.example".try_into().unwrap(), &[seed; 32], version)
}

/// An answer with `change` made to it before it is signed by `key`.
fn answer(key: &ServerKey, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let key_id = format!("ed25519:{}", key.key_pair().version());
    let mut json = json!({
        "server_name": "a.example",
        "valid_until_ts": NOW_MS + DAY_MS,
        "verify_keys": { key_id: { "key": public_key_base64(key) } },
        "old_verify_keys": {},
        "something else": [1, null],
    });
    change(&mut json);
    let mut object: CanonicalJsonObject = serde_json::from_value(json).unwrap();
    sign_json("a.example", key.key_pair(), &mut object).unwrap();
    serde_json::to_vec(&object).unwrap()
}

fn check(json: &[u8]) -> Result<Published, KeyError> {
    Published::check(server_name!("a.example"), json, NOW_MS)
}

fn want(key_id: &str, at_ms: u64, current: bool) -> Want {
    Want {
        key_ids: BTreeSet::from([key_id.to_owned(), "ed25519:policy_server".to_owned()]),
        at_ms: Some(at_ms),
        current,
    }
}

fn known(published: &Published) -> ServerKeys {
    let mut known = ServerKeys::default();
    known.renew(published, NOW_MS);
    known
}

#[test] // "servers MUST use the lesser of this field and 7 days into the future"
fn no_key_counts_for_more_than_seven_days() {
    for (said, counts) in [
        (NOW_MS + DAY_MS, NOW_MS + DAY_MS),
        (NOW_MS + 365 * DAY_MS, NOW_MS + 7 * DAY_MS),
        ((1 << 53) - 1, NOW_MS + 7 * DAY_MS),
        (NOW_MS - 1, NOW_MS - 1),
        (0, 0),
    ] {
        let json = answer(&key(1, "a"), |json| json["valid_until_ts"] = said.into());
        let known = known(&check(&json).unwrap());
        assert!(known.satisfies(&want("ed25519:a", counts, true)));
        assert!(!known.satisfies(&want("ed25519:a", counts + 1, true)));
        assert_eq!(known.valid_until_ms, said);
    }
}

#[test] // "old_verify_keys: … only valid for signing events"
fn an_old_key_counts_for_the_events_of_its_time_and_for_no_request() {
    let old = public_key_base64(&key(2, "old"));
    let json = answer(&key(1, "a"), |json| {
        json["old_verify_keys"] = json!({
            "ed25519:old": { "key": old, "expired_ts": NOW_MS - DAY_MS },
            "ed25519:to_come": { "key": old, "expired_ts": NOW_MS + 99 * DAY_MS },
            "ed25519:never": { "key": old },
        });
    });
    let known = known(&check(&json).unwrap());
    assert!(known.satisfies(&want("ed25519:old", NOW_MS - DAY_MS, false)));
    assert!(!known.satisfies(&want("ed25519:old", NOW_MS - DAY_MS + 1, false)));
    assert!(!known.satisfies(&want("ed25519:old", NOW_MS - DAY_MS, true)));
    assert!(!known.satisfies(&want("ed25519:to_come", NOW_MS + 2 * DAY_MS, false)));
    assert!(!known.satisfies(&want("ed25519:never", 0, false)));
    let whenever = Want {
        at_ms: None,
        ..want("ed25519:old", 0, false)
    };
    assert!(known.satisfies(&whenever));
    let fitting: Vec<&str> = known.fitting(&whenever).map(|(key_id, _)| key_id).collect();
    assert_eq!(fitting, ["ed25519:old"]);
}

#[test]
fn a_key_that_a_server_no_longer_names_counts_for_old_events_only() {
    let mut known = known(&check(&answer(&key(1, "a"), |_| {})).unwrap());
    let next = check(&answer(&key(2, "b"), |_| {})).unwrap();
    known.renew(&next, NOW_MS + 5);
    assert_eq!(known.fetched_ms, NOW_MS + 5);
    assert!(known.satisfies(&want("ed25519:b", NOW_MS, true)));
    assert!(known.satisfies(&want("ed25519:a", NOW_MS + DAY_MS, false)));
    assert!(!known.satisfies(&want("ed25519:a", NOW_MS, true)));
    // A key that comes back under the same name is the new one.
    let again = check(&answer(&key(3, "a"), |_| {})).unwrap();
    known.renew(&again, NOW_MS + 6);
    assert_eq!(known.keys["ed25519:a"], again.keys["ed25519:a"]);
    // An older answer, from a notary, changes nothing that is known, and adds what is not.
    let before = known.clone();
    known.remember(&check(&answer(&key(4, "a"), |_| {})).unwrap());
    assert_eq!(known, before);
    known.remember(&check(&answer(&key(5, "c"), |_| {})).unwrap());
    assert!(known.satisfies(&want("ed25519:c", NOW_MS, false)));
    assert!(!known.satisfies(&want("ed25519:c", NOW_MS, true)));
}

#[test]
fn the_keys_that_are_kept_are_bounded() {
    let mut known = ServerKeys::default();
    for number in 0..(KEYS_MAX as u64 + 10) {
        let json = answer(&key(1, &format!("k{number}")), |json| {
            json["valid_until_ts"] = (NOW_MS + number).into();
        });
        known.renew(&check(&json).unwrap(), NOW_MS);
        assert!(known.satisfies(&want(&format!("ed25519:k{number}"), NOW_MS, true)));
    }
    assert_eq!(known.keys.len(), KEYS_MAX);
    assert!(!known.keys.contains_key("ed25519:k0"));
}

#[test]
fn what_is_not_the_servers_own_word_is_refused() {
    let good = key(1, "a");
    let public = public_key_base64(&good);
    let refused = [
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"".to_vec(),
        answer(&good, |json| json["server_name"] = "b.example".into()),
        answer(&good, |json| json["server_name"] = 1.into()),
        answer(&good, |json| json["valid_until_ts"] = "soon".into()),
        answer(&good, |json| json["valid_until_ts"] = (-1).into()),
        answer(&good, |json| {
            drop(json.as_object_mut().unwrap().remove("valid_until_ts"));
        }),
        answer(&good, |json| json["verify_keys"] = json!({})),
        answer(&good, |json| json["verify_keys"] = json!([public])),
        // Signed by a key that is not among those it may sign with.
        answer(&good, |json| {
            json["verify_keys"] = json!({ "ed25519:b": { "key": public } });
        }),
        answer(&good, |json| {
            json["verify_keys"] = json!({});
            json["old_verify_keys"] =
                json!({ "ed25519:a": { "key": public, "expired_ts": NOW_MS } });
        }),
        // Another key under the same name.
        answer(&key(2, "a"), |json| {
            json["verify_keys"] = json!({ "ed25519:a": { "key": public } });
        }),
        answer(&good, |json| {
            json["verify_keys"] = json!({ "ed25519:a": { "key": "c2hvcnQ" } });
        }),
        answer(&good, |json| {
            json["padding"] = "x".repeat(ANSWER_BYTES_MAX).into();
        }),
        answer(&good, |json| {
            for number in 0..KEYS_MAX {
                json["verify_keys"][format!("ed25519:{number}")] = json!({ "key": public });
            }
        }),
    ];
    for (index, json) in refused.iter().enumerate() {
        check(json).expect_err(&index.to_string());
    }
    let mut changed: Value = serde_json::from_slice(&answer(&good, |_| {})).unwrap();
    changed["valid_until_ts"] = (NOW_MS + 2 * DAY_MS).into();
    check(&serde_json::to_vec(&changed).unwrap()).unwrap_err();
}

#[test]
fn what_is_not_understood_in_an_answer_is_passed_over_and_kept() {
    let good = key(1, "a");
    let public = public_key_base64(&good);
    let json = answer(&good, |json| {
        json["verify_keys"]["rsa:1"] = json!({ "key": "AAAA" });
        json["verify_keys"]["ed25519:odd"] = json!("?");
        json["verify_keys"]["ed25519:"] = json!({ "key": public });
        json["old_verify_keys"] = json!({ "ed25519:x": 5 });
    });
    let published = check(&json).unwrap();
    assert_eq!(published.keys.keys().collect::<Vec<_>>(), ["ed25519:a"]);
    assert_eq!(serde_json::to_vec(&published.object).unwrap(), json);
}

#[test]
fn a_signature_in_the_other_alphabet_and_beside_foreign_ones_is_good() {
    let good = key(1, "a");
    let mut json: Value = serde_json::from_slice(&answer(&good, |_| {})).unwrap();
    let signature = json["signatures"]["a.example"]["ed25519:a"]
        .as_str()
        .unwrap();
    let url_safe = format!("{}==", signature.replace('+', "-").replace('/', "_"));
    json["signatures"]["a.example"]["ed25519:a"] = url_safe.into();
    json["signatures"]["a.example"]["ed25519:gone"] = "AAAA".into();
    json["signatures"]["notary"] = json!({ "ed25519:n": "AAAA" });
    check(&serde_json::to_vec(&json).unwrap()).unwrap();
}

#[test]
fn no_byte_of_an_answer_can_be_changed_or_cut_off() {
    let json = answer(&key(1, "a"), |_| {});
    let good = check(&json).unwrap();
    for at in 0..json.len() {
        check(&json[..at]).unwrap_err();
        for byte in [b'0', b'"', 0xff] {
            let mut changed = json.clone();
            changed[at] = byte;
            if let Ok(published) = check(&changed) {
                // The last character of base64 has bits that mean nothing.
                assert_eq!(published.keys, good.keys, "{at}");
                assert_eq!(published.valid_until_ms, good.valid_until_ms, "{at}");
            }
        }
    }
}
