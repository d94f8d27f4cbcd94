//! Push rules as they are kept: the user's own over the server's defaults.
//!
//! They are the account data `m.push_rules`, so a change wakes `/sync` like any other; a user who
//! never changed any has none stored. Whoever changes them holds the user's turn
//! ([`crate::account_data::Turns`]). Spec: client-server API, "Push Rules".

use ruma::{
    UserId,
    push::{ConditionalPushRule, PatternedPushRule, PredefinedOverrideRuleId, Ruleset},
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use store::{Commit, Store, StoreError, keys::UserNum};

use crate::account_data;

/// The type of the account data that holds the rules.
pub const PUSH_RULES: &str = "m.push_rules";

/// The content of `m.push_rules`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushRules {
    /// The only scope there is.
    #[serde(serialize_with = "every_kind")]
    pub global: Ruleset,
}

/// Writes all five kinds: clients take a kind that is not there for a mistake.
fn every_kind<S: serde::Serializer>(rules: &Ruleset, to: S) -> Result<S::Ok, S::Error> {
    whole(rules).serialize(to)
}

/// Rules as clients expect them: every kind is there, if only as an empty list.
pub fn whole(rules: &Ruleset) -> serde_json::Value {
    let mut value = serde_json::to_value(rules).expect("rules have string keys");
    if let Some(kinds) = value.as_object_mut() {
        for kind in ["override", "content", "room", "sender", "underride"] {
            kinds.entry(kind).or_insert_with(|| json!([]));
        }
    }
    value
}

/// The rules of a user: what is stored, with the defaults of this version of the server.
///
/// # Errors
/// When the store cannot be read.
pub fn of_user(store: &Store, user: UserNum, user_id: &UserId) -> Result<PushRules, StoreError> {
    let stored: Option<PushRules> = account_data::get_as(store, user, None, PUSH_RULES)?;
    let defaults = defaults(user_id);
    let global = match stored {
        Some(PushRules { mut global }) => {
            global.update_with_server_default(defaults);
            global
        }
        None => defaults,
    };
    Ok(PushRules { global })
}

/// The rules that everybody has: those of the specification, and the three older ones for mentions.
///
/// Clients that do not say whom they mention (`m.mentions`) are still in use, and others expect that
/// their user is told; for an event that does say it, these three are as good as disabled.
/// Spec: client-server API, "Predefined Rules"; up to version 1.16 for the older ones.
pub fn defaults(user_id: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user_id);
    let highlight = json!([
        "notify",
        { "set_tweak": "sound", "value": "default" },
        { "set_tweak": "highlight" },
    ]);
    let older = [
        (
            PredefinedOverrideRuleId::IsUserMention,
            json!({
                "rule_id": ".m.rule.contains_display_name",
                "default": true,
                "enabled": true,
                "conditions": [{ "kind": "contains_display_name" }],
                "actions": highlight,
            }),
        ),
        (
            PredefinedOverrideRuleId::IsRoomMention,
            json!({
                "rule_id": ".m.rule.roomnotif",
                "default": true,
                "enabled": true,
                "conditions": [
                    { "kind": "event_match", "key": "content.body", "pattern": "@room" },
                    { "kind": "sender_notification_permission", "key": "room" },
                ],
                "actions": ["notify", { "set_tweak": "highlight" }],
            }),
        ),
    ];
    for (behind, rule) in older {
        let rule: ConditionalPushRule =
            serde_json::from_value(rule).expect("a rule of our own is a rule");
        let place = rules.override_.get_index_of(behind.as_str());
        let place = place.map_or(rules.override_.len(), |place| place + 1);
        rules.override_.shift_insert(place, rule);
    }
    let by_name = json!({
        "rule_id": ".m.rule.contains_user_name",
        "default": true,
        "enabled": true,
        "pattern": user_id.localpart(),
        "actions": highlight,
    });
    let by_name: PatternedPushRule =
        serde_json::from_value(by_name).expect("a rule of our own is a rule");
    rules.content.insert(by_name);
    rules
}

/// The rules of a user as the content of `m.push_rules`.
///
/// # Errors
/// When the store cannot be read.
pub fn content(
    store: &Store,
    user: UserNum,
    user_id: &UserId,
) -> Result<Box<RawValue>, StoreError> {
    Ok(raw(&of_user(store, user, user_id)?))
}

fn raw(rules: &PushRules) -> Box<RawValue> {
    serde_json::value::to_raw_value(rules).expect("rules have string keys")
}

/// Stores the rules of a user.
///
/// # Errors
/// When the store cannot be read.
pub fn put(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    rules: &PushRules,
) -> Result<(), StoreError> {
    account_data::put(store, commit, user, None, PUSH_RULES, &raw(rules))
}
