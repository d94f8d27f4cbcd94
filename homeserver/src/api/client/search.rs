//! Searching messages, room names and topics.
//!
//! What is found is shown by the history visibility, in the rooms that the caller is or was in. Spec:
//! client-server API, "Server Side Search".

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use federation::room::StateMap;
use http::Method;
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{keys::RoomNum, rooms::Membership};

use super::{PREFIXES, context::surroundings, events::format};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes, limits::Doing},
    rooms::{
        members::MemberContent,
        read::{Format, Seen, Sight, client_event, state_content},
    },
    search::{self, TERM_WORDS_MAX, visit_hits},
    server::App,
    sync::{filter::EventFilter, room::state_events},
};

/// How many results a page has when the client names no number, and at most.
const PAGE_DEFAULT: usize = 10;
const PAGE_MAX: usize = 100;

/// How many hits one request looks at: `count` goes no further, and ranks are among these.
const HITS_MAX: usize = 1_000;

/// How many events around a result are shown, on each side, by default and at most.
const CONTEXT_DEFAULT: usize = 5;
const CONTEXT_MAX: usize = 20;

/// How far back the predecessors of a room are searched with it.
const PREDECESSORS_MAX: usize = 20;

/// The longest search term, in bytes.
const TERM_BYTES_MAX: usize = 1_024;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(Method::POST, &format!("{prefix}/search"), search);
    }
}

#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    room_events: Option<Criteria>,
}

#[derive(Deserialize)]
struct Criteria {
    search_term: String,
    keys: Option<Vec<String>>,
    #[serde(default)]
    filter: EventFilter,
    order_by: Option<Order>,
    event_context: Option<Context>,
    #[serde(default)]
    include_state: bool,
    groupings: Option<Groupings>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Recent,
    Rank,
}

#[derive(Deserialize)]
struct Context {
    before_limit: Option<u64>,
    after_limit: Option<u64>,
    #[serde(default)]
    include_profile: bool,
}

#[derive(Deserialize)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    key: GroupKey,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GroupKey {
    RoomId,
    Sender,
}

/// Where a page begins: what `next_batch` holds.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Start {
    /// Only events before this order.
    #[serde(rename = "b")]
    before: Option<i64>,
    /// By rank: how many of them were shown.
    #[serde(rename = "k", default)]
    skip: usize,
    /// By time: how many results came before.
    #[serde(rename = "n", default)]
    counted: usize,
    /// Of one group only.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    room: Option<OwnedRoomId>,
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    sender: Option<OwnedUserId>,
}

impl Start {
    fn parse(text: &str) -> ApiResult<Self> {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
        bytes
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::invalid_param("`next_batch` is not one of this server"))
    }

    fn token(&self) -> String {
        let json = serde_json::to_vec(self).expect("numbers and strings always serialise");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }
}

struct Hit {
    room: RoomNum,
    seen: Seen,
    rank: f64,
}

struct Found {
    hits: Vec<Hit>,
    /// Where the search stopped, as it had looked at enough.
    gave_up: Option<i64>,
}

