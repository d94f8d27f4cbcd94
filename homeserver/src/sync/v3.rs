//! `/sync`, the first of the two front ends.
//!
//! Spec: client-server API, "GET /_matrix/client/v3/sync".

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use federation::room::visibility::entitled;
use ruma::{OwnedRoomId, RoomId, UserId};
use serde::Serialize;
use serde_json::{json, value::RawValue};
use store::{
    keys::{Position, RoomNum, UserNum},
    rooms::{Membership, MembershipRow, RoomView},
};

use super::{
    Token,
    filter::Filter,
    room::{self, Ask, Summary, Update},
    touched::Touched,
};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::Caller,
    invites,
    keys::lists::DeviceLists,
    push::{
        rules::{self, PUSH_RULES},
        unread::{self, Counts},
    },
    receipts::{self, Receipt},
    rooms::outside,
    rooms::read::{Format, Seen, Sight, client_event, client_event_alone, stripped_state},
    server::App,
    to_device,
};

/// How many events of a room's timeline a client gets that names no number.
const TIMELINE_DEFAULT: usize = 10;

/// How many events of a room's timeline a client gets at most.
const TIMELINE_MAX: usize = 100;

/// How many receipts of a room a client gets at most when the room is new to it.
const RECEIPTS_MAX: usize = 5_000;

/// How many users' presence one answer tells.
const PRESENCES_MAX: usize = 1_000;

/// What a client asks of `/sync`.
#[derive(Debug)]
pub struct SyncRequest {
    /// Where it is; nowhere without.
    pub since: Option<Token>,
    /// What it wants.
    pub filter: Filter,
    /// Whether it wants the whole state of each room.
    pub full_state: bool,
    /// Whether it wants the state after the timeline.
    pub state_after: bool,
    /// How long it waits for something to happen.
    pub timeout: Duration,
}

/// What `/sync` answers.
#[derive(Debug, Serialize)]
pub struct SyncResponse {
    next_batch: String,
    #[serde(skip_serializing_if = "Events::is_empty")]
    account_data: Events,
    #[serde(skip_serializing_if = "Events::is_empty")]
    presence: Events,
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    rooms: Rooms,
    #[serde(skip_serializing_if = "Events::is_empty")]
    to_device: Events,
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    device_lists: DeviceLists,
    #[serde(flatten)]
    key_counts: Option<KeyCounts>,
}

/// What the device has left for others to claim.
#[derive(Debug, Serialize)]
struct KeyCounts {
    device_one_time_keys_count: BTreeMap<String, u64>,
    device_unused_fallback_key_types: Vec<String>,
    /// The same, by the name that clients still use (MSC2732).
    #[serde(rename = "org.matrix.msc2732.device_unused_fallback_key_types")]
    unstable_fallback_key_types: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Events {
    events: Vec<Box<RawValue>>,
}

impl Events {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[derive(Debug, Default, Serialize)]
struct Rooms {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    join: BTreeMap<OwnedRoomId, JoinedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    invite: BTreeMap<OwnedRoomId, Outside>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    knock: BTreeMap<OwnedRoomId, Outside>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    leave: BTreeMap<OwnedRoomId, JoinedRoom>,
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty()
            && self.invite.is_empty()
            && self.knock.is_empty()
            && self.leave.is_empty()
    }
}

#[derive(Debug, Serialize)]
struct Outside {
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_state: Option<Events>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knock_state: Option<Events>,
}

#[derive(Debug, Default, Serialize)]
struct JoinedRoom {
    timeline: Timeline,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Events>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_after: Option<Events>,
    /// The same, by the name that clients still use (MSC4222).
    #[serde(
        rename = "org.matrix.msc4222.state_after",
        skip_serializing_if = "Option::is_none"
    )]
    unstable_state_after: Option<Events>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    account_data: Events,
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral: Option<Events>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unread_notifications: Option<Counts>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unread_thread_notifications: BTreeMap<ruma::OwnedEventId, Counts>,
}

#[derive(Debug, Default, Serialize)]
struct Timeline {
    events: Vec<Box<RawValue>>,
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
}

