//! Which rooms a request is about, and what of each: lists and subscriptions put together.
//!
//! Spec: MSC4186, "Lists and subscriptions", "Combining room configs".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;
use ruma::OwnedRoomId;
use store::{
    keys::{RoomNum, UserNum},
    rooms::Membership,
};

use super::{
    connection::{Heard, ToldRoom},
    request::{Filters, RequiredState, RoomConfig, Rules},
    roster::Roster,
};
use crate::{error::ApiResult, rooms::read::state_content, server::App};

/// What is wanted of a room by all the rules that match it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Combined {
    /// How many events at most.
    pub(super) limit: usize,
    /// Which state: what any of these wants.
    pub(super) required: Vec<RequiredState>,
}

impl Combined {
    /// Whether a piece of state is wanted, other than as a member who matters.
    pub(super) fn wants(&self, kind: &str, state_key: &str) -> bool {
        self.required.iter().any(|one| one.wants(kind, state_key))
    }

    /// Whether members who matter are wanted.
    pub(super) fn lazy_members(&self) -> bool {
        self.required.iter().any(|one| one.lazy_members)
    }
}

/// Configurations by the lists that match and the room that is subscribed to.
pub(super) type Configs = OrdMap<(Vec<String>, Option<OwnedRoomId>), Arc<Combined>>;

/// A room that a request is about.
#[derive(Debug)]
pub(super) struct Matched {
    /// Its ID.
    pub(super) room_id: OwnedRoomId,
    /// The lists it is in.
    pub(super) lists: Vec<String>,
    /// Whether it is subscribed to.
    pub(super) subscribed: bool,
    /// What is wanted of it.
    pub(super) config: Arc<Combined>,
}

/// The rooms that a request is about.
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// How many rooms each list has, in and out of its ranges.
    pub(super) counts: BTreeMap<String, u64>,
    /// The rooms.
    pub(super) rooms: BTreeMap<RoomNum, Matched>,
}

/// Finds the rooms that a request is about. `combined` keeps the configurations from before, so that
/// an unchanged one is the same value again.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn windows(
    app: &App,
    user: UserNum,
    rules: &Rules,
    roster: &Roster,
    told: &Heard<ToldRoom>,
    combined: &mut Configs,
) -> ApiResult<Windows> {
    let mut counts = BTreeMap::new();
    let mut found: BTreeMap<RoomNum, (OwnedRoomId, Vec<String>, bool)> = BTreeMap::new();
    for (name, list) in &rules.lists {
        let in_spaces = children_of(app, user, &list.filters)?;
        let mut place = 0;
        for (room, entry) in roster.by_activity() {
            let listed = entry.always_listed || told.of(room).is_some();
            if !listed || !entry.passes(&list.filters, in_spaces.as_ref(), roster) {
                continue;
            }
            let wanted = list.ranges.as_ref().is_none_or(|ranges| {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&place))
            });
            place += 1;
            if wanted {
                let slot = found.entry(room);
                let slot = slot.or_insert_with(|| (entry.room_id.clone(), Vec::new(), false));
                slot.1.push(name.clone());
            }
        }
        counts.insert(name.clone(), place);
    }
    for room_id in rules.subscriptions.keys() {
        let Some(room) = app.store.find_room(room_id)? else {
            continue;
        };
        if roster.knows(room) {
            let slot = found.entry(room);
            slot.or_insert_with(|| (room_id.clone(), Vec::new(), false))
                .2 = true;
        }
    }
    let mut rooms = BTreeMap::new();
    for (room, (room_id, lists, subscribed)) in found {
        let config = combined
            .entry((lists.clone(), subscribed.then(|| room_id.clone())))
            .or_insert_with(|| Arc::new(combine(rules, &lists, subscribed.then_some(&room_id))))
            .clone();
        let matched = Matched {
            room_id,
            lists,
            subscribed,
            config,
        };
        rooms.insert(room, matched);
    }
    Ok(Windows { counts, rooms })
}

fn combine(rules: &Rules, lists: &[String], subscribed: Option<&OwnedRoomId>) -> Combined {
    let of_lists = lists.iter().filter_map(|name| rules.lists.get(name));
    let subscription = subscribed.and_then(|room_id| rules.subscriptions.get(room_id));
    let configs: Vec<&RoomConfig> = of_lists
        .map(|list| &list.config)
        .chain(subscription)
        .collect();
    let mut combined = Combined {
        limit: configs
            .iter()
            .map(|config| config.timeline_limit)
            .max()
            .unwrap_or(0),
        required: Vec::new(),
    };
    for config in configs {
        if !combined.required.contains(&config.required_state) {
            combined.required.push(config.required_state.clone());
        }
    }
    combined
}

/// The rooms that are directly in one of a filter's spaces; `None` when it names none.
fn children_of(
    app: &App,
    user: UserNum,
    filters: &Filters,
) -> ApiResult<Option<BTreeSet<OwnedRoomId>>> {
    let Some(spaces) = &filters.spaces else {
        return Ok(None);
    };
    let mut children = BTreeSet::new();
    for space in spaces {
        let Some(room) = app.store.find_room(space)? else {
            continue;
        };
        let joined = app
            .store
            .user_room(user, room)?
            .is_some_and(|row| row.membership == Membership::Join);
        let Some(view) = app.store.room(room)?.filter(|_| joined) else {
            continue;
        };
        for (child, _) in view.head.state.of_kind("m.space.child") {
            let content: Option<serde_json::Value> =
                state_content(&app.store, &view.head.state, "m.space.child", child)?;
            let via = content.as_ref().and_then(|content| content.get("via"));
            let counts = via.is_some_and(serde_json::Value::is_array);
            if let (true, Ok(child)) = (counts, ruma::RoomId::parse(child)) {
                children.insert(child);
            }
        }
    }
    Ok(Some(children))
}