async fn search(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Search)?;
    let body: Body = request.json()?;
    let Some(criteria) = body.search_categories.room_events else {
        return Ok(json!({ "search_categories": {} }));
    };
    if criteria.search_term.len() > TERM_BYTES_MAX {
        return Err(ApiError::invalid_param(format!(
            "a search term has at most {TERM_BYTES_MAX} bytes"
        )));
    }
    if criteria.filter.limit == Some(0) {
        return Err(ApiError::invalid_param("a page has at least one result"));
    }
    let start = request.query("next_batch");
    let start = start.map(|text| Start::parse(&text)).transpose()?;
    let start = start.unwrap_or_default();
    app.search.caught_up(app.store.published()).await;
    let words: BTreeSet<String> = search::words(&criteria.search_term)
        .take(TERM_WORDS_MAX)
        .collect();
    let words: Vec<String> = words.into_iter().collect();
    let mut sights = sights(&app, &caller, &criteria.filter, &start)?;
    let Found { mut hits, gave_up } = found(&app, &caller, &criteria, &start, &words, &sights)?;
    let by_rank = criteria.order_by != Some(Order::Recent);
    let count = start.counted + hits.len();
    let limit = criteria.filter.limit_or(PAGE_DEFAULT, PAGE_MAX);
    let newest = hits.first().map(|hit| hit.seen.event.order);
    if by_rank {
        // Stable: among equals the newest comes first.
        hits.sort_by(|a, b| b.rank.total_cmp(&a.rank));
        hits.drain(..start.skip.min(hits.len()));
    }
    let more = hits.len() > limit;
    let rest = hits.split_off(limit.min(hits.len()));
    sights.retain(|room, _| hits.iter().any(|hit| hit.room == *room));

    // Where the page behind this one begins, for all results or those of one group.
    let next = |last: Option<&Hit>, shown: usize| {
        if by_rank {
            Start {
                before: start.before.or(newest.map(|order| order + 1)),
                skip: start.skip + shown,
                ..start.clone()
            }
        } else {
            Start {
                before: last.map(|hit| hit.seen.event.order),
                counted: start.counted + shown,
                ..start.clone()
            }
        }
    };
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let mut results = Vec::new();
    for hit in &hits {
        let Some(sight) = sights.get(&hit.room) else {
            continue;
        };
        let mut result = Map::new();
        result.insert("rank".to_owned(), hit.rank.into());
        let event = client_event(&app, sight, &hit.seen, &format)?;
        result.insert("result".to_owned(), json!(event));
        if let Some(context) = &criteria.event_context {
            let context = surrounding(&app, sight, &hit.seen, context, &format)?;
            result.insert("context".to_owned(), context);
        }
        results.push(result);
    }
    let mut found = json!({ "count": count, "highlights": words, "results": results });
    if let Some(found) = found.as_object_mut() {
        let behind = match gave_up {
            // Clients page on until a page is empty: a full page is told from a last one by nothing.
            _ if more || hits.len() == limit => Some(next(hits.last(), hits.len())),
            Some(order) if !by_rank => Some(Start {
                before: Some(order),
                ..next(None, hits.len())
            }),
            _ => None,
        };
        found.extend(behind.map(|start| ("next_batch".to_owned(), start.token().into())));
        if criteria.include_state {
            let states = states(&app, &sights, &format)?;
            found.insert("state".to_owned(), states.into());
        }
        let mut groups = Map::new();
        for Group { key } in criteria.groupings.iter().flat_map(|all| &all.group_by) {
            let (name, groups_of) = grouped(*key, &hits, &rest, &next);
            groups.insert(name.to_owned(), groups_of);
        }
        if !groups.is_empty() {
            found.insert("groups".to_owned(), groups.into());
        }
    }
    Ok(json!({ "search_categories": { "room_events": found } }))
}

/// The state of some rooms as their viewer sees it, by room.
fn states(
    app: &App,
    sights: &BTreeMap<RoomNum, Sight>,
    format: &Format<'_>,
) -> ApiResult<Map<String, Value>> {
    let mut states = Map::new();
    for sight in sights.values() {
        let state = sight.state(app)?;
        let ids = state.iter().map(|(_, _, event_id)| event_id.clone());
        let events = state_events(app, sight, ids, &EventFilter::default())?;
        let events = events
            .iter()
            .map(|seen| client_event(app, sight, seen, format));
        let events = events.collect::<ApiResult<Vec<_>>>()?;
        states.insert(sight.view.room_id.to_string(), json!(events));
    }
    Ok(states)
}

