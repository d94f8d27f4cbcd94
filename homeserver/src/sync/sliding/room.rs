//! One room as sliding sync tells of it.
//!
//! Timeline, visibility and state come from the same functions as in `/sync`; what differs is that the
//! client says which state, and that each connection remembers what it told.
//! Spec: MSC4186, "Room results".

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use federation::room::StateMap;
use imbl::OrdSet;
use ruma::{OwnedEventId, OwnedUserId};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use store::{
    keys::Position,
    kv::Direction,
    rooms::{Membership, RoomView, TimelineEvent},
};

use super::{
    connection::ToldRoom,
    request::Form,
    rules::{Combined, Matched},
};
use crate::{
    error::{ApiError, ApiResult},
    invites,
    push::unread,
    rooms::{
        members::MemberContent,
        read::{
            Format, Seen, Sight, client_event, client_event_alone, state_content, stripped_state,
        },
    },
    server::App,
    sync::{
        Token,
        filter::EventFilter,
        room::{heroes, state_events, state_up_to, timeline},
    },
};

/// How many events are looked at to find the newest one that counts as activity.
const BUMP_EVENTS_MAX: usize = 500;

/// How many members of a room a connection remembers to have told.
const MEMBERS_TOLD_MAX: usize = 200;

/// The types of event that count as activity. Spec: MSC4186, `bump_stamp`.
const BUMPS: [&str; 9] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
    "org.matrix.msc3381.poll.start",
    "org.matrix.msc3672.beacon_info",
];

/// A room in an answer.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the wire has these flags, each with a meaning of its own"
)]
#[derive(Debug, Default, Serialize)]
pub(super) struct Room {
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lists: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<Hero>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "is_false")]
    initial: bool,
    #[serde(skip_serializing_if = "is_false")]
    expanded_timeline: bool,
    #[serde(skip_serializing_if = "is_false")]
    unstable_expanded_timeline: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    highlight_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_state: Option<Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripped_state: Option<Vec<Box<RawValue>>>,
    /// The events of the timeline, for the receipts that go with them.
    #[serde(skip)]
    pub(super) event_ids: Vec<OwnedEventId>,
}

#[derive(Debug, Serialize)]
struct Hero {
    user_id: OwnedUserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What all rooms of an answer have in common.
#[derive(Debug)]
pub(super) struct Look<'a> {
    pub(super) app: &'a App,
    pub(super) form: Form,
    pub(super) format: Format<'a>,
    /// Nothing beyond here.
    pub(super) until: Token,
    /// Where the connection was; nowhere in its first answer.
    pub(super) since: Option<Token>,
    /// Whom the user ignores.
    pub(super) ignored: Vec<OwnedUserId>,
}

/// Pieces of state: what holds each now, or that nothing does any more.
type Changes = BTreeMap<(String, String), Option<OwnedEventId>>;

