//! Random values: JSON that is nearly an event, and what is in it.

use federation::event::{SERVED_ROOM_VERSIONS, ServerKey};
use proptest::{collection::vec, option, prelude::*, sample::select};
use ruma::{CanonicalJsonObject, RoomVersionId};
use serde_json::{Map, Value, json};

/// For how many inputs a property is looked at: `PROPTEST_CASES` says it, or the 256 that there are without it, and how
/// much it takes. What fails becomes a test of its own, not a file of seeds.
fn config(share: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases / share,
        failure_persistence: None,
        ..default
    }
}

/// Of properties that take microseconds.
pub(crate) fn quick() -> ProptestConfig {
    config(4)
}

/// Of properties that sign, or fill a transaction.
pub(crate) fn slow() -> ProptestConfig {
    config(16)
}

const KINDS: [&str; 10] = [
    "m.room.create",
    "m.room.member",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.third_party_invite",
    "m.room.redaction",
    "m.room.server_acl",
    "m.room.topic",
    "m.room.message",
];

/// Keys that somebody reads.
const KEYS: [&str; 32] = [
    "membership",
    "join_rule",
    "users",
    "events",
    "notifications",
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "kick",
    "redact",
    "invite",
    "creator",
    "additional_creators",
    "m.federate",
    "room_version",
    "third_party_invite",
    "signed",
    "mxid",
    "token",
    "signatures",
    "public_key",
    "public_keys",
    "join_authorised_via_users_server",
    "allow",
    "deny",
    "redacts",
    "room",
    "m.room.topic",
    "@alice:a.example",
    "@bob:b.example",
    "nobody",
];

const TEXTS: [&str; 24] = [
    "",
    "join",
    "leave",
    "invite",
    "ban",
    "knock",
    "public",
    "restricted",
    "knock_restricted",
    "50",
    " +7 ",
    "-",
    "9007199254740992",
    "@alice:a.example",
    "@bob:b.example",
    "@:a.example",
    "@carol",
    "@carol:[::1]:8448",
    "!room:a.example",
    "$event",
    "$",
    "*",
    "ä\u{0}\"\\",
    "AQ==",
];

/// A user ID, or something of that kind.
pub(crate) fn user() -> impl Strategy<Value = String> {
    let users = ["@alice:a.example", "@bob:b.example", "@carol:a.example"];
    prop_oneof![8 => select(users.to_vec()).prop_map(str::to_owned), 1 => text()]
}

/// Text that means something to somebody, or none that does.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => select(&TEXTS[..]).prop_map(str::to_owned),
        2 => any::<String>(),
        1 => (250_usize..260).prop_map(|bytes| "x".repeat(bytes)),
        1 => (120_usize..260).prop_map(|characters| "ä".repeat(characters)),
    ]
}

/// JSON that canonical JSON can express.
pub(crate) fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        3 => (-2_i64..102).prop_map(Value::from),
        1 => (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
        5 => text().prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            object(inner)
        ]
    })
}

fn object(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let key = prop_oneof![8 => select(&KEYS[..]).prop_map(str::to_owned), 1 => text()];
    vec((key, values), 0..6).prop_map(|entries| Value::Object(Map::from_iter(entries)))
}

/// Content of an event: mostly of the shape that its type says, with a few other things in it.
fn content(kind: &str) -> BoxedStrategy<Value> {
    let level = prop_oneof![6 => (-1_i64..102).prop_map(Value::from), 1 => json()];
    let usual: BoxedStrategy<Value> = match kind {
        "m.room.member" => select(&["join", "leave", "invite", "ban", "knock"][..])
            .prop_map(|membership| json!({ "membership": membership }))
            .boxed(),
        "m.room.join_rules" => select(&["public", "invite", "knock", "restricted"][..])
            .prop_map(|rule| json!({ "join_rule": rule }))
            .boxed(),
        "m.room.power_levels" => (vec((user(), level), 0..3), -1_i64..102)
            .prop_map(|(users, ban)| json!({ "users": Map::from_iter(users), "ban": ban }))
            .boxed(),
        _ => Just(json!({})).boxed(),
    };
    let with_more = (usual, option::weighted(0.3, object(json()))).prop_map(|(mut usual, more)| {
        if let (Some(usual), Some(Value::Object(more))) = (usual.as_object_mut(), more) {
            usual.extend(more);
        }
        usual
    });
    prop_oneof![12 => with_more, 1 => json()].boxed()
}

/// JSON that is mostly an event, without `prev_events` and `auth_events` that lead anywhere.
pub(crate) fn event() -> impl Strategy<Value = CanonicalJsonObject> {
    let kind = prop_oneof![12 => select(&KINDS[..]).prop_map(str::to_owned), 1 => text()];
    kind.prop_flat_map(|kind| {
        let state_key = prop_oneof![1 => Just(String::new()), 1 => user()];
        let fields = (
            content(&kind),
            user(),
            option::weighted(0.8, state_key),
            // One field is something else, or something that no event has.
            option::weighted(0.15, (text_or_field(), json())),
            0_i64..4,
        );
        fields.prop_map(move |(content, sender, state_key, odd, at_ms)| {
            let mut event = json!({
                "type": kind, "sender": sender, "content": content, "room_id": "!room:a.example",
                "origin_server_ts": at_ms, "depth": 1, "prev_events": [], "auth_events": [],
                "hashes": { "sha256": "" },
            });
            if let Some(state_key) = state_key {
                event["state_key"] = state_key.into();
            }
            if let Some((field, value)) = odd {
                event[field] = value;
            }
            serde_json::from_value(event).unwrap()
        })
    })
}

fn text_or_field() -> impl Strategy<Value = String> {
    let fields = [
        "type",
        "sender",
        "content",
        "state_key",
        "room_id",
        "origin_server_ts",
        "depth",
        "prev_events",
        "auth_events",
        "hashes",
        "signatures",
        "unsigned",
        "redacts",
        "event_id",
    ];
    prop_oneof![6 => select(fields.to_vec()).prop_map(str::to_owned), 1 => text()]
}

/// A version that is served.
pub(crate) fn version() -> impl Strategy<Value = RoomVersionId> {
    select(SERVED_ROOM_VERSIONS.to_vec())
}

/// A server's name, in all the shapes there are.
pub(crate) fn server() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        4 => "[a-zA-Z0-9.-]{1,20}",
        1 => any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        1 => any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")),
    ];
    (host, option::of(any::<u16>())).prop_map(|(host, port)| match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

/// The key of a server.
pub(crate) fn key_of(server: &str) -> ServerKey {
    ServerKey::from_seed(server.try_into().unwrap(), &[7; 32], "k")
}
