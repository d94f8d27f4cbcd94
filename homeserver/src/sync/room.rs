//! What a user gets of one room between two points: timeline, state, summary.
//!
//! Spec: client-server API, "Syncing", "Lazy-loading room members"; MSC4222 for the state after.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use federation::room::{StateMap, visibility::entitled};
use ruma::{OwnedEventId, OwnedUserId};
use serde::Serialize;
use store::{
    keys::Position,
    kv::Direction,
    rooms::{Membership, TimelineEvent},
};

use super::{Token, filter::EventFilter};
use crate::{
    error::ApiResult,
    rooms::read::{Seen, Sight},
    server::App,
};

/// How many events are looked at to fill a timeline that a filter or the visibility thins out.
const WALK_EVENTS_MAX: usize = 2_000;

/// How many members stand for a room without a name. Spec: client-server API, `m.heroes`.
const HEROES_MAX: usize = 5;

/// What is asked of a room.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Only what is new since here; everything without.
    pub since: Option<Position>,
    /// Nothing beyond here.
    pub until: Position,
    /// How many events at most.
    pub limit: usize,
    /// All of the state, not only what changed.
    pub full_state: bool,
    /// Which events.
    pub timeline: &'a EventFilter,
    /// Which state.
    pub state: &'a EventFilter,
    /// The state at the end of the timeline, instead of that at its start.
    pub state_after: bool,
}

/// What a user gets of a room.
#[derive(Debug, Default)]
pub struct Update {
    /// The newest events, oldest first.
    pub timeline: Vec<Seen>,
    /// Whether there are more between `since` and the first of them.
    pub limited: bool,
    /// The point before the first of them.
    pub prev_batch: Option<Token>,
    /// State events.
    pub state: Vec<Seen>,
    /// Whether anybody's membership changed.
    pub members_changed: bool,
}

