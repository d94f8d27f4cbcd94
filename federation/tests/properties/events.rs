//! An event by itself: parsed, stored, redacted, signed and verified.

use std::collections::BTreeMap;

use federation::event::{
    FIELD_BYTES_MAX, Malformed, PDU_BYTES_MAX, Pdu, required, rules_of, verify,
};
use proptest::prelude::*;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, signatures::hash_and_sign_event,
};

use crate::samples::{event, json, key_of, quick, slow, version};

proptest! {
    #![proptest_config(quick())]

    #[test]
    fn what_is_parsed_is_within_the_limits_and_the_same_when_it_is_stored(
        object in event(), version in version(),
    ) {
        let rules = rules_of(&version).unwrap();
        if let Ok(pdu) = Pdu::from_canonical(&object, &rules) {
            prop_assert!(pdu.json().len() <= PDU_BYTES_MAX);
            // Older versions count characters.
            let in_bytes = rules.redaction.content_field_redacts;
            let kind = pdu.kind().to_string();
            let state_key = pdu.state_key().unwrap_or_default();
            for text in [&*kind, state_key, pdu.sender().as_str(), pdu.room_id().as_str()] {
                let length = if in_bytes { text.len() } else { text.chars().count() };
                prop_assert!(length <= FIELD_BYTES_MAX, "{}", text);
            }
            let again = Pdu::from_stored(
                pdu.event_id().to_owned(), pdu.json().into(), &rules, pdu.is_rejected(),
            );
            prop_assert_eq!(format!("{:?}", again.unwrap()), format!("{pdu:?}"));
            let read: CanonicalJsonObject = serde_json::from_str(pdu.json()).unwrap();
            prop_assert_eq!(read, object);
        }
    }

    #[test] // Client-server API, "Redactions"; server-server API, "Calculating the reference hash for an event"
    fn a_redaction_leaves_the_id_and_a_second_one_nothing_to_do(
        object in event(), version in version(),
    ) {
        let rules = rules_of(&version).unwrap();
        if let Ok(pdu) = Pdu::from_canonical(&object, &rules) {
            let redacted = pdu.redacted(&rules).unwrap();
            let object = serde_json::from_str(redacted.json()).unwrap();
            let from_json = Pdu::from_canonical(&object, &rules).unwrap();
            prop_assert_eq!(from_json.event_id(), pdu.event_id());
            let twice = redacted.redacted(&rules).unwrap();
            prop_assert_eq!(twice.json(), redacted.json());
        }
    }

    #[test]
    fn a_large_event_is_refused_by_its_size(
        object in event(), version in version(), bytes in PDU_BYTES_MAX - 2_000..PDU_BYTES_MAX + 500,
    ) {
        let rules = rules_of(&version).unwrap();
        let mut object = object;
        object.insert("large".to_owned(), "x".repeat(bytes).into());
        let length = serde_json::to_string(&object).unwrap().len();
        match Pdu::from_canonical(&object, &rules) {
            Err(Malformed::TooLarge { bytes }) => {
                prop_assert_eq!(bytes, length);
                prop_assert!(length > PDU_BYTES_MAX);
            }
            Ok(_) => prop_assert!(length <= PDU_BYTES_MAX),
            Err(_) => {}
        }
    }

    #[test]
    fn whatever_is_verified_nothing_panics(
        object in event(), version in version(), signatures in json(),
    ) {
        let rules = rules_of(&version).unwrap();
        let mut object = object;
        if let Ok(signatures) = signatures.try_into() {
            object.insert("signatures".to_owned(), signatures);
        }
        drop(required(&object, &rules));
        drop(verify(&object, &rules, &keys_of(&key_of("a.example"))));
    }
}

proptest! {
    #![proptest_config(slow())]

    #[test]
    fn what_a_server_signs_verifies_and_changed_content_leaves_a_redacted_event(
        object in event(), version in version(), other in json(),
    ) {
        let rules = rules_of(&version).unwrap();
        let key = key_of("a.example");
        let mut object = object;
        object.remove("signatures");
        object.insert("sender".to_owned(), "@alice:a.example".into());
        let Some(content) = object.get_mut("content").and_then(CanonicalJsonValue::as_object_mut) else {
            return Ok(());
        };
        // What others must sign.
        content.remove("third_party_invite");
        content.remove("join_authorised_via_users_server");
        let signed = hash_and_sign_event("a.example", key.key_pair(), &mut object, &rules.redaction);
        if signed.is_err() || Pdu::from_canonical(&object, &rules).is_err() {
            return Ok(());
        }
        let keys = keys_of(&key);
        // A member event without a membership says not whose signatures it needs.
        let Ok(required) = required(&object, &rules) else {
            prop_assert_eq!(object["type"].as_str(), Some("m.room.member"));
            return Ok(());
        };
        let servers: Vec<_> = required.servers.into_keys().collect();
        prop_assert_eq!(servers, ["a.example"]);
        let verified = verify(&object, &rules, &keys).unwrap();
        let mut expected = object.clone();
        expected.remove("unsigned");
        prop_assert_eq!(verified, expected);

        let id = Pdu::from_canonical(&object, &rules).unwrap().event_id().to_owned();
        let mut changed = object.clone();
        changed.insert("a field that no redaction keeps".to_owned(), other.try_into().unwrap());
        let left = verify(&changed, &rules, &keys).unwrap();
        let left = Pdu::from_canonical(&left, &rules).unwrap();
        prop_assert_eq!(left.event_id(), id);
        let redacted = left.redacted(&rules).unwrap();
        prop_assert_eq!(left.json(), redacted.json());
    }
}

fn keys_of(
    key: &federation::event::ServerKey,
) -> BTreeMap<OwnedServerName, BTreeMap<String, Vec<u8>>> {
    let public = key.key_pair().public_key().to_vec();
    let key_id = format!("ed25519:{}", key.key_pair().version());
    BTreeMap::from([(
        key.server_name().to_owned(),
        BTreeMap::from([(key_id, public)]),
    )])
}
