//! What a user takes along when they join the room that replaces another: tags, the mark of a direct
//! chat, push rules.
//!
//! A reader of the log with a place of its own, so that a restart goes on where it was. Doing it twice
//! changes nothing. The upgrade itself is elsewhere.
//! Spec: client-server API, "Room Upgrades", server behaviour.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::TimelineEventType,
    push::{
        NewConditionalPushRule, NewPushRule, NewSimplePushRule, PushCondition, RuleKind, Ruleset,
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    log::LogEntry,
    rooms::{Membership, RoomView, TimelineEvent},
};

use crate::{account_data, error::ApiResult, push::rules, rooms::read::state_content, server::App};

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// After how many entries the reader's place is written, when nothing was done meanwhile.
const WRITE_ENTRIES: Position = 1_024;

const TAG: &str = "m.tag";
const DIRECT: &str = "m.direct";

#[derive(Deserialize)]
struct Create {
    predecessor: Option<Predecessor>,
}

#[derive(Deserialize)]
struct Predecessor {
    room_id: OwnedRoomId,
}

#[derive(Deserialize)]
struct Tombstone {
    replacement_room: OwnedRoomId,
}

fn cursor() -> Packed {
    Packed::key(Keyspace::CURSOR).text("room upgrades")
}

/// Copies what users take along, for as long as the server runs.
pub fn follow(app: App) -> impl Future<Output = ()> + Send {
    let stored = app.store.get_raw(cursor()).ok().flatten();
    let stored = stored.and_then(|value| Unpack(&value).u64());
    let position = stored.unwrap_or_else(|| app.store.published());
    follow_from(app, position, stored)
}

async fn follow_from(app: App, mut position: Position, mut written: Option<Position>) {
    let reader = app.metrics.reader("upgrades");
    loop {
        let mut changed = false;
        for (at, entry) in reader.next(&app.store, position, LOG_ENTRIES_MAX).await {
            position = at;
            let LogEntry::Event(event) = entry else {
                continue;
            };
            if *event.pdu.kind() != TimelineEventType::RoomMember {
                continue;
            }
            match joined(&app, &event).await {
                Ok(true) => changed = true,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = %error.message, "nothing was copied from the room before");
                }
            }
        }
        let due = written.is_none_or(|written| position - written >= WRITE_ENTRIES);
        if changed || due {
            let mut commit = Commit::new();
            commit.put_raw(cursor(), Packed::new().u64(position));
            // Losing it costs looking at some events again.
            if app.store.queue(commit).await.is_ok() {
                written = Some(position);
            }
        }
    }
}

/// Copies what belongs to the room before, if a local user has just joined the one after it.
async fn joined(app: &App, event: &TimelineEvent) -> ApiResult<bool> {
    let target = event
        .pdu
        .state_key()
        .and_then(|key| UserId::parse(key).ok());
    let Some(user_id) = target.filter(|target| app.is_local(target)) else {
        return Ok(false);
    };
    let Some(user) = app.store.find_user(&user_id)? else {
        return Ok(false);
    };
    let row = app.store.user_room(user, event.room)?;
    if row.is_none_or(|row| row.joined_at != event.position()) {
        return Ok(false);
    }
    let Some(view) = app.store.room(event.room)? else {
        return Ok(false);
    };
    let create: Option<Create> = state_content(&app.store, &view.head.state, "m.room.create", "")?;
    let Some(before) = create.and_then(|create| create.predecessor) else {
        return Ok(false);
    };
    let Some(old) = app.store.find_room(&before.room_id)? else {
        return Ok(false);
    };
    if !replaces(app, &view, old, user, &user_id)? {
        return Ok(false);
    }
    let _turn = app.account_data_turns.of(user).await;
    let mut commit = Commit::new();
    copy_tags(app, &mut commit, user, old, event.room)?;
    copy_direct(app, &mut commit, user, &before.room_id, &view.room_id)?;
    copy_rules(
        app,
        &mut commit,
        user,
        &user_id,
        &before.room_id,
        &view.room_id,
    )?;
    let any = !commit.is_empty();
    if any {
        app.store.commit(commit).await?;
    }
    Ok(any)
}

/// Whether a room stands in for another that the user was in, and not only says so: the other names it,
/// or the user themself made it.
fn replaces(
    app: &App,
    view: &RoomView,
    old: RoomNum,
    user: UserNum,
    user_id: &UserId,
) -> ApiResult<bool> {
    let row = app.store.user_room(user, old)?;
    if row.is_none_or(|row| row.membership != Membership::Join && row.left_at == 0) {
        return Ok(false);
    }
    let create = view.head.state.get("m.room.create", "");
    let create = create
        .map(|id| app.store.state_event(id))
        .transpose()?
        .flatten();
    if create.is_some_and(|create| create.pdu.sender() == user_id) {
        return Ok(true);
    }
    let Some(old) = app.store.room(old)? else {
        return Ok(false);
    };
    let tombstone: Option<Tombstone> =
        state_content(&app.store, &old.head.state, "m.room.tombstone", "")?;
    Ok(tombstone.is_some_and(|tombstone| tombstone.replacement_room == view.room_id))
}