/// The newest events that a user may see and wants, none of them from before a gap in the timeline; whether there
/// are more, or may be.
///
/// `lower` and `upper` bound the positions: `lower < position <= upper`.
///
/// # Errors
/// When the store cannot be read.
pub fn timeline(
    app: &App,
    sight: &Sight,
    lower: Option<Position>,
    upper: Position,
    limit: usize,
    wanted: &EventFilter,
) -> ApiResult<(Vec<Seen>, bool)> {
    let mut events = Vec::new();
    let gap = sight.view.gap_between(lower, upper);
    let lower = gap.map(|gap| gap.position).or(lower);
    let mut limited = gap.is_some();
    let mut walked = 0;
    let mut take = |event: Arc<TimelineEvent>| -> ApiResult<bool> {
        walked += 1;
        let pdu = &event.pdu;
        if !wanted.wants(&pdu.kind().to_string(), pdu.sender(), pdu.content()) {
            return Ok(walked < WALK_EVENTS_MAX);
        }
        let Some(seen) = sight.look(app, event)? else {
            return Ok(walked < WALK_EVENTS_MAX);
        };
        if events.len() == limit {
            limited = true;
            return Ok(false);
        }
        events.push(seen);
        Ok(walked < WALK_EVENTS_MAX)
    };
    let first = lower.map_or(Bound::Unbounded, |lower| {
        Bound::Excluded(i64::try_from(lower).unwrap_or(i64::MAX))
    });
    let last = Bound::Included(i64::try_from(upper).unwrap_or(i64::MAX));
    let mut failed = None;
    sight.view.walk_back(&app.store, (first, last), |event| {
        Ok(take(event).unwrap_or_else(|error| {
            failed = Some(error);
            false
        }))
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    events.reverse();
    Ok((events, limited))
}

/// What a user gets of a room that they are, or were, in.
///
/// # Errors
/// When the store cannot be read.
pub fn update(app: &App, sight: &Sight, ask: &Ask<'_>) -> ApiResult<Update> {
    let row = sight.viewer.row.as_ref();
    let joined_since = |since: Position| row.is_some_and(|row| row.joined_at > since);
    // To whom the room is new, it is told from its current end, with all of its state.
    let fresh = ask.since.is_none_or(joined_since);
    let lower = ask.since.filter(|_| !fresh);
    let left = row
        .filter(|row| row.membership != Membership::Join)
        .map(|row| row.position);
    let upper = left.map_or(ask.until, |left| ask.until.min(left));
    let (events, more) = timeline(app, sight, lower, upper, ask.limit, ask.timeline)?;
    let limited = more || (fresh && ask.since.is_some());
    let start = events.first().map(|seen| seen.event.order);
    let prev_batch = Token::before(
        start.unwrap_or_else(|| i64::try_from(upper).unwrap_or(i64::MAX).saturating_add(1)),
    )
    .seen_up_to(upper);

    let whole = fresh || ask.full_state;
    let mut state: BTreeMap<(String, String), OwnedEventId> = BTreeMap::new();
    let base = if ask.state_after || start.is_none() {
        state_up_to(app, sight, upper)?
    } else {
        match events.first() {
            Some(first) => sight.state_at(&app.store, first.event.state_before)?,
            None => sight.view.head.state.clone(),
        }
    };
    let lazily = (ask.state.lazy_load_members || ask.timeline.lazy_load_members)
        .then(|| Members::of(&events, sight));
    let entry = |(kind, key, id): (&str, &str, &OwnedEventId)| {
        ((kind.to_owned(), key.to_owned()), id.clone())
    };
    if let Some(members) = lazily.as_ref().filter(|_| whole) {
        state.extend(base.except("m.room.member").map(entry));
        state.extend(members.all().filter_map(|member| {
            let id = base.get("m.room.member", member)?;
            Some(entry(("m.room.member", member, id)))
        }));
    } else if whole {
        state.extend(base.iter().map(entry));
    } else if let Some(since) = lower {
        let end = match start {
            _ if ask.state_after => upper,
            // What an event right behind a gap changes besides itself came to be in the gap.
            Some(start) if limited && after_gap(sight, start) => u64::try_from(start).unwrap_or(0),
            Some(start) if limited => u64::try_from(start - 1).unwrap_or(0),
            None if limited || ask.limit == 0 => upper,
            _ => since,
        };
        if end > since {
            for (_, changes) in app.store.state_changes(sight.view.room, since, end)? {
                for change in changes {
                    let key = (change.kind.to_string(), change.state_key.to_string());
                    match change.event_id {
                        Some(event_id) => state.insert(key, event_id),
                        None => state.remove(&key),
                    };
                }
            }
        }
    }
    if let Some(lazily) = lazily.filter(|_| !whole) {
        lazily.load(&mut state, &base);
    }
    if !ask.state_after {
        // What the timeline itself tells is not told twice.
        let told: BTreeSet<_> = events
            .iter()
            .map(|seen| seen.event.pdu.event_id())
            .collect();
        state.retain(|_, event_id| !told.contains(&**event_id));
    }
    let members_changed = fresh
        || state.keys().any(|(kind, _)| kind == "m.room.member")
        || events
            .iter()
            .any(|seen| *seen.event.pdu.kind() == ruma::events::TimelineEventType::RoomMember);
    let state = state_events(app, sight, state.into_values(), ask.state)?;
    Ok(Update {
        timeline: events,
        limited,
        prev_batch: Some(prev_batch),
        state,
        members_changed,
    })
}

/// Whether there is a gap in the timeline right before an event.
fn after_gap(sight: &Sight, order: i64) -> bool {
    let position = u64::try_from(order).unwrap_or(0);
    let before = position.checked_sub(2);
    sight.view.gap_between(before, position).is_some()
}

/// The state after everything up to a position.
///
/// # Errors
/// When the store cannot be read.
pub fn state_up_to(app: &App, sight: &Sight, upper: Position) -> ApiResult<StateMap> {
    if sight.view.position <= upper {
        return Ok(sight.view.head.state.clone());
    }
    let newest = sight
        .view
        .tail
        .iter()
        .rev()
        .find(|event| event.position() <= upper);
    if let Some(event) = newest {
        return Ok(sight.state_at(&app.store, event.state_after)?);
    }
    let mut id = None;
    let orders = (
        Bound::Unbounded,
        Bound::Included(i64::try_from(upper).unwrap_or(i64::MAX)),
    );
    app.store
        .walk_timeline(sight.view.room, orders, Direction::Descending, |event| {
            id = Some(event.state_after);
            Ok(false)
        })?;
    Ok(match id {
        Some(id) => sight.state_at(&app.store, id)?,
        None => StateMap::new(),
    })
}

/// The members whom a client gets that loads the others when it needs them.
struct Members<'a> {
    /// Those who sent something in the timeline.
    senders: BTreeSet<&'a str>,
    /// Those whom the timeline changed, and the viewer. A client that takes the state from the answer
    /// alone must learn of them too.
    others: BTreeSet<&'a str>,
}

impl<'a> Members<'a> {
    fn of(events: &'a [Seen], sight: &'a Sight) -> Self {
        let moved = events
            .iter()
            .filter(|seen| *seen.event.pdu.kind() == ruma::events::TimelineEventType::RoomMember)
            .filter_map(|seen| seen.event.pdu.state_key());
        let senders = events.iter().map(|seen| seen.event.pdu.sender().as_str());
        Self {
            senders: senders.collect(),
            others: moved.chain([sight.viewer.user_id.as_str()]).collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &'a str> {
        self.senders.union(&self.others).copied()
    }

    /// Keeps them, and adds the senders: what they are called may have been told long ago.
    fn load(&self, state: &mut BTreeMap<(String, String), OwnedEventId>, base: &StateMap) {
        state.retain(|(kind, key), _| {
            let key = key.as_str();
            kind != "m.room.member" || self.senders.contains(key) || self.others.contains(key)
        });
        for sender in &self.senders {
            if let Some(event_id) = base.get("m.room.member", sender) {
                state
                    .entry(("m.room.member".to_owned(), (*sender).to_owned()))
                    .or_insert_with(|| event_id.clone());
            }
        }
    }
}

/// State events of a room that the viewer is, or was, in.
///
/// # Errors
/// When the store cannot be read.
pub fn state_events(
    app: &App,
    sight: &Sight,
    ids: impl Iterator<Item = OwnedEventId>,
    wanted: &EventFilter,
) -> ApiResult<Vec<Seen>> {
    let membership = sight.membership();
    let mut events = Vec::new();
    for event_id in ids {
        let Some(event) = app.store.state_event(&event_id)? else {
            continue;
        };
        let pdu = &event.pdu;
        if wanted.wants(&pdu.kind().to_string(), pdu.sender(), pdu.content()) {
            events.push(Seen {
                event: entitled(event),
                membership,
            });
        }
    }
    Ok(events)
}

/// How many are in a room, and who stands for it when it has no name.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Members who stand for the room.
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub heroes: Option<Vec<OwnedUserId>>,
    /// How many are joined.
    #[serde(rename = "m.joined_member_count")]
    pub joined: u64,
    /// How many are invited.
    #[serde(rename = "m.invited_member_count")]
    pub invited: u64,
}

/// The summary of a room as a user gets it.
///
/// # Errors
/// When the store cannot be read.
pub fn summary(app: &App, sight: &Sight) -> ApiResult<Summary> {
    let head = &sight.view.head;
    let named = has_text(app, &head.state, "m.room.name", "name")?
        || has_text(app, &head.state, "m.room.canonical_alias", "alias")?;
    let heroes = if named {
        None
    } else {
        Some(heroes(app, sight)?)
    };
    Ok(Summary {
        heroes,
        joined: head.joined_count,
        invited: head.invited_count,
    })
}

/// The first members other than the viewer: those who are there or invited, else those who left.
///
/// # Errors
/// When the store cannot be read.
pub fn heroes(app: &App, sight: &Sight) -> ApiResult<Vec<OwnedUserId>> {
    let others = || {
        sight
            .view
            .head
            .members
            .iter()
            .filter(|(user, _)| **user != sight.viewer.user)
    };
    let here =
        |membership: &Membership| matches!(membership, Membership::Join | Membership::Invite);
    let present = others()
        .filter(|(_, membership)| here(membership))
        .take(HEROES_MAX);
    let mut users: Vec<_> = present.map(|(user, _)| *user).collect();
    if users.is_empty() {
        let gone = others()
            .filter(|(_, membership)| !here(membership))
            .take(HEROES_MAX);
        users = gone.map(|(user, _)| *user).collect();
    }
    users
        .into_iter()
        .map(|user| Ok(app.store.user_id(user)?))
        .collect()
}

fn has_text(app: &App, state: &StateMap, kind: &str, field: &str) -> ApiResult<bool> {
    let content: Option<serde_json::Map<String, serde_json::Value>> =
        crate::rooms::read::state_content(&app.store, state, kind, "")?;
    let text = content
        .as_ref()
        .and_then(|content| content.get(field))
        .and_then(|text| text.as_str());
    Ok(text.is_some_and(|text| !text.is_empty()))
}
