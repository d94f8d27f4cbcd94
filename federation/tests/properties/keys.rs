//! The keys that a server publishes.

use federation::wire::{
    keyring::{ANSWER_BYTES_MAX, KEYS_MAX, Published, ServerKeys, VALID_MS_MAX},
    lenient_base64,
    request::public_key_base64,
};
use proptest::{collection::vec, prelude::*};
use ruma::{
    CanonicalJsonObject,
    serde::{
        Base64,
        base64::{Standard, UrlSafe},
    },
    server_name,
    signatures::sign_json,
};
use serde_json::{Map, Value, json};

use crate::samples::{json, key_of, quick, slow};

const NOW_MS: u64 = 1_800_000_000_000;

/// Keys by their IDs, most of which are keys.
fn listed() -> impl Strategy<Value = Value> {
    let key = vec(any::<u8>(), 32).prop_map(|key| Base64::<Standard, _>::new(key).encode());
    let entry = prop_oneof![
        8 => (key, any::<u32>()).prop_map(|(key, at_ms)| json!({ "key": key, "expired_ts": at_ms })),
        1 => json(),
    ];
    vec(("ed25519:[a-z0-9_]{0,3}", entry), 0..40)
        .prop_map(|entries| Value::Object(Map::from_iter(entries)))
}

fn answer(mut keys: Value, old: Value, valid_until: u64, more: &Value) -> CanonicalJsonObject {
    let key = key_of("a.example");
    keys["ed25519:k"] = json!({ "key": public_key_base64(&key) });
    let mut object = json!({ "more": more });
    object["server_name"] = "a.example".into();
    object["valid_until_ts"] = valid_until.into();
    object["verify_keys"] = keys;
    object["old_verify_keys"] = old;
    let mut object: CanonicalJsonObject = serde_json::from_value(object).unwrap();
    sign_json("a.example", key.key_pair(), &mut object).unwrap();
    object
}

proptest! {
    #![proptest_config(quick())]

    #[test]
    fn whatever_a_server_answers_nothing_panics(answer in json(), bytes in vec(any::<u8>(), 0..64)) {
        let json = serde_json::to_vec(&answer).unwrap();
        for answer in [json, bytes] {
            prop_assert!(Published::check(server_name!("a.example"), &answer, NOW_MS).is_err());
        }
    }

    #[test] // Appendices, "Unpadded Base64"
    fn base64_is_read_however_it_was_written(bytes in vec(any::<u8>(), 0..100), text in any::<String>()) {
        let standard = Base64::<Standard, _>::new(&bytes).encode();
        let padding = "=".repeat((4 - standard.len() % 4) % 4);
        let url_safe = Base64::<UrlSafe, _>::new(&bytes).encode();
        for written in [standard.clone(), standard + &padding, url_safe] {
            prop_assert_eq!(lenient_base64(&written), Some(bytes.clone()), "{}", written);
        }
        lenient_base64(&text);
    }
}

proptest! {
    #![proptest_config(slow())]

    #[test] // Room version 5, "Signing key validity period"
    fn what_is_published_is_bounded_in_number_and_time(
        keys in listed(), old in listed(), valid_until in 0_u64..1 << 53, more in json(),
    ) {
        let object = answer(keys, old, valid_until, &more);
        let json = serde_json::to_vec(&object).unwrap();
        if let Ok(published) = Published::check(server_name!("a.example"), &json, NOW_MS) {
            prop_assert!(json.len() <= ANSWER_BYTES_MAX);
            prop_assert!(published.keys.len() <= KEYS_MAX);
            prop_assert!(published.keys["ed25519:k"].current);
            let until_ms = published.keys.values().map(|key| key.valid_until_ms).max().unwrap();
            prop_assert!(until_ms <= valid_until.min(NOW_MS + VALID_MS_MAX));
            prop_assert_eq!(&published.object, &object);
        }
    }

    #[test]
    fn however_often_keys_change_few_are_kept_and_the_last_ones_among_them(
        answers in vec((listed(), listed(), any::<bool>()), 1..4),
    ) {
        let mut known = ServerKeys::default();
        for (keys, old, is_newest) in answers {
            let object = answer(keys, old, NOW_MS, &Value::Null);
            let Ok(published) = Published::check_object(server_name!("a.example"), object, NOW_MS) else {
                continue;
            };
            if is_newest {
                known.renew(&published, NOW_MS);
                prop_assert!(published.keys.iter().all(|(id, key)| known.keys.get(id) == Some(key)));
            } else {
                known.remember(&published);
            }
            prop_assert!(known.keys.len() <= KEYS_MAX);
            let stored = serde_json::to_string(&known).unwrap();
            prop_assert_eq!(&serde_json::from_str::<ServerKeys>(&stored).unwrap(), &known);
        }
    }
}