/// The rooms that are searched, as the caller sees them: those they are or were in, and, of those that the
/// filter names, what came before them.
fn sights(
    app: &App,
    caller: &Caller,
    filter: &EventFilter,
    start: &Start,
) -> ApiResult<BTreeMap<RoomNum, Sight>> {
    let mut named: Option<BTreeSet<OwnedRoomId>> = None;
    if let Some(rooms) = &filter.rooms {
        let mut all = BTreeSet::new();
        for room_id in rooms {
            let mut next = Some(room_id.clone());
            for _ in 0..=PREDECESSORS_MAX {
                let Some(room_id) = next.take() else { break };
                if !all.insert(room_id.clone()) {
                    break;
                }
                next = predecessor(app, caller, &room_id)?;
            }
        }
        named = Some(all);
    }
    let mut sights = BTreeMap::new();
    for (room, row) in app.store.user_rooms(caller.user)? {
        let was_there = row.membership == Membership::Join || row.left_at > 0;
        if !was_there || row.forgotten {
            continue;
        }
        let Some(view) = app.store.room(room)? else {
            continue;
        };
        let wanted = named.as_ref().is_none_or(|all| all.contains(&view.room_id))
            && !filter.not_rooms.contains(&view.room_id)
            && start.room.as_ref().is_none_or(|only| *only == view.room_id);
        if wanted {
            sights.insert(room, Sight::on(app, view, caller.user, &caller.user_id)?);
        }
    }
    Ok(sights)
}

/// The room that a room replaced, if the caller may know.
fn predecessor(app: &App, caller: &Caller, room_id: &RoomId) -> ApiResult<Option<OwnedRoomId>> {
    #[derive(Deserialize)]
    struct Create {
        predecessor: Predecessor,
    }
    #[derive(Deserialize)]
    struct Predecessor {
        room_id: OwnedRoomId,
    }
    let Ok(sight) = Sight::of(app, room_id, caller.user, &caller.user_id) else {
        return Ok(None);
    };
    if sight.must_see_something(app).is_err() {
        return Ok(None);
    }
    let state = &sight.view.head.state;
    let create: Option<Create> = state_content(&app.store, state, "m.room.create", "")?;
    Ok(create.map(|create| create.predecessor.room_id))
}

/// What the caller may see and wants of what has all of the words, newest first.
fn found(
    app: &App,
    caller: &Caller,
    criteria: &Criteria,
    start: &Start,
    words: &[String],
    sights: &BTreeMap<RoomNum, Sight>,
) -> ApiResult<Found> {
    let rooms: Vec<RoomNum> = sights.keys().copied().collect();
    let ignored = account_data::ignored_by(&app.store, caller.user)?;
    let before = start.before.unwrap_or(i64::MAX);
    let mut hits = Vec::new();
    let (mut looked, mut last) = (0, None);
    let whole = visit_hits(app, &rooms, words, before, |room, order| {
        looked += 1;
        last = Some(order);
        let (Some(sight), Some(event)) = (sights.get(&room), app.store.event_at(room, order)?)
        else {
            return Ok(looked < HITS_MAX);
        };
        let pdu = &event.pdu;
        let wanted = event.redacted_by.is_none()
            && criteria
                .filter
                .wants(&pdu.kind().to_string(), pdu.sender(), pdu.content())
            && start
                .sender
                .as_ref()
                .is_none_or(|only| only == pdu.sender())
            && !ignored.iter().any(|user_id| user_id == pdu.sender());
        if wanted && let Some(seen) = sight.look(app, event)? {
            // By what is shown, which may be less than what was said.
            let rank = search::searched(&seen.event)
                .filter(|(key, _)| {
                    let keys = criteria.keys.as_ref();
                    keys.is_none_or(|keys| keys.iter().any(|wanted| wanted == key))
                })
                .map_or(0.0, |(_, text)| rank(&text, words));
            if rank > 0.0 {
                hits.push(Hit { room, seen, rank });
            }
        }
        Ok(looked < HITS_MAX)
    })?;
    let gave_up = last.filter(|_| looked == HITS_MAX || !whole);
    Ok(Found { hits, gave_up })
}

/// How well a text fits: the share of its words that were searched for.
#[expect(clippy::cast_precision_loss, reason = "an event has few words")]
fn rank(text: &str, words: &[String]) -> f64 {
    let (mut all, mut fitting) = (0_usize, 0_usize);
    for word in search::words(text) {
        all += 1;
        fitting += usize::from(words.contains(&word));
    }
    fitting as f64 / all.max(1) as f64
}

