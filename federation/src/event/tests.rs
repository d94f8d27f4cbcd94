//! Boundaries of events: sizes, depths, numbers, IDs.

use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, room_id, uint, user_id};
use serde_json::{json, value::to_raw_value};

use super::*;

fn key() -> ServerKey {
    ServerKey::from_seed("hs1".try_into().unwrap(), &[1; 32], "a")
}

fn draft(content: &serde_json::Value) -> Draft {
    Draft::message("m.room.message", to_raw_value(content).unwrap())
}

fn sign(draft: Draft, version: &RoomVersionId) -> Result<Pdu, DraftError> {
    let rules = rules_of(version).unwrap();
    let context = DraftContext {
        room_id: Some(room_id!("!room:hs1")),
        sender: user_id!("@alice:hs1"),
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1)),
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        rules: &rules,
    };
    draft.sign(&context, &key())
}

#[test] // Client-server API, "Size limits"
fn an_event_of_65_536_bytes_passes_and_one_more_does_not() {
    let empty = sign(draft(&json!({ "body": "" })), &RoomVersionId::V11).unwrap();
    let room = PDU_BYTES_MAX - empty.json().len();
    let largest = sign(
        draft(&json!({ "body": "x".repeat(room) })),
        &RoomVersionId::V11,
    )
    .unwrap();
    assert_eq!(largest.json().len(), PDU_BYTES_MAX);
    let error = sign(
        draft(&json!({ "body": "x".repeat(room + 1) })),
        &RoomVersionId::V11,
    )
    .unwrap_err();
    assert!(
        matches!(error, DraftError::Malformed(Malformed::TooLarge { bytes }) if bytes > PDU_BYTES_MAX),
        "{error}"
    );
}

#[test] // Client-server API, "Size limits"
fn a_type_of_255_bytes_passes_and_a_longer_one_does_not() {
    let of = |bytes| Draft {
        kind: "x".repeat(bytes),
        ..draft(&json!({}))
    };
    sign(of(255), &RoomVersionId::V11).unwrap();
    let error = sign(of(256), &RoomVersionId::V11).unwrap_err();
    assert!(matches!(
        error,
        DraftError::Malformed(Malformed::FieldTooLong {
            field: "type",
            bytes: 256
        })
    ));
    // In older rooms characters count, as they do for other servers.
    let wide = |characters| Draft {
        kind: "é".repeat(characters),
        ..draft(&json!({}))
    };
    sign(wide(255), &RoomVersionId::V10).unwrap();
    sign(wide(256), &RoomVersionId::V10).unwrap_err();
    sign(wide(255), &RoomVersionId::V11).unwrap_err();
}

#[test] // Room version 6, "Canonical JSON"
fn floats_and_integers_beyond_53_bits_are_no_content() {
    let largest = 9_007_199_254_740_991_i64;
    for fine in [json!({ "n": largest }), json!({ "n": -largest })] {
        sign(draft(&fine), &RoomVersionId::V6).unwrap();
    }
    for bad in [
        json!({ "n": 1.5 }),
        json!({ "n": largest + 1 }),
        json!({ "n": -largest - 1 }),
        json!([]),
        json!("x"),
    ] {
        let error = sign(draft(&bad), &RoomVersionId::V6).unwrap_err();
        assert!(matches!(error, DraftError::Content(_)), "{bad}: {error}");
    }
}

#[test]
fn content_may_nest_a_hundred_levels_and_no_more() {
    let nested = |levels: usize| {
        let text = format!(
            "{{\"a\":{}{}}}",
            "[".repeat(levels - 1),
            "]".repeat(levels - 1)
        );
        Draft::message("m", serde_json::value::RawValue::from_string(text).unwrap())
    };
    sign(nested(CONTENT_DEPTH_MAX), &RoomVersionId::V12).unwrap();
    assert!(matches!(
        sign(nested(CONTENT_DEPTH_MAX + 1), &RoomVersionId::V12),
        Err(DraftError::TooDeep)
    ));
}

#[test] // A brace in a string is no nesting
fn nesting_counts_brackets_outside_strings_only() {
    assert_eq!(draft::nesting(r#"{"a":"[[[{{{","b\"[":[1]}"#), 2);
}

#[test] // Room version 12, "Room IDs as hashes of the create event"
fn the_room_id_of_version_12_is_the_id_of_its_create_event() {
    let rules = rules_of(&RoomVersionId::V12).unwrap();
    let context = DraftContext {
        room_id: None,
        sender: user_id!("@alice:hs1"),
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1)),
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        rules: &rules,
    };
    let content = to_raw_value(&json!({ "room_version": "12" })).unwrap();
    let create = Draft::state("m.room.create", "", content)
        .sign(&context, &key())
        .unwrap();
    assert_eq!(
        create.room_id().as_str().trim_start_matches('!'),
        create.event_id().as_str().trim_start_matches('$')
    );
    assert!(!create.json().contains("\"room_id\""));
}

#[test] // Client-server API, "Redactions"
fn a_redaction_keeps_the_event_id_and_empties_the_content() {
    let rules = rules_of(&RoomVersionId::V11).unwrap();
    let said = sign(draft(&json!({ "body": "secret" })), &RoomVersionId::V11).unwrap();
    let left = said.redacted(&rules).unwrap();
    assert_eq!(left.event_id(), said.event_id());
    assert_eq!(left.content().get(), "{}");
    let object = serde_json::from_str(left.json()).unwrap();
    assert_eq!(
        Pdu::from_canonical(&object, &rules).unwrap().event_id(),
        said.event_id()
    );
}

#[test] // Room version 11 moves `redacts` into the content
fn what_a_redaction_redacts_is_read_from_where_the_version_keeps_it() {
    let content = to_raw_value(&json!({ "redacts": "$inside" })).unwrap();
    let redaction = || Draft {
        redacts: Some("$outside".try_into().unwrap()),
        ..Draft::message("m.room.redaction", content.clone())
    };
    assert_eq!(
        sign(redaction(), &RoomVersionId::V10)
            .unwrap()
            .redacts()
            .unwrap(),
        "$outside"
    );
    assert_eq!(
        sign(redaction(), &RoomVersionId::V11)
            .unwrap()
            .redacts()
            .unwrap(),
        "$inside"
    );
}

#[test]
fn versions_before_6_and_made_up_ones_are_not_served() {
    for version in ["1", "5", "13", "org.example"] {
        assert!(
            rules_of(&version.try_into().unwrap()).is_none(),
            "{version}"
        );
    }
}