impl Look<'_> {
    /// What there is to tell of a room, if anything, and what the client has been told then.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn room(
        &self,
        sight: &Sight,
        told: Option<&(Token, ToldRoom)>,
        matched: &Matched,
        is_dm: bool,
    ) -> ApiResult<(Option<Room>, ToldRoom)> {
        let row = sight.viewer.row.as_ref();
        let inside = row.is_some_and(|row| row.membership == Membership::Join || row.left_at > 0);
        let (mut room, told) = if inside {
            self.inside(sight, told, matched, is_dm)?
        } else {
            self.outside(sight, told, matched, is_dm)?
        };
        if let (Some(room), Form::Accepted) = (&mut room, self.form) {
            room.lists.clone_from(&matched.lists);
            room.membership = Some(sight.membership());
        }
        Ok((room, told))
    }

    /// A room where the user is invited or knocks, or that turned them away.
    fn outside(
        &self,
        sight: &Sight,
        told: Option<&(Token, ToldRoom)>,
        matched: &Matched,
        is_dm: bool,
    ) -> ApiResult<(Option<Room>, ToldRoom)> {
        let now_told = ToldRoom {
            config: matched.config.clone(),
            limit: 0,
            whole: false,
            is_dm,
            unread: (0, 0),
            members: OrdSet::new(),
        };
        let Some(row) = &sight.viewer.row else {
            return Ok((None, now_told));
        };
        if told.is_some_and(|(upto, _)| upto.position() >= row.position) {
            return Ok((None, now_told));
        }
        let invite = self.app.store.state_event(&row.event_id)?;
        if let Some(invite) = invite.filter(|_| row.membership == Membership::Invite) {
            let (sender, user) = (invite.pdu.sender(), sight.viewer.user);
            if self.ignores(sender) || invites::is_ignored(&self.app.store, user, sender)? {
                return Ok((None, now_told));
            }
        }
        let state = state_up_to(self.app, sight, row.position)?;
        let stripped = stripped_state(self.app, &state, &sight.viewer.user_id)?;
        let mut room = Room {
            initial: true,
            bump_stamp: Some(row.position),
            is_dm: is_dm.then_some(true),
            ..Room::default()
        };
        match self.form {
            Form::Unstable => room.invite_state = Some(stripped),
            Form::Accepted => room.stripped_state = Some(stripped),
        }
        Ok((Some(room), now_told))
    }

    /// A room where the user is or was.
    #[expect(
        clippy::too_many_lines,
        reason = "each step needs what the steps before found out, in the order of the proposal"
    )]
    fn inside(
        &self,
        sight: &Sight,
        told: Option<&(Token, ToldRoom)>,
        matched: &Matched,
        is_dm: bool,
    ) -> ApiResult<(Option<Room>, ToldRoom)> {
        let config = &matched.config;
        let row = sight.viewer.row.as_ref();
        let joined_at = row.map_or(0, |row| row.joined_at);
        let left = row
            .filter(|row| row.membership != Membership::Join)
            .map(|row| row.position);
        let until = self.until.position();
        let upper = left.map_or(until, |left| until.min(left));
        // To whom the room is new, it is told from its current end.
        let told = told.filter(|(upto, _)| joined_at <= upto.position());
        let since = told.map(|(upto, _)| upto.position());
        let grown = told.is_some_and(|(_, told)| config.limit > told.limit && !told.whole);
        let lower = since.filter(|_| !grown);
        let (mut events, limited) = timeline(
            self.app,
            sight,
            lower,
            upper,
            config.limit,
            &EventFilter::default(),
        )?;
        let first = events.first().map(|seen| seen.event.order);
        // Spec: "Ignoring Users": what they say is not told, what they do to the state is.
        events.retain(|seen| {
            seen.event.pdu.state_key().is_some() || !self.ignores(seen.event.pdu.sender())
        });
        let expanded = grown
            && events
                .first()
                .is_some_and(|seen| since.is_some_and(|since| seen.event.position() <= since));

        let mut members = told
            .map(|(_, told)| told.members.clone())
            .unwrap_or_default();
        if limited {
            members = OrdSet::new();
        }
        let base = state_up_to(self.app, sight, upper)?;
        let changes = self.changes(sight, since, upper)?;
        let old = told.map(|(_, told)| &*told.config);
        let required = required_state(&base, &changes, config, old, &events, limited, &mut members);
        let live_since = since.or(self.since.map(Token::position));
        let is_live = |seen: &&Seen| live_since.is_some_and(|since| seen.event.position() > since);
        let num_live = events.iter().filter(is_live).count();

        let initial = told.is_none();
        let is_dm_changed = told.map_or(is_dm, |(_, told)| told.is_dm != is_dm);
        let viewer = &sight.viewer;
        let unread = unread::of(
            self.app,
            &sight.view,
            viewer.user,
            &viewer.user_id,
            row,
            until,
        )?;
        let unread = (unread.total().notify, unread.total().highlight);
        let unread_changed = told.map_or(initial, |(_, told)| told.unread != unread);
        let now_told = ToldRoom {
            config: config.clone(),
            unread,
            limit: match told {
                Some((_, told)) if !limited && !grown => told.limit.max(config.limit),
                _ => config.limit,
            },
            whole: !limited && told.is_none_or(|(_, told)| told.whole || grown),
            is_dm,
            members: if members.len() > MEMBERS_TOLD_MAX {
                OrdSet::new()
            } else {
                members
            },
        };
        let nothing = events.is_empty()
            && required.is_empty()
            && changes.is_empty()
            && !limited
            && !is_dm_changed
            && !unread_changed;
        if nothing && !initial {
            return Ok((None, now_told));
        }
        let mut room = Room {
            bump_stamp: Some(match left {
                Some(left) => left,
                None => self.bump_stamp(&sight.view, upper)?,
            }),
            is_dm: is_dm_changed.then_some(is_dm),
            initial,
            limited,
            num_live: Some(num_live),
            // A room that is told of says its counts: clients take their absence for zero.
            notification_count: Some(unread.0),
            highlight_count: Some(unread.1),
            event_ids: events
                .iter()
                .map(|seen| seen.event.pdu.event_id().to_owned())
                .collect(),
            ..Room::default()
        };
        match self.form {
            Form::Unstable => room.unstable_expanded_timeline = expanded,
            Form::Accepted => room.expanded_timeline = expanded,
        }
        if !events.is_empty() || limited || initial {
            let next = i64::try_from(upper).unwrap_or(i64::MAX).saturating_add(1);
            room.prev_batch = Some(Token::before(first.unwrap_or(next)).to_string());
        }
        for seen in &events {
            room.timeline
                .push(client_event(self.app, sight, seen, &self.format)?);
        }
        let (present, gone): (Vec<_>, Vec<_>) = required
            .into_iter()
            .partition(|(_, event_id)| event_id.is_some());
        let ids = present.into_iter().filter_map(|(_, event_id)| event_id);
        for seen in state_events(self.app, sight, ids, &EventFilter::default())? {
            room.required_state
                .push(client_event_alone(self.app, &seen, &self.format)?);
        }
        if self.form == Form::Accepted {
            for ((kind, state_key), _) in gone {
                let stub = json!({ "type": kind, "state_key": state_key });
                let stub = serde_json::value::to_raw_value(&stub);
                room.required_state
                    .push(stub.map_err(|error| ApiError::internal(&error))?);
            }
        }
        self.describe(sight, &base, &changes, &mut room)?;
        Ok((Some(room), now_told))
    }

    fn ignores(&self, sender: &ruma::UserId) -> bool {
        self.ignored.iter().any(|user_id| user_id == sender)
    }

    /// What changed in the state since the client was told of it.
    fn changes(
        &self,
        sight: &Sight,
        since: Option<Position>,
        upper: Position,
    ) -> ApiResult<Changes> {
        let mut all = Changes::new();
        let Some(since) = since.filter(|since| *since < upper) else {
            return Ok(all);
        };
        if sight.view.position <= since {
            return Ok(all);
        }
        for (_, changes) in self
            .app
            .store
            .state_changes(sight.view.room, since, upper)?
        {
            for change in changes {
                let key = (change.kind.to_string(), change.state_key.to_string());
                all.insert(key, change.event_id);
            }
        }
        Ok(all)
    }

    /// Name, avatar, heroes and counts, as far as they changed.
    fn describe(
        &self,
        sight: &Sight,
        state: &StateMap,
        changes: &Changes,
        room: &mut Room,
    ) -> ApiResult<()> {
        let changed = |kind: &str| room.initial || changes.keys().any(|(one, _)| one == kind);
        let members = changed("m.room.member");
        let named = changed("m.room.name");
        let pictured = changed("m.room.avatar");
        let name = self.text(state, "m.room.name", "name")?;
        if members && sight.membership() == Membership::Join {
            room.joined_count = Some(sight.view.head.joined_count);
            room.invited_count = Some(sight.view.head.invited_count);
        }
        if name.is_none() && (members || named) {
            let mut told = Vec::new();
            for user_id in heroes(self.app, sight)? {
                let content: Option<MemberContent> =
                    state_content(&self.app.store, state, "m.room.member", user_id.as_str())?;
                told.push(Hero {
                    user_id,
                    displayname: content.as_ref().and_then(|it| it.displayname.clone()),
                    avatar_url: content.and_then(|it| it.avatar_url),
                });
            }
            room.heroes = Some(told);
        }
        // In a first answer, what is not there is not set.
        let tell =
            |value: Option<String>| (value.is_some() || !room.initial).then(|| Value::from(value));
        let avatar = self.text(state, "m.room.avatar", "url")?;
        let (name, avatar) = (tell(name), tell(avatar));
        if named {
            room.name = name;
        }
        if pictured {
            room.avatar = avatar;
        }
        Ok(())
    }

    fn text(&self, state: &StateMap, kind: &str, field: &str) -> ApiResult<Option<String>> {
        let content: Option<Value> = state_content(&self.app.store, state, kind, "")?;
        let text = content
            .as_ref()
            .and_then(|content| content.get(field)?.as_str());
        Ok(text.filter(|text| !text.is_empty()).map(str::to_owned))
    }

    /// The position of the newest event that counts as activity.
    fn bump_stamp(&self, view: &RoomView, upper: Position) -> ApiResult<Position> {
        let bumps = |event: &TimelineEvent| {
            let kind = event.pdu.kind().to_string();
            BUMPS.contains(&&*kind)
        };
        let recent = view
            .tail
            .iter()
            .rev()
            .find(|event| event.position() <= upper && bumps(event));
        if let Some(event) = recent {
            return Ok(event.position());
        }
        let mut found = 0;
        let mut walked = 0;
        let orders = (
            Bound::Included(0),
            Bound::Included(i64::try_from(upper).unwrap_or(i64::MAX)),
        );
        self.app
            .store
            .walk_timeline(view.room, orders, Direction::Descending, |event| {
                walked += 1;
                found = event.position();
                Ok(!bumps(&event) && walked < BUMP_EVENTS_MAX)
            })?;
        Ok(found)
    }
}