fn copy_tags(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    old: RoomNum,
    new: RoomNum,
) -> ApiResult<()> {
    let (store, empty) = (&app.store, |content: &RawValue| content.get() == "{}");
    let tags = account_data::get(store, user, Some(old), TAG)?;
    let present = account_data::get(store, user, Some(new), TAG)?;
    if let Some(tags) = tags.filter(|tags| !empty(tags))
        && present.is_none()
    {
        account_data::put(store, commit, user, Some(new), TAG, &tags)?;
    }
    Ok(())
}

fn copy_direct(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    old: &RoomId,
    new: &RoomId,
) -> ApiResult<()> {
    let direct: Option<BTreeMap<OwnedUserId, Vec<OwnedRoomId>>> =
        account_data::get_as(&app.store, user, None, DIRECT)?;
    let mut direct = direct.unwrap_or_default();
    let mut changed = false;
    for rooms in direct.values_mut() {
        let has = |room: &RoomId| rooms.iter().any(|one| one == room);
        if has(old) && !has(new) {
            rooms.push(new.to_owned());
            changed = true;
        }
    }
    if changed {
        let content = serde_json::value::to_raw_value(&direct)
            .expect("IDs and lists of IDs always serialise");
        account_data::put(&app.store, commit, user, None, DIRECT, &content)?;
    }
    Ok(())
}

fn copy_rules(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    user_id: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> ApiResult<()> {
    let mut rules = rules::of_user(&app.store, user, user_id)?;
    if move_rules(&mut rules.global, old, new) {
        rules::put(&app.store, commit, user, &rules)?;
    }
    Ok(())
}

/// Adds to the rules that are about `old` their like for `new`: a room's own, and those with a
/// condition that names the room, as clients make to mute it. Whether there were any.
fn move_rules(rules: &mut Ruleset, old: &RoomId, new: &RoomId) -> bool {
    let mut added: Vec<(NewPushRule, bool)> = Vec::new();
    if let Some(rule) = rules.room.get(old.as_str())
        && rules.room.get(new.as_str()).is_none()
    {
        let copy = NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
        added.push((NewPushRule::Room(copy), rule.enabled));
    }
    for (kind, of_kind) in [
        (RuleKind::Override, &rules.override_),
        (RuleKind::Underride, &rules.underride),
    ] {
        for rule in of_kind {
            let mut conditions = rule.conditions.clone();
            let mut names = false;
            for condition in &mut conditions {
                if let PushCondition::EventMatch(data) = condition
                    && data.key == "room_id"
                    && data.pattern == old.as_str()
                {
                    new.as_str().clone_into(&mut data.pattern);
                    names = true;
                }
            }
            let id = rule.rule_id.replace(old.as_str(), new.as_str());
            if !names || id == rule.rule_id || of_kind.get(id.as_str()).is_some() {
                continue;
            }
            let copy = NewConditionalPushRule::new(id, conditions, rule.actions.clone());
            let copy = match kind {
                RuleKind::Override => NewPushRule::Override(copy),
                _ => NewPushRule::Underride(copy),
            };
            added.push((copy, rule.enabled));
        }
    }
    let any = !added.is_empty();
    for (rule, enabled) in added {
        let (kind, id) = (rule.kind(), rule.rule_id().to_owned());
        // A rule that cannot be added, such as one with a slash in its name, stays behind.
        if rules.insert(rule, None, None).is_ok() {
            drop(rules.set_enabled(kind, &id, enabled));
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_about_a_room_are_copied_with_their_state_and_others_are_not() {
        let (old, new) = (
            RoomId::parse("!old:hs1").unwrap(),
            RoomId::parse("!new:hs1").unwrap(),
        );
        let user_id = UserId::parse("@alice:hs1").unwrap();
        let mut rules = rules::defaults(&user_id);
        assert!(!move_rules(&mut rules, &old, &new));
        let before = rules.iter().count();
        let room = NewSimplePushRule::new(old.clone(), vec![]);
        rules.insert(NewPushRule::Room(room), None, None).unwrap();
        let names = serde_json::json!({ "kind": "event_match", "key": "room_id", "pattern": old });
        let mute = NewConditionalPushRule::new(
            old.to_string(),
            vec![serde_json::from_value(names).unwrap()],
            vec![],
        );
        rules
            .insert(NewPushRule::Override(mute), None, None)
            .unwrap();
        rules
            .set_enabled(RuleKind::Override, old.as_str(), false)
            .unwrap();
        assert!(move_rules(&mut rules, &old, &new));
        assert_eq!(rules.iter().count(), before + 4);
        assert!(rules.get(RuleKind::Room, new.as_str()).unwrap().enabled());
        assert!(
            !rules
                .get(RuleKind::Override, new.as_str())
                .unwrap()
                .enabled()
        );
        assert!(
            !move_rules(&mut rules, &old, &new),
            "a second time changes nothing"
        );
    }
}