/// What surrounds a result.
fn surrounding(
    app: &App,
    sight: &Sight,
    seen: &Seen,
    context: &Context,
    format: &Format<'_>,
) -> ApiResult<Value> {
    let limit = |named: Option<u64>| {
        named
            .and_then(|named| usize::try_from(named).ok())
            .unwrap_or(CONTEXT_DEFAULT)
            .min(CONTEXT_MAX)
    };
    let limits = (limit(context.before_limit), limit(context.after_limit));
    let everything = EventFilter::default();
    let around = surroundings(app, sight, seen.event.order, limits, &everything)?;
    let write = |events: &[Seen]| {
        let events = events
            .iter()
            .map(|seen| client_event(app, sight, seen, format));
        events.collect::<ApiResult<Vec<_>>>()
    };
    let mut written = json!({
        "start": around.start.to_string(),
        "end": around.end.to_string(),
        "events_before": write(&around.before)?,
        "events_after": write(&around.after)?,
    });
    if let (Some(written), true) = (written.as_object_mut(), context.include_profile) {
        let state = sight.state_at(&app.store, seen.event.state_after)?;
        let events = around.before.iter().chain(&around.after);
        let profiles = profiles(app, &state, events.chain([seen]))?;
        written.insert("profile_info".to_owned(), profiles.into());
    }
    Ok(written)
}

/// The names and avatars that the senders of some events had in a state.
fn profiles<'a>(
    app: &App,
    state: &StateMap,
    events: impl Iterator<Item = &'a Seen>,
) -> ApiResult<Map<String, Value>> {
    let mut profiles = Map::new();
    for seen in events {
        let sender = seen.event.pdu.sender().as_str();
        if profiles.contains_key(sender) {
            continue;
        }
        let member: Option<MemberContent> =
            state_content(&app.store, state, "m.room.member", sender)?;
        if let Some(member) = member {
            let shown =
                json!({ "displayname": member.displayname, "avatar_url": member.avatar_url });
            profiles.insert(sender.to_owned(), shown);
        }
    }
    Ok(profiles)
}

/// The results by group, each with where its next page begins if there is more of it.
fn grouped(
    key: GroupKey,
    hits: &[Hit],
    rest: &[Hit],
    next: &impl Fn(Option<&Hit>, usize) -> Start,
) -> (&'static str, Value) {
    let of = |hit: &Hit| match key {
        GroupKey::RoomId => hit.seen.event.pdu.room_id().to_string(),
        GroupKey::Sender => hit.seen.event.pdu.sender().to_string(),
    };
    let mut groups: BTreeMap<String, Vec<&Hit>> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for hit in hits {
        let group = of(hit);
        if !order.contains(&group) {
            order.push(group.clone());
        }
        groups.entry(group).or_default().push(hit);
    }
    let mut written = Map::new();
    for (place, name) in order.into_iter().enumerate() {
        let members = groups.remove(&name).unwrap_or_default();
        let ids: Vec<_> = members
            .iter()
            .map(|hit| hit.seen.event.pdu.event_id())
            .collect();
        let mut group = json!({ "order": place + 1, "results": ids });
        if let (Some(group), true) = (
            group.as_object_mut(),
            rest.iter().any(|hit| of(hit) == name),
        ) {
            let mut start = next(members.last().copied(), members.len());
            if let Some(hit) = members.first() {
                let pdu = &hit.seen.event.pdu;
                match key {
                    GroupKey::RoomId => start.room = Some(pdu.room_id().to_owned()),
                    GroupKey::Sender => start.sender = Some(pdu.sender().to_owned()),
                }
            }
            group.insert("next_batch".to_owned(), start.token().into());
        }
        written.insert(name, group);
    }
    let name = match key {
        GroupKey::RoomId => "room_id",
        GroupKey::Sender => "sender",
    };
    (name, written.into())
}
