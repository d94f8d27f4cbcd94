//! Server access control lists: which servers a room keeps out.
//!
//! The matching is ruma's: `*` and `?`, without regard to case (MSC4436), the port left out. Here stands
//! what an event that cannot be read means. Spec: client-server API, "Server ACLs".

use ruma::{ServerName, events::room::server_acl::RoomServerAclEventContent};
use serde_json::{Map, Value};

use crate::event::Pdu;

/// Whether the room lets a server take part. `acl` is the room's `m.room.server_acl`, if it has one.
///
/// Without the event everybody may. In an event of another shape, what cannot be read counts as absent, as
/// other servers have it: they would disagree about who is in the room otherwise.
pub fn allows(acl: Option<&Pdu>, server: &ServerName) -> bool {
    let Some(acl) = acl else {
        return true;
    };
    let content: Map<String, Value> = acl.content_as().unwrap_or_default();
    let names = |key: &str| -> Vec<String> {
        let list = content.get(key).and_then(Value::as_array);
        let names = list.into_iter().flatten().filter_map(Value::as_str);
        names.map(ToOwned::to_owned).collect()
    };
    let literals = content.get("allow_ip_literals").and_then(Value::as_bool);
    RoomServerAclEventContent::new(literals.unwrap_or(true), names("allow"), names("deny"))
        .is_allowed(server)
}

#[cfg(test)]
mod tests {
    use ruma::{CanonicalJsonObject, RoomVersionId};
    use serde_json::json;

    use super::*;
    use crate::event::rules_of;

    fn acl(content: &Value) -> Pdu {
        let event = json!({
            "room_id": "!a:hs1",
            "sender": "@a:hs1",
            "type": "m.room.server_acl",
            "state_key": "",
            "content": content,
            "origin_server_ts": 1,
            "prev_events": [],
            "auth_events": [],
            "depth": 1,
            "hashes": { "sha256": "" },
        });
        let object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
        Pdu::from_canonical(&object, &rules_of(&RoomVersionId::V11).unwrap()).unwrap()
    }

    fn may(content: &Value, server: &str) -> bool {
        allows(Some(&acl(content)), server.try_into().unwrap())
    }

    #[test]
    fn without_a_list_everybody_may() {
        assert!(allows(None, "hs2".try_into().unwrap()));
    }

    #[test]
    fn a_list_without_allow_keeps_everybody_out() {
        assert!(!may(&json!({}), "hs2"));
        assert!(!may(&json!({ "deny": ["hs3"] }), "hs2"));
    }

    #[test]
    fn deny_beats_allow() {
        assert!(may(&json!({ "allow": ["*"], "deny": ["hs3"] }), "hs2"));
        assert!(!may(
            &json!({ "allow": ["*", "hs3"], "deny": ["hs3"] }),
            "hs3"
        ));
    }

    #[test]
    fn globs_match_without_regard_to_case_and_port() {
        let list = json!({ "allow": ["*"], "deny": ["*.Evil.example", "b?d"] });
        assert!(!may(&list, "a.EVIL.example:8448"));
        assert!(!may(&list, "bad:443"));
        assert!(may(&list, "baad"));
        assert!(may(&list, "evil.example"));
    }

    #[test]
    fn ip_literals_are_allowed_unless_the_list_says_otherwise() {
        for address in ["192.0.2.1", "192.0.2.1:8448", "[2001:db8::1]:8448"] {
            assert!(may(&json!({ "allow": ["*"] }), address), "{address}");
            let list = json!({ "allow": ["*"], "allow_ip_literals": false });
            assert!(!may(&list, address), "{address}");
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_absent() {
        assert!(!may(&json!({ "allow": "hs2" }), "hs2"));
        assert!(may(&json!({ "allow": ["*", 5], "deny": "hs2" }), "hs2"));
        assert!(may(
            &json!({ "allow": ["*"], "allow_ip_literals": "no" }),
            "192.0.2.1"
        ));
    }
}
