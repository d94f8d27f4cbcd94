//! Events in their room: whatever they say, they are judged, and what was accepted can be resolved.

use std::{collections::BTreeMap, sync::Arc};

use federation::{
    event::{Pdu, rules_of},
    room::{
        Powers, StateMap, acl,
        auth::{Verdict, judge},
        resolve::resolve,
    },
};
use proptest::{collection::vec, prelude::*, sample::Index};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, UserId, room_version_rules::RoomVersionRules,
};
use serde_json::json;

use crate::samples::{event, quick, server, version};

/// An event, and which of those before it it is built upon.
type Drawn = (CanonicalJsonObject, Vec<Index>, bool);

struct Room {
    rules: RoomVersionRules,
    events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    order: Vec<OwnedEventId>,
    after: BTreeMap<OwnedEventId, StateMap>,
}

impl Room {
    fn event(&self, id: &EventId) -> Option<Arc<Pdu>> {
        self.events.get(id).cloned()
    }

    /// The state that follows from those after some events: the same in whichever order they are named.
    fn resolve(&self, of: &[OwnedEventId]) -> StateMap {
        let mut states: Vec<StateMap> = of.iter().map(|id| self.after[id].clone()).collect();
        let resolved = resolve(&self.rules, &states, |id| self.event(id)).unwrap();
        states.reverse();
        let reversed = resolve(&self.rules, &states, |id| self.event(id)).unwrap();
        assert_eq!(resolved, reversed);
        resolved
    }

    /// Adds an event, with the auth events that the state before it has for it, or with all that there are.
    fn add(&mut self, mut object: CanonicalJsonObject, prev_events: &[OwnedEventId], all: bool) {
        let before = self.resolve(prev_events);
        let texts = |ids: Vec<OwnedEventId>| serde_json::from_value(json!(ids)).unwrap();
        object.insert("prev_events".to_owned(), texts(prev_events.to_vec()));
        let mut auth_events = Vec::new();
        let users =
            ["sender", "state_key"].map(|field| object.get(field).and_then(|user| user.as_str()));
        for (kind, key, id) in before.iter() {
            let fits = match kind {
                "m.room.power_levels" | "m.room.join_rules" => key.is_empty(),
                "m.room.create" => !self.rules.authorization.room_create_event_id_as_room_id,
                "m.room.member" => users.contains(&Some(key)),
                _ => false,
            };
            let is_join_rules_for_another = kind == "m.room.join_rules"
                && object.get("type").and_then(|kind| kind.as_str()) != Some("m.room.member");
            if all || fits && !is_join_rules_for_another {
                auth_events.push(id.clone());
            }
        }
        object.insert("auth_events".to_owned(), texts(auth_events));
        if let Some(room_id) = self
            .order
            .first()
            .map(|id| self.events[id].room_id().to_string())
        {
            object.insert("room_id".to_owned(), room_id.into());
        }
        let Ok(pdu) = Pdu::from_canonical(&object, &self.rules) else {
            return;
        };
        let verdict = judge(&pdu, &self.rules.authorization, &before, &before, |id| {
            self.event(id)
        });
        let accepted = matches!(verdict, Verdict::Accepted);
        let pdu = if accepted { pdu } else { pdu.as_rejected() };
        let mut after = before;
        if let (true, Some(state_key)) = (accepted, pdu.state_key()) {
            after.insert(
                &pdu.kind().to_string(),
                state_key,
                pdu.event_id().to_owned(),
            );
        }
        let id = pdu.event_id().to_owned();
        self.order.push(id.clone());
        self.after.insert(id.clone(), after);
        self.events.insert(id, Arc::new(pdu));
    }
}

fn create(rules: &RoomVersionRules) -> CanonicalJsonObject {
    let mut create = json!({
        "type": "m.room.create", "state_key": "", "sender": "@alice:a.example", "room_id": "!room:a.example",
        "content": { "creator": "@alice:a.example" }, "origin_server_ts": 0, "depth": 1, "hashes": { "sha256": "" },
    });
    if rules.authorization.room_create_event_id_as_room_id {
        create.as_object_mut().unwrap().remove("room_id");
    }
    serde_json::from_value(create).unwrap()
}

