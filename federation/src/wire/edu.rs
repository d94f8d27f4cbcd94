//! EDUs: what one server tells another that is no event of a room.
//!
//! ruma's types, read more leniently: an EDU of a kind that nobody knows is kept as it came, and one
//! odd entry of a receipt does not cost the others.
//! Spec: server-server API, "EDUs" and the chapters named there.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, Edu, PresenceContent, ReceiptData,
        SigningKeyUpdateContent, TypingContent,
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// How many users one EDU tells the presence of. Spec: none; other servers send as many.
pub const PRESENCE_USERS_MAX: usize = 50;

/// How long the ID of a message to devices may be, in code points.
///
/// Spec: server-server API, "Send-to-device messaging".
pub const MESSAGE_ID_CHARS_MAX: usize = 32;

/// The kind under which cross-signing keys were told before they were part of the specification; other
/// servers still send both, and listen to either.
pub const SIGNING_KEYS_OLD: &str = "org.matrix.signing_key_update";

/// The read receipts of one room.
pub type RoomReceipts = BTreeMap<OwnedUserId, ReceiptData>;

/// An EDU, by its kind.
#[derive(Clone, Debug)]
pub enum Told {
    /// `m.typing`
    Typing(TypingContent),
    /// `m.receipt`: the public read receipts in it.
    Receipts(BTreeMap<OwnedRoomId, RoomReceipts>),
    /// `m.presence`
    Presence(PresenceContent),
    /// `m.device_list_update`
    DeviceList(DeviceListUpdateContent),
    /// `m.signing_key_update`, under either name.
    SigningKeys(SigningKeyUpdateContent),
    /// `m.direct_to_device`
    ToDevice(DirectDeviceContent),
    /// Another kind.
    Other {
        /// Which.
        kind: String,
        /// Its content, as it came.
        content: Box<RawValue>,
    },
}

#[derive(Deserialize)]
struct Outer {
    edu_type: String,
    content: Box<RawValue>,
}

/// Reads an EDU of another server.
///
/// # Errors
/// When it is not an EDU, or its content is not what its kind says.
pub fn read(edu: &Raw<Edu>) -> Result<Told, serde_json::Error> {
    let outer: Outer = serde_json::from_str(edu.json().get())?;
    let content = outer.content.get();
    Ok(match &*outer.edu_type {
        "m.typing" => Told::Typing(serde_json::from_str(content)?),
        "m.receipt" => Told::Receipts(receipts(content)?),
        "m.presence" => Told::Presence(serde_json::from_str(content)?),
        "m.device_list_update" => Told::DeviceList(serde_json::from_str(content)?),
        "m.signing_key_update" | SIGNING_KEYS_OLD => {
            Told::SigningKeys(serde_json::from_str(content)?)
        }
        "m.direct_to_device" => Told::ToDevice(serde_json::from_str(content)?),
        _ => Told::Other {
            kind: outer.edu_type,
            content: outer.content,
        },
    })
}

/// The `m.read` receipts of an `m.receipt` EDU. Other types and odd entries are passed over.
fn receipts(content: &str) -> Result<BTreeMap<OwnedRoomId, RoomReceipts>, serde_json::Error> {
    type ByType = BTreeMap<String, BTreeMap<OwnedUserId, Box<RawValue>>>;
    let rooms: BTreeMap<OwnedRoomId, ByType> = serde_json::from_str(content)?;
    let mut read = BTreeMap::new();
    for (room_id, mut types) in rooms {
        let entries = types.remove("m.read").unwrap_or_default();
        let entries = entries
            .into_iter()
            .filter_map(|(user_id, data)| Some((user_id, serde_json::from_str(data.get()).ok()?)));
        read.insert(room_id, entries.collect());
    }
    Ok(read)
}

#[derive(Serialize)]
struct OuterOut<'a, C> {
    edu_type: &'a str,
    content: C,
}

/// An EDU of a kind, to be sent.
pub fn write(kind: &str, content: &impl Serialize) -> Box<RawValue> {
    let edu = OuterOut {
        edu_type: kind,
        content,
    };
    to_raw_value(&edu).expect("contents of EDUs are structs and maps with string keys")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(edu: &Value) -> Result<Told, serde_json::Error> {
        read(&Raw::from_json(to_raw_value(edu).unwrap()))
    }

    #[test]
    fn cross_signing_keys_are_known_under_both_names() {
        for kind in ["m.signing_key_update", "org.matrix.signing_key_update"] {
            let edu = json!({ "edu_type": kind, "content": { "user_id": "@a:hs2" } });
            let Ok(Told::SigningKeys(content)) = told(&edu) else {
                panic!("{kind} is not read");
            };
            assert_eq!(content.user_id, "@a:hs2");
        }
    }

    #[test]
    fn only_public_read_receipts_are_read_and_odd_ones_cost_no_others() {
        let edu = json!({ "edu_type": "m.receipt", "content": {
            "!a:hs2": {
                "m.read": {
                    "@a:hs2": { "data": { "ts": 5 }, "event_ids": ["$e"] },
                    "@b:hs2": { "data": 7 },
                },
                "m.read.private": {
                    "@c:hs2": { "data": { "ts": 5 }, "event_ids": ["$e"] },
                },
            },
            "!b:hs2": { "m.read.private": {} },
        }});
        let Ok(Told::Receipts(rooms)) = told(&edu) else {
            panic!("receipts are not read");
        };
        let users: Vec<Vec<&str>> = rooms
            .values()
            .map(|users| users.keys().map(|user| user.as_str()).collect())
            .collect();
        assert_eq!(users, [vec!["@a:hs2"], vec![]]);
    }

    #[test]
    fn an_unknown_kind_is_kept_as_it_came() {
        let edu = json!({ "edu_type": "org.x", "content": { "a": [1, 2.5] } });
        let Ok(Told::Other { kind, content }) = told(&edu) else {
            panic!("an unknown kind is not kept");
        };
        assert_eq!(
            (kind.as_str(), content.get()),
            ("org.x", r#"{"a":[1,2.5]}"#)
        );
    }

    #[test]
    fn what_has_no_kind_or_another_content_is_no_edu() {
        assert!(told(&json!({ "content": {} })).is_err());
        assert!(told(&json!({ "edu_type": "m.typing", "content": { "typing": true } })).is_err());
        assert!(told(&json!("x")).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let content = TypingContent::new(
            "!a:hs1".try_into().unwrap(),
            "@a:hs1".try_into().unwrap(),
            true,
        );
        let edu = write("m.typing", &content);
        let Ok(Told::Typing(read)) = read(&Raw::from_json(edu)) else {
            panic!("typing is not read");
        };
        assert!(read.typing);
    }
}
