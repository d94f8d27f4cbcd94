use std::collections::BTreeMap;

use ruma::{CanonicalJsonObject, RoomVersionId};
use serde_json::{Value, json};

use super::*;
use crate::{
    event::rules_of,
    room::{
        StateMap,
        auth::{Verdict, judge},
        resolve::resolve,
    },
};

/// A room of version 11 that @a:hs1 made, and what is in it.
struct Room {
    rules: RoomVersionRules,
    events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    state: StateMap,
}

impl Room {
    fn new() -> Self {
        let mut room = Self {
            rules: rules_of(&RoomVersionId::V11).unwrap(),
            events: BTreeMap::new(),
            state: StateMap::new(),
        };
        assert!(room.add("@a:hs1", "m.room.create", "", &json!({})));
        assert!(room.member("@a:hs1", "@a:hs1", "join"));
        room
    }

    fn member(&mut self, sender: &str, target: &str, membership: &str) -> bool {
        let content = json!({ "membership": membership, "n": self.events.len() });
        self.add(sender, "m.room.member", target, &content)
    }

    /// Adds an event that names all of the state as its auth events that it may; says whether it was accepted.
    fn add(&mut self, sender: &str, kind: &str, state_key: &str, content: &Value) -> bool {
        let is_member = kind == "m.room.member";
        let of_kinds = self.state.iter().filter(|(held, key, _)| match *held {
            "m.room.create" => true,
            "m.room.join_rules" => is_member && content["membership"] != "leave",
            "m.room.member" => *key == sender || is_member && *key == state_key,
            _ => false,
        });
        let auth_events: Vec<&OwnedEventId> = of_kinds.map(|(_, _, id)| id).collect();
        // The creator's first join stands on the create event alone.
        let prev_events: Vec<&OwnedEventId> = self.state.iter().map(|(_, _, id)| id).collect();
        let event = json!({
            "room_id": "!r:hs1", "sender": sender, "type": kind, "state_key": state_key, "content": content,
            "origin_server_ts": self.events.len(), "depth": 1, "hashes": { "sha256": "" },
            "prev_events": prev_events, "auth_events": auth_events,
        });
        let object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
        let pdu = Pdu::from_canonical(&object, &self.rules).unwrap();
        let verdict = judge(
            &pdu,
            &self.rules.authorization,
            &self.state,
            &self.state,
            |id| self.events.get(id).cloned(),
        );
        let accepted = matches!(verdict, Verdict::Accepted);
        if accepted {
            let id = pdu.event_id().to_owned();
            self.state.insert(kind, state_key, id.clone());
            self.events.insert(id, Arc::new(pdu));
        }
        accepted
    }
}

/// Who may join a room, once it has these join rules.
fn assert_is_of_invites(room: &mut Room) {
    assert!(room.member("@a:hs1", "@a:hs1", "join"), "a new name");
    assert!(!room.member("@b:hs1", "@b:hs1", "join"), "not invited");
    assert!(!room.member("@b:hs1", "@b:hs1", "knock"), "no knocking");
    assert!(room.member("@a:hs1", "@b:hs1", "invite"));
    assert!(room.member("@b:hs1", "@b:hs1", "join"), "invited");
}

#[test] // Found by the oracle: a state resolution had lost the join rules
fn who_is_invited_joins_a_room_without_join_rules() {
    assert_is_of_invites(&mut Room::new());
}

#[test]
fn who_is_invited_joins_a_room_whose_join_rules_name_none() {
    let mut room = Room::new();
    assert!(room.add("@a:hs1", "m.room.join_rules", "", &json!({})));
    assert_is_of_invites(&mut room);
}

#[test]
fn a_join_rule_that_is_there_counts_whatever_it_is() {
    for (join_rule, may) in [
        (json!("public"), true),
        (json!("private"), false),
        (json!(null), false),
        (json!(7), false),
    ] {
        let mut room = Room::new();
        let content = json!({ "join_rule": join_rule });
        assert!(room.add("@a:hs1", "m.room.join_rules", "", &content));
        assert!(room.member("@a:hs1", "@c:hs1", "invite"));
        for user in ["@b:hs1", "@c:hs1"] {
            assert_eq!(room.member(user, user, "join"), may, "{join_rule} {user}");
        }
    }
}

#[test] // Room version 2, "Iterative auth checks"
fn a_join_without_join_rules_is_resolved_as_it_was_judged() {
    let mut room = Room::new();
    assert!(room.member("@a:hs1", "@b:hs1", "invite"));
    let earlier = room.state.clone();
    assert!(room.member("@b:hs1", "@b:hs1", "join"));
    let later = room.state.clone();
    let resolved = resolve(&room.rules, &[earlier, later.clone()], |id| {
        room.events.get(id).cloned()
    });
    assert_eq!(resolved.unwrap(), later);
}

#[test] // Room version 2, "Iterative auth checks": the state comes before the event's own auth events
fn a_join_is_resolved_by_the_join_rules_that_there_are() {
    let mut room = Room::new();
    assert!(room.member("@a:hs1", "@b:hs1", "invite"));
    let invited = room.state.clone();
    assert!(room.member("@b:hs1", "@b:hs1", "join"));
    let joined = std::mem::replace(&mut room.state, invited);
    let content = json!({ "join_rule": "private" });
    assert!(room.add("@a:hs1", "m.room.join_rules", "", &content));
    let resolved = resolve(&room.rules, &[joined, room.state.clone()], |id| {
        room.events.get(id).cloned()
    });
    assert_eq!(resolved.unwrap(), room.state);
}