fn drawn() -> impl Strategy<Value = Drawn> {
    (
        event(),
        vec(any::<Index>(), 1..4),
        prop::bool::weighted(0.1),
    )
}

proptest! {
    #![proptest_config(quick())]

    #[test] // Room version 2, "State resolution"
    fn what_was_accepted_can_be_resolved_in_any_order(
        version in version(), events in vec(drawn(), 0..16), together in vec(any::<Index>(), 2..5),
    ) {
        let rules = rules_of(&version).unwrap();
        let mut room = Room {
            events: BTreeMap::new(), order: Vec::new(), after: BTreeMap::new(), rules,
        };
        room.add(create(&room.rules), &[], false);
        let member = |membership| json!({
            "type": "m.room.member", "state_key": "@alice:a.example", "sender": "@alice:a.example",
            "content": { "membership": membership }, "origin_server_ts": 0, "depth": 1, "hashes": { "sha256": "" },
        });
        let create = room.order.clone();
        room.add(serde_json::from_value(member("join")).unwrap(), &create, false);
        for (object, prev_events, all) in events {
            let mut prev_events: Vec<OwnedEventId> =
                prev_events.iter().map(|index| index.get(&room.order[1..]).clone()).collect();
            prev_events.sort();
            prev_events.dedup();
            room.add(object, &prev_events, all);
        }
        let together: Vec<OwnedEventId> =
            together.iter().map(|index| index.get(&room.order).clone()).collect();
        room.resolve(&together);
    }

    #[test]
    fn whatever_state_says_it_can_be_asked(
        version in version(), state in vec(event(), 1..8), asking in event(), server in server(),
    ) {
        let rules = rules_of(&version).unwrap();
        let parsed = |object| Pdu::from_canonical(&object, &rules).map(Arc::new).ok();
        let events: Vec<Arc<Pdu>> = state.into_iter().filter_map(parsed).collect();
        let mut map = StateMap::new();
        for event in &events {
            let state_key = event.state_key().unwrap_or_default();
            map.insert(&event.kind().to_string(), state_key, event.event_id().to_owned());
        }
        let known = |id: &EventId| events.iter().find(|event| event.event_id() == id).cloned();
        let held = |kind: &str| map.get(kind, "").and_then(|id| known(id));
        if let Some(asking) = parsed(asking) {
            drop(judge(&asking, &rules.authorization, &map, &map, known));
        }
        if let Some(create) = held("m.room.create") {
            let powers = Powers::new(&rules.authorization, create, held("m.room.power_levels"));
            let alice = <&UserId>::try_from("@alice:a.example").unwrap();
            let asked = [
                powers.can_send(alice, "m.room.topic", Some("")),
                powers.can_invite(alice), powers.can_kick(alice), powers.can_redact(alice),
            ];
            prop_assert_eq!(asked.len(), 4);
        }
        if let Ok(server) = server.as_str().try_into() {
            let acl = held("m.room.server_acl");
            prop_assert!(acl.is_some() || acl::allows(None, server));
            acl::allows(acl.as_deref(), server);
        }
    }

    #[test]
    fn the_changes_between_any_two_states_lead_from_one_to_the_other(
        one in vec(("[ab]{1,2}", "[ab]{0,1}", "[a-c]"), 0..8), other in vec(("[ab]{1,2}", "[ab]{0,1}", "[a-c]"), 0..8),
    ) {
        let [earlier, later] = [one, other].map(|entries| {
            let mut state = StateMap::new();
            for (kind, key, id) in entries {
                state.insert(&kind, &key, OwnedEventId::try_from(format!("${id}")).unwrap());
            }
            state
        });
        let mut walked = earlier.clone();
        for change in later.changes_since(&earlier) {
            walked.apply(&change);
        }
        prop_assert_eq!(walked.len(), walked.iter().count());
        prop_assert_eq!(walked, later);
    }
}
