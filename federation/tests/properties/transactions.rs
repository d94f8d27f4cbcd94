//! Transactions, and the EDUs in them.

use federation::wire::{
    edu::{Told, read, write},
    transaction::{BODY_BYTES_MAX, EDUS_MAX, PDUS_MAX, Transaction, check_limits},
};
use proptest::{collection::vec, prelude::*, sample::select};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::federation::transactions::edu::{Edu, TypingContent},
    serde::Raw,
    server_name,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use crate::samples::{json, quick, slow, text, user};

const KINDS: [&str; 8] = [
    "m.typing",
    "m.receipt",
    "m.presence",
    "m.device_list_update",
    "m.signing_key_update",
    "org.matrix.signing_key_update",
    "m.direct_to_device",
    "org.example.edu",
];

/// Content that is right for some kind, or nearly.
fn content() -> impl Strategy<Value = Value> {
    let receipts = (user(), json(), text()).prop_map(|(user, data, room)| {
        json!({ room: { "m.read": { user: { "data": data, "event_ids": ["$e"] } } } })
    });
    let device = (user(), text(), json()).prop_map(|(user, id, keys)| {
        json!({ "user_id": user, "device_id": id, "stream_id": 1, "device_display_name": id, "keys": keys })
    });
    let typing = (user(), text(), any::<bool>())
        .prop_map(|(user_id, room_id, typing)| json!({ "user_id": user_id, "room_id": room_id, "typing": typing }));
    let presence = (user(), text(), any::<u32>()).prop_map(|(user, presence, ago)| {
        json!({ "push": [{ "user_id": user, "presence": presence, "last_active_ago": ago }] })
    });
    let to_device = (user(), text(), json()).prop_map(|(user, id, message)| {
        json!({ "sender": user, "type": id, "message_id": id, "messages": { user.clone(): { id.clone(): message } } })
    });
    prop_oneof![json(), receipts, device, typing, presence, to_device]
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

proptest! {
    #![proptest_config(quick())]

    #[test]
    fn an_edu_is_of_the_kind_it_says_or_is_none(
        kind in select(&KINDS[..]), content in content(), other in json(),
    ) {
        let edu = json!({ "edu_type": kind, "content": content, "more": other });
        if let Ok(told) = read(&Raw::from_json(raw(&edu))) {
            let is_its_kind = match &told {
                Told::Typing(_) => kind == "m.typing",
                Told::Receipts(_) => kind == "m.receipt",
                Told::Presence(_) => kind == "m.presence",
                Told::DeviceList(_) => kind == "m.device_list_update",
                Told::SigningKeys(_) => kind.ends_with(".signing_key_update"),
                Told::ToDevice(_) => kind == "m.direct_to_device",
                Told::Other { kind: kept, content: as_it_came } => {
                    kind == "org.example.edu" && kept == kind && as_it_came.get() == raw(&content).get()
                }
            };
            prop_assert!(is_its_kind, "{:?}", told);
        }
        drop(read(&Raw::<Edu>::from_json(raw(&other))));
    }

    #[test]
    fn what_is_written_of_a_kind_is_read_the_same(
        room in "![a-z]{1,8}:[a-z]{1,8}", user in "@[a-z]{1,8}:[a-z]{1,8}", typing in any::<bool>(), other in json(),
    ) {
        let content = TypingContent::new(room.try_into().unwrap(), user.try_into().unwrap(), typing);
        let Told::Typing(again) = read(&Raw::from_json(write("m.typing", &content))).unwrap() else {
            return Err(TestCaseError::fail("typing is not read"));
        };
        prop_assert_eq!(
            (again.room_id, again.user_id, again.typing),
            (content.room_id, content.user_id, content.typing)
        );
        let Told::Other { content, .. } = read(&Raw::from_json(write("org.example.edu", &other))).unwrap() else {
            return Err(TestCaseError::fail("an unknown kind is not kept"));
        };
        let expected = raw(&other);
        prop_assert_eq!(content.get(), expected.get());
    }

    #[test] // Server-server API, "Transactions"
    fn a_transaction_of_another_server_is_refused_exactly_beyond_the_limits(pdus in 0_usize..200, edus in 0_usize..200) {
        let within = pdus <= PDUS_MAX && edus <= EDUS_MAX;
        prop_assert_eq!(check_limits(pdus, edus).is_ok(), within);
    }
}

proptest! {
    #![proptest_config(slow())]

    #[test] // Server-server API, "Transactions"
    fn a_transaction_is_within_the_limits_and_the_same_after_it_was_stored(
        lengths in vec(prop_oneof![40 => 0_usize..100, 1 => 0_usize..BODY_BYTES_MAX], 0..130),
    ) {
        let mut transaction =
            Transaction::new("t".into(), MilliSecondsSinceUnixEpoch(UInt::from(7_u32)));
        let (mut bytes, mut taken) = (0, 0);
        for length in lengths {
            // The text and its quotes.
            let edu = RawValue::from_string(format!("\"{}\"", "x".repeat(length))).unwrap();
            let fits = taken < EDUS_MAX && (taken == 0 || bytes + length + 2 <= BODY_BYTES_MAX);
            prop_assert_eq!(transaction.push_edu(edu), fits);
            if fits {
                bytes += length + 2;
                taken += 1;
            }
        }
        let (pdus, edus) = transaction.counts();
        prop_assert_eq!((pdus, edus), (0, taken));
        prop_assert_eq!(check_limits(pdus, edus), Ok(()));
        let stored = serde_json::to_vec(&transaction).unwrap();
        let again: Transaction = serde_json::from_slice(&stored).unwrap();
        let edus = |transaction: &Transaction| -> Vec<String> {
            let request = transaction.request(server_name!("a.example"));
            request.edus.iter().map(|edu| edu.json().get().to_owned()).collect()
        };
        prop_assert_eq!(edus(&again), edus(&transaction));
    }
}