/// The state to tell, and who is then known as a member.
fn required_state(
    base: &StateMap,
    changes: &Changes,
    config: &Arc<Combined>,
    old: Option<&Combined>,
    events: &[Seen],
    limited: bool,
    members: &mut OrdSet<String>,
) -> Changes {
    let mut required = Changes::new();
    let entry = |kind: &str, key: &str| (kind.to_owned(), key.to_owned());
    // What is asked for now and was not before; everything, to whom the room is new.
    if old.is_none_or(|old| *old != **config) {
        let had = |kind: &str, key: &str| old.is_some_and(|old| old.wants(kind, key));
        let kinds: Option<BTreeSet<&str>> = config
            .required
            .iter()
            .flat_map(|required| &required.include)
            .map(|element| element.kind.as_deref())
            .collect();
        let mut take = |kind: &str, key: &str, id: &OwnedEventId| {
            if config.wants(kind, key) && !had(kind, key) {
                required.insert(entry(kind, key), Some(id.clone()));
            }
        };
        match kinds {
            Some(kinds) => {
                for kind in kinds {
                    for (key, id) in base.of_kind(kind) {
                        take(kind, key, id);
                    }
                }
            }
            None => {
                for (kind, key, id) in base.iter() {
                    take(kind, key, id);
                }
            }
        }
    }
    let lazy = config.lazy_members();
    for ((kind, key), event_id) in changes {
        // After a gap the client forgets whom it knew: changes of others are not told.
        let member = lazy && !limited && kind == "m.room.member";
        if member || config.wants(kind, key) {
            required.insert(entry(kind, key), event_id.clone());
        }
        if kind == "m.room.member" {
            members.remove(key);
        }
    }
    if lazy {
        for seen in events {
            let pdu = &seen.event.pdu;
            let is_member = *pdu.kind() == ruma::events::TimelineEventType::RoomMember;
            let target = pdu.state_key().filter(|_| is_member);
            for user_id in [Some(pdu.sender().as_str()), target].into_iter().flatten() {
                if members.contains(user_id) {
                    continue;
                }
                if let Some(event_id) = base.get("m.room.member", user_id) {
                    required.insert(entry("m.room.member", user_id), Some(event_id.clone()));
                }
            }
        }
        for (kind, key) in required.keys() {
            if kind == "m.room.member" {
                members.insert(key.clone());
            }
        }
    }
    required
}