/// Answers `/sync`: at once if there is something to tell, else when there is or the time is over.
///
/// # Errors
/// When the store cannot be read.
pub async fn sync(app: &App, caller: &Caller, request: &SyncRequest) -> ApiResult<SyncResponse> {
    let longest = Duration::from_secs(app.config.limits.sync_wait_seconds_max);
    let deadline = app.clock.instant() + request.timeout.min(longest);
    if let (Some(device), Some(since)) = (&caller.device, request.since) {
        to_device::acknowledge(&app.store, caller.user, device, told(since)).await?;
    }
    let waiting = app.wakeups.wait(caller.user);
    loop {
        let notified = waiting.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        let syncing = Syncing::new(app, caller, request)?;
        let mut answer = syncing.answer()?;
        let tells = !answer.account_data.is_empty()
            || !answer.to_device.is_empty()
            || !answer.presence.is_empty()
            || !answer.device_lists.is_empty()
            || syncing.counts_are_news()
            || !answer.rooms.is_empty();
        let now = tells || request.since.is_none() || request.full_state || app.tasks.is_stopping();
        if !now {
            tokio::select! {
                biased;
                () = &mut notified => continue,
                () = app.tasks.stopping() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
        answer.key_counts = syncing.key_counts()?;
        return Ok(answer);
    }
}

/// Account data by room.
type OfRooms = BTreeMap<RoomNum, Vec<Box<RawValue>>>;

/// Up to where messages to a device were told to the holder of a token.
fn told(since: Token) -> Position {
    match since.to_device {
        0 => since.position(),
        told => told.min(since.position()),
    }
}

/// One look at everything, from a pinned position.
struct Syncing<'a> {
    app: &'a App,
    caller: &'a Caller,
    request: &'a SyncRequest,
    until: Position,
    next_batch: Token,
    format: Format<'a>,
    touched: Touched,
    ignored: OnceCell<Vec<ruma::OwnedUserId>>,
    /// Who has joined a room of the caller's, or was met when the caller joined theirs.
    met: RefCell<BTreeSet<UserNum>>,
}

impl<'a> Syncing<'a> {
    fn new(app: &'a App, caller: &'a Caller, request: &'a SyncRequest) -> ApiResult<Self> {
        let moment = app.moments.last();
        let until = app.store.published();
        let format = Format {
            with_room_id: false,
            reader: (caller.user, caller.device.as_deref()),
            now_ms: app.clock.now_ms(),
        };
        let touched = match request.since {
            Some(since) if !request.full_state => Touched::between(app, caller.user, since, until)?,
            _ => Touched::default(),
        };
        Ok(Self {
            app,
            caller,
            request,
            until,
            next_batch: Token::new(until, moment),
            format,
            touched,
            ignored: OnceCell::new(),
            met: RefCell::default(),
        })
    }

    fn since(&self) -> Option<Position> {
        self.request.since.map(Token::position)
    }

    fn answer(&self) -> ApiResult<SyncResponse> {
        let (account_data, mut of_rooms) = self.account_data()?;
        let mut rooms = Rooms::default();
        for (room, row) in self.candidates()? {
            let Some(view) = self.app.store.room(room)? else {
                self.unknown(&mut rooms, room, &row)?;
                continue;
            };
            if !self.request.filter.room.wants_room(&view.room_id) {
                continue;
            }
            let room_id = view.room_id.clone();
            let sight = Sight {
                view,
                viewer: crate::rooms::read::Viewer {
                    user: self.caller.user,
                    user_id: self.caller.user_id.clone(),
                    row: Some(row.clone()),
                },
            };
            let changed = self.since().is_none_or(|since| row.position > since);
            match row.membership {
                Membership::Join => {
                    let account_data = of_rooms.remove(&room).unwrap_or_default();
                    if let Some(joined) = self.joined(&sight, &row, account_data)? {
                        rooms.join.insert(room_id, joined);
                    }
                }
                Membership::Invite | Membership::Knock if changed || self.request.full_state => {
                    self.outside(&mut rooms, (room, &room_id), Some(&sight.view), &row)?;
                }
                Membership::Leave | Membership::Ban => {
                    if let Some(left) = self.left(&sight, &row, changed)? {
                        rooms.leave.insert(room_id, left);
                    }
                }
                Membership::Invite | Membership::Knock => {}
            }
        }
        let mut next_batch = self.next_batch;
        let mut to_device = Vec::new();
        let since = self.request.since.map_or(0, told);
        // Not all that came before may be told yet.
        let may_have = self.touched.to_device() || self.since().is_some_and(|upto| since < upto);
        if let Some(device) = self.caller.device.as_ref().filter(|_| may_have) {
            let (store, user) = (&self.app.store, self.caller.user);
            let (messages, up_to) = to_device::pending(store, user, device, since, self.until)?;
            to_device = messages;
            if up_to < self.until {
                next_batch.to_device = up_to;
            }
        }
        let device_lists = match self.since() {
            Some(since) => {
                let touched = &self.touched;
                touched.device_lists(self.app, self.caller.user, since, self.until)?
            }
            None => DeviceLists::default(),
        };
        Ok(SyncResponse {
            device_lists,
            to_device: Events { events: to_device },
            key_counts: None,
            next_batch: next_batch.to_string(),
            account_data,
            presence: self.presence()?,
            rooms,
        })
    }

    /// The rooms to look at.
    fn candidates(&self) -> ApiResult<Vec<(RoomNum, MembershipRow)>> {
        let Some(rooms) = &self.touched.rooms else {
            return Ok(self.app.store.user_rooms(self.caller.user)?);
        };
        let mut candidates = Vec::new();
        for room in rooms {
            let row = self.app.store.user_room(self.caller.user, *room)?;
            candidates.extend(row.map(|row| (*room, row)));
        }
        Ok(candidates)
    }

    /// Whom the caller ignores.
    fn ignored(&self) -> ApiResult<&[ruma::OwnedUserId]> {
        if self.ignored.get().is_none() {
            let ignored = account_data::ignored_by(&self.app.store, self.caller.user)?;
            return Ok(self.ignored.get_or_init(|| ignored));
        }
        Ok(self.ignored.get().map_or(&[], Vec::as_slice))
    }

    /// Whether the device's key counts changed.
    fn counts_are_news(&self) -> bool {
        let device = self.caller.device.as_ref();
        device.is_some_and(|device| self.touched.key_counts.contains(device))
    }

    fn key_counts(&self) -> ApiResult<Option<KeyCounts>> {
        let Some(device) = &self.caller.device else {
            return Ok(None);
        };
        let counts = crate::keys::counts(&self.app.store, self.caller.user, device)?;
        Ok(Some(KeyCounts {
            device_one_time_keys_count: counts.one_time,
            device_unused_fallback_key_types: counts.unused_fallback.clone(),
            unstable_fallback_key_types: counts.unused_fallback,
        }))
    }

    fn account_data(&self) -> ApiResult<(Events, OfRooms)> {
        if !self.touched.account_data() {
            return Ok(Default::default());
        }
        let (store, user) = (&self.app.store, self.caller.user);
        let changed = match self.since() {
            Some(since) => account_data::changed(store, user, since, self.until)?,
            None => account_data::all(store, user)?,
        };
        let filter = &self.request.filter;
        let mut global = Events::default();
        let mut of_rooms = OfRooms::new();
        let has_rules =
            |data: &account_data::AccountData| data.room.is_none() && data.kind == PUSH_RULES;
        // Who never changed a push rule has none stored, but has the server's.
        if self.since().is_none()
            && !changed.iter().any(has_rules)
            && filter.account_data.wants_type(PUSH_RULES)
        {
            let rules = rules::content(store, user, &self.caller.user_id)?;
            global
                .events
                .push(raw(&json!({ "type": PUSH_RULES, "content": rules }))?);
        }
        for mut data in changed {
            if has_rules(&data) {
                data.content = rules::content(store, user, &self.caller.user_id)?;
            }
            let wanted = match data.room {
                None => filter.account_data.wants_type(&data.kind),
                Some(_) => filter.room.account_data.wants_type(&data.kind),
            };
            if !wanted {
                continue;
            }
            let event = raw(&json!({ "type": data.kind, "content": data.content }))?;
            match data.room {
                None => global.events.push(event),
                Some(room) => of_rooms.entry(room).or_default().push(event),
            }
        }
        Ok((global, of_rooms))
    }

    /// Notes whom the caller shares a room with from now on.
    fn meet(&self, sight: &Sight, update: &Update, fresh: bool) -> ApiResult<()> {
        if self.since().is_none() || !self.app.config.presence.enabled {
            return Ok(());
        }
        let mut met = self.met.borrow_mut();
        if fresh {
            let members = &sight.view.head.members;
            let here = |user: &UserNum| members.get(user).copied() == Some(Membership::Join);
            met.extend(self.app.presence.known().into_iter().filter(here));
        }
        for seen in &update.timeline {
            let pdu = &seen.event.pdu;
            if *pdu.kind() == ruma::events::TimelineEventType::RoomMember
                && let Some(user_id) = pdu.state_key().and_then(|key| UserId::parse(key).ok())
            {
                met.extend(self.app.store.find_user(&user_id)?);
            }
        }
        Ok(())
    }

    /// The presence of the caller and of those who share a room with them.
    fn presence(&self) -> ApiResult<Events> {
        let mut events = Events::default();
        let (app, wanted) = (self.app, &self.request.filter.presence);
        if !app.config.presence.enabled || !wanted.wants_type("m.presence") {
            return Ok(events);
        }
        let mut users: BTreeSet<UserNum> = match self.request.since {
            Some(since) => app
                .presence
                .changed_since(since.moment)
                .into_iter()
                .collect(),
            None => app.presence.known().into_iter().collect(),
        };
        users.extend(self.met.borrow().iter());
        for user in users {
            if events.events.len() == PRESENCES_MAX {
                break;
            }
            let user_id = app.store.user_id(user)?;
            let shared = user == self.caller.user
                || crate::rooms::members::share_a_room(app, self.caller.user, user)?;
            if shared && wanted.wants_sender(&user_id) && !self.ignored()?.contains(&user_id) {
                let event = app.presence.event(user, &user_id, app.clock.now_ms());
                events.events.push(raw(&event)?);
            }
        }
        Ok(events)
    }

    fn ask(&self) -> Ask<'_> {
        let filter = &self.request.filter.room;
        Ask {
            since: self.since(),
            until: self.until,
            limit: filter.timeline.limit_or(TIMELINE_DEFAULT, TIMELINE_MAX),
            full_state: self.request.full_state,
            timeline: &filter.timeline,
            state: &filter.state,
            state_after: self.request.state_after,
        }
    }

    fn joined(
        &self,
        sight: &Sight,
        row: &MembershipRow,
        account_data: Vec<Box<RawValue>>,
    ) -> ApiResult<Option<JoinedRoom>> {
        let mut update = room::update(self.app, sight, &self.ask())?;
        // Spec: "Ignoring Users": what they say is not told, what they do to the state is.
        if !update.timeline.is_empty() {
            let ignored = self.ignored()?;
            update.timeline.retain(|seen| {
                let pdu = &seen.event.pdu;
                pdu.state_key().is_some() || !ignored.iter().any(|user_id| user_id == pdu.sender())
            });
        }
        let fresh = self.since().is_none_or(|since| row.joined_at > since);
        self.meet(sight, &update, fresh)?;
        let ephemeral = self.ephemeral(sight, fresh)?;
        let nothing = update.timeline.is_empty()
            && update.state.is_empty()
            && !update.limited
            && ephemeral.is_empty()
            && account_data.is_empty()
            // Who reads elsewhere hears of the count, even where receipts are not wanted.
            && !self.has_read(sight)?;
        if nothing && !fresh && !self.request.full_state {
            return Ok(None);
        }
        let mut joined = self.write(sight, &update)?;
        joined.account_data.events = account_data;
        joined.ephemeral = Some(ephemeral);
        let viewer = &sight.viewer;
        let unread = unread::of(
            self.app,
            &sight.view,
            viewer.user,
            &viewer.user_id,
            viewer.row.as_ref(),
            self.until,
        )?;
        if self
            .request
            .filter
            .room
            .timeline
            .unread_thread_notifications
        {
            joined.unread_notifications = Some(unread.main);
            joined.unread_thread_notifications = unread.threads;
        } else {
            joined.unread_notifications = Some(unread.total());
        }
        Ok(Some(joined))
    }

    /// Whether the caller has set a receipt in a room.
    fn has_read(&self, sight: &Sight) -> ApiResult<bool> {
        let (user, Some(since)) = (self.caller.user, self.since()) else {
            return Ok(false);
        };
        if !self.touched.receipts(sight.view.room) {
            return Ok(false);
        }
        let changed = receipts::changed(&self.app.store, sight.view.room, user, since, self.until)?;
        Ok(changed.iter().any(|receipt| receipt.user == user))
    }

    /// Whether a room that the caller left is told of: when that is new, or when asked for; but not again what
    /// was forgotten.
    fn wants_left(&self, row: &MembershipRow, changed: bool) -> bool {
        let asked = self.request.filter.room.include_leave && !row.forgotten;
        match self.since() {
            None => asked,
            Some(_) => changed || (self.request.full_state && asked),
        }
    }

    fn left(
        &self,
        sight: &Sight,
        row: &MembershipRow,
        changed: bool,
    ) -> ApiResult<Option<JoinedRoom>> {
        if !self.wants_left(row, changed) {
            return Ok(None);
        }
        let update = room::update(self.app, sight, &self.ask())?;
        let mut left = self.write(sight, &update)?;
        left.summary = None;
        Ok(Some(left))
    }

    /// A room that this server is not in: the caller is invited, or no longer.
    fn unknown(&self, rooms: &mut Rooms, room: RoomNum, row: &MembershipRow) -> ApiResult<()> {
        let changed = self.since().is_none_or(|since| row.position > since);
        let Some(room_id) = self.app.store.room_id(room)? else {
            return Ok(());
        };
        if !self.request.filter.room.wants_room(&room_id) {
            return Ok(());
        }
        match row.membership {
            Membership::Invite | Membership::Knock if changed || self.request.full_state => {
                self.outside(rooms, (room, &room_id), None, row)
            }
            Membership::Leave | Membership::Ban if self.wants_left(row, changed) => {
                let mut left = JoinedRoom::default();
                if let Some(event) = self.app.store.state_event(&row.event_id)? {
                    let membership = row.membership;
                    let event = entitled(event);
                    let seen = Seen { event, membership };
                    let event = client_event_alone(self.app, &seen, &self.format)?;
                    left.timeline.events.push(event);
                }
                rooms.leave.insert(room_id, left);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn outside(
        &self,
        rooms: &mut Rooms,
        (room, room_id): (RoomNum, &RoomId),
        view: Option<&RoomView>,
        row: &MembershipRow,
    ) -> ApiResult<()> {
        let event = self.app.store.state_event(&row.event_id)?;
        if let Some(event) = event {
            let sender = event.pdu.sender();
            let ignored = self.ignored()?.iter().any(|user_id| user_id == sender)
                || (row.membership == Membership::Invite
                    && invites::is_ignored(&self.app.store, self.caller.user, sender)?);
            if ignored {
                return Ok(());
            }
        }
        let told = outside::of(&self.app.store, self.caller.user, room)?;
        let events = match (told, view) {
            (Some(told), _) => told.state,
            (None, Some(view)) => stripped_state(self.app, &view.head.state, &self.caller.user_id)?,
            (None, None) => Vec::new(),
        };
        let events = Events { events };
        let room_id = room_id.to_owned();
        if row.membership == Membership::Invite {
            rooms.invite.insert(
                room_id,
                Outside {
                    invite_state: Some(events),
                    knock_state: None,
                },
            );
        } else {
            rooms.knock.insert(
                room_id,
                Outside {
                    invite_state: None,
                    knock_state: Some(events),
                },
            );
        }
        Ok(())
    }

    fn write(&self, sight: &Sight, update: &Update) -> ApiResult<JoinedRoom> {
        let alone = |seen: &Seen| client_event_alone(self.app, seen, &self.format);
        let with_relations = |seen: &Seen| client_event(self.app, sight, seen, &self.format);
        let state: ApiResult<Vec<_>> = update.state.iter().map(alone).collect();
        let timeline: ApiResult<Vec<_>> = update.timeline.iter().map(with_relations).collect();
        let mut state = Some(Events { events: state? });
        let (mut after, mut unstable_after) = (None, None);
        if self.request.state_after {
            after = state.take();
            unstable_after = after.as_ref().map(|events| Events {
                events: events.events.clone(),
            });
        }
        let summary = update
            .members_changed
            .then(|| room::summary(self.app, sight))
            .transpose()?;
        Ok(JoinedRoom {
            timeline: Timeline {
                events: timeline?,
                limited: update.limited,
                prev_batch: update.prev_batch.map(|token| token.to_string()),
            },
            state,
            state_after: after,
            unstable_state_after: unstable_after,
            summary,
            account_data: Events::default(),
            ephemeral: None,
            unread_notifications: None,
            unread_thread_notifications: BTreeMap::new(),
        })
    }

    fn ephemeral(&self, sight: &Sight, fresh: bool) -> ApiResult<Events> {
        let wanted = &self.request.filter.room.ephemeral;
        let mut events = Events::default();
        if !wanted.wants_room(&sight.view.room_id) {
            return Ok(events);
        }
        let room = sight.view.room;
        if wanted.wants_type("m.receipt") {
            let receipts = match self.since() {
                Some(_) if !fresh && !self.touched.receipts(room) => Vec::new(),
                Some(since) if !fresh => {
                    receipts::changed(&self.app.store, room, self.caller.user, since, self.until)?
                }
                _ => receipts::all(&self.app.store, room, self.caller.user, RECEIPTS_MAX)?,
            };
            if !receipts.is_empty() {
                events.events.push(receipts_event(self.app, &receipts)?);
            }
        }
        if wanted.wants_type("m.typing") {
            let since = self
                .request
                .since
                .filter(|_| !fresh)
                .map_or(0, |since| since.moment);
            let typing = self.app.typing.changed_since(room, since);
            // To whom the room is new, nobody typing is no news.
            if let Some(users) = typing.filter(|users| !(fresh && users.is_empty())) {
                let users: Result<Vec<_>, _> = users
                    .into_iter()
                    .map(|user| self.app.store.user_id(user))
                    .collect();
                events.events.push(raw(&json!({
                    "type": "m.typing",
                    "content": { "user_ids": users? },
                }))?);
            }
        }
        Ok(events)
    }
}

/// Receipts as clients get them: event → type → user.
///
/// # Errors
/// When the store cannot be read.
pub fn receipts_event(app: &App, receipts: &[Receipt]) -> ApiResult<Box<RawValue>> {
    let mut content: BTreeMap<&str, BTreeMap<&str, BTreeMap<String, serde_json::Value>>> =
        BTreeMap::new();
    for receipt in receipts {
        let user_id = app.store.user_id(receipt.user)?.to_string();
        let mut value = json!({ "ts": receipt.row.ts });
        if !receipt.thread.is_empty()
            && let Some(value) = value.as_object_mut()
        {
            value.insert("thread_id".to_owned(), receipt.thread.clone().into());
        }
        let of_event = content.entry(receipt.row.event_id.as_str()).or_default();
        let of_kind = of_event.entry(&receipt.kind).or_default();
        // Spec: "Threaded read receipts": of two on one event, the one without a thread says more.
        if receipt.thread.is_empty() || !of_kind.contains_key(&user_id) {
            of_kind.insert(user_id, value);
        }
    }
    raw(&json!({ "type": "m.receipt", "content": content }))
}

fn raw(value: &impl Serialize) -> ApiResult<Box<RawValue>> {
    serde_json::value::to_raw_value(value).map_err(|error| ApiError::internal(&error))
}
