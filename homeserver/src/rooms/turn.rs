//! A room's turn: one change at a time, each built upon the one before.
//!
//! A turn works on the room's newest head, which may not be flushed yet; readers see the head only
//! after the flush. So changes of one room are grouped into one flush as those of many rooms are.
//! Nothing in here awaits the network, but for a room's policy server, and for that ten seconds at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use federation::{
    event::{Draft, DraftContext, Pdu},
    room::{
        Powers, StateChange, StateMap,
        auth::{allowed_by_auth_events, allowed_by_state, select_auth_events},
    },
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use store::{
    Commit, EntryIndex, Pending, Store,
    keys::{Keyspace, Packed, Position, RoomNum, UserNum},
    log::Change,
    rooms::{AsideEvent, GapRow, Membership, MembershipRow, NewEvent, RoomHead, Standing, TxnRef},
};
use tokio::sync::OwnedMutexGuard;

use super::{
    later::Later,
    policy,
    steps::{Place, Step, state_after},
};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// The deepest that an event may be. Spec: server-server API, "PDUs": an integer of canonical JSON.
const DEPTH_MAX: u64 = (1 << 53) - 1;

/// Of how many rooms it is remembered that a user of this server is there.
const RESIDENTS_CACHED_MAX: usize = 8_192;

/// Rooms whose newest head is remembered; idle ones go when there are more.
const SLOTS_MAX: usize = 4_096;

/// The turns of all rooms.
#[derive(Debug)]
pub struct Rooms {
    store: Store,
    /// Held while an alias is made or removed.
    aliases: Arc<tokio::sync::Mutex<()>>,
    slots: Mutex<BTreeMap<RoomNum, Arc<tokio::sync::Mutex<Slot>>>>,
    /// Held while events of other servers are received, what they need fetched included.
    receiving: Mutex<BTreeMap<RoomNum, Arc<tokio::sync::Mutex<()>>>>,
    /// A user of this server who was joined to the room when somebody asked last.
    pub(super) residents: quick_cache::sync::Cache<RoomNum, UserNum>,
    /// What other servers sent and is tried again.
    pub(super) later: Later,
}

/// What the next turn of a room begins with.
#[derive(Debug, Default)]
struct Slot {
    head: Option<Arc<RoomHead>>,
    unpublished: BTreeMap<OwnedEventId, Unpublished>,
}

/// An event that is queued and perhaps not flushed yet.
#[derive(Debug)]
struct Unpublished {
    placed: Placed,
    txn: Option<TxnRef>,
    /// Gone when the event is published.
    alive: Weak<()>,
}

/// An event that has its place in the room.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The event.
    pub pdu: Arc<Pdu>,
    /// Why it is in no timeline; `None` if it is in one.
    pub standing: Option<Standing>,
    /// The state after it; unknown for outliers.
    pub after: Option<StateMap>,
}

impl Rooms {
    /// The rooms in `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            aliases: Arc::default(),
            slots: Mutex::default(),
            receiving: Mutex::default(),
            residents: quick_cache::sync::Cache::new(RESIDENTS_CACHED_MAX),
            later: Later::default(),
        }
    }

    /// Waits for a room's turn and takes it.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when the room is not known here.
    pub async fn turn(&self, app: &App, room_id: &RoomId) -> ApiResult<Turn> {
        let room = self
            .store
            .find_room(room_id)?
            .ok_or_else(|| ApiError::not_found("the room is not known here"))?;
        let mut slot = self.slot(room).lock_owned().await;
        slot.unpublished
            .retain(|_, event| event.alive.strong_count() > 0);
        let head = match &slot.head {
            Some(head) => head.clone(),
            None => {
                let view = self.store.room(room)?;
                view.ok_or_else(|| ApiError::not_found("the room is not known here"))?
                    .head
                    .clone()
            }
        };
        let rules = rules_of(&head.version)?;
        slot.head = Some(head.clone());
        Ok(Turn {
            app: app.clone(),
            room,
            room_id: room_id.to_owned(),
            rules,
            head: RoomHead::clone(&head),
            slot,
            appended: BTreeMap::new(),
            moved: BTreeSet::new(),
        })
    }

    /// The first turn of a new room, before its create event; `None` when there is such a room.
    ///
    /// # Errors
    /// `M_UNSUPPORTED_ROOM_VERSION`.
    pub async fn first_turn(
        &self,
        app: &App,
        room_id: OwnedRoomId,
        version: RoomVersionId,
    ) -> ApiResult<Option<Turn>> {
        let rules = rules_of(&version)?;
        let room = self.store.room_num(&room_id)?;
        let slot = self.slot(room).lock_owned().await;
        if slot.head.is_some() || self.store.room(room)?.is_some() {
            return Ok(None);
        }
        let head = RoomHead::new(version);
        Ok(Some(Turn {
            app: app.clone(),
            room,
            room_id,
            rules,
            head,
            slot,
            appended: BTreeMap::new(),
            moved: BTreeSet::new(),
        }))
    }

    /// Waits for the right to make or remove an alias.
    pub(super) async fn lock_aliases(&self) -> OwnedMutexGuard<()> {
        self.aliases.clone().lock_owned().await
    }

    /// Waits for the right to receive events of a room from other servers.
    pub(super) async fn receiving(&self, room: RoomNum) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self
                .receiving
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if all.len() >= SLOTS_MAX {
                all.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            all.entry(room).or_default().clone()
        };
        lock.lock_owned().await
    }

    fn slot(&self, room: RoomNum) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX {
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|slot| {
                        slot.unpublished
                            .values()
                            .any(|event| event.alive.strong_count() > 0)
                    })
            });
        }
        slots.entry(room).or_default().clone()
    }
}

/// The rules of a version, for as long as the process lives.
///
/// # Errors
/// `M_UNSUPPORTED_ROOM_VERSION`.
pub fn rules_of(version: &RoomVersionId) -> ApiResult<&'static RoomVersionRules> {
    store::rules_of(version).ok_or_else(|| {
        ApiError::unsupported_room_version(format!("room version `{version}` is not served here"))
    })
}

/// The right to change a room. Dropping it without [`Turn::finish`] changes nothing.
#[derive(Debug)]
pub struct Turn {
    pub(super) app: App,
    /// The room's short number.
    pub room: RoomNum,
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// The head, with what was appended in this turn.
    pub head: RoomHead,
    slot: OwnedMutexGuard<Slot>,
    appended: BTreeMap<OwnedEventId, (Placed, Option<TxnRef>)>,
    /// Whose membership this turn has changed.
    moved: BTreeSet<UserNum>,
}

/// How an event is to be appended.
#[derive(Debug)]
pub struct Append {
    /// Who sends it.
    pub sender: OwnedUserId,
    /// What they say.
    pub draft: Draft,
    /// When it is said to be sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The request that sends it.
    pub txn: Option<TxnRef>,
}

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
}

impl Turn {
    /// A known event of this room, also one that is not flushed yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn pdu(&self, event_id: &EventId) -> ApiResult<Option<Arc<Pdu>>> {
        if let Some(placed) = self.fresh(event_id) {
            return Ok(Some(placed.pdu.clone()));
        }
        Ok(self.app.store.pdu(event_id)?)
    }

    /// An event of this turn, or of one that is not flushed yet.
    fn fresh(&self, event_id: &EventId) -> Option<&Placed> {
        let queued = || self.slot.unpublished.get(event_id);
        match self.appended.get(event_id) {
            Some((placed, _)) => Some(placed),
            None => queued().map(|event| &event.placed),
        }
    }

    /// A known event of this room, with the state after it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn placed(&self, event_id: &EventId) -> ApiResult<Option<Placed>> {
        if let Some(placed) = self.fresh(event_id) {
            return Ok(Some(placed.clone()));
        }
        let store = &self.app.store;
        let (room, pdu, standing, after) = match store.event(event_id)? {
            Some(event) => (event.room, event.pdu.clone(), None, Some(event.state_after)),
            None => match store.aside(event_id)? {
                Some(event) => {
                    let standing = Some(event.standing);
                    (event.room, event.pdu.clone(), standing, event.state_after)
                }
                None => return Ok(None),
            },
        };
        if room != self.room {
            return Ok(None);
        }
        let after = after.map(|id| store.state(room, id)).transpose()?;
        Ok(Some(Placed {
            pdu,
            standing,
            after,
        }))
    }

    /// The event that holds an entry of the current state.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn state_event(&self, kind: &str, state_key: &str) -> ApiResult<Option<Arc<Pdu>>> {
        match self.head.state.get(kind, state_key) {
            Some(event_id) => self.pdu(event_id),
            None => Ok(None),
        }
    }

    /// Who may do what now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn powers(&self) -> ApiResult<Powers<'static>> {
        let create = self
            .state_event("m.room.create", "")?
            .ok_or_else(|| ApiError::not_found("the room is not known here"))?;
        let levels = self.state_event("m.room.power_levels", "")?;
        Ok(Powers::new(&self.rules.authorization, create, levels))
    }

    /// A user's membership now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn membership(&self, user_id: &UserId) -> ApiResult<Membership> {
        let user = self.app.store.find_user(user_id)?;
        Ok(user.map_or(Membership::Leave, |user| self.head.membership(user)))
    }

    /// The event that a request sent before: the answer to its repetition.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sent_before(&self, txn: &TxnRef) -> ApiResult<Option<OwnedEventId>> {
        let queued = self
            .slot
            .unpublished
            .values()
            .find(|event| event.txn.as_ref() == Some(txn));
        if let Some(event) = queued {
            self.published(&event.alive).await;
            return Ok(Some(event.placed.pdu.event_id().to_owned()));
        }
        let row = self.app.store.get_raw(txn_key(self.room, txn))?;
        Ok(row.and_then(|row| String::from_utf8(row).ok()?.try_into().ok()))
    }

    /// Waits until an event is published, if it is queued.
    pub(super) async fn settled(&self, event_id: &EventId) {
        if let Some(event) = self.slot.unpublished.get(event_id) {
            self.published(&event.alive).await;
        }
    }

    /// Waits until a queued event is published.
    async fn published(&self, alive: &Weak<()>) {
        loop {
            let grew = self.app.store.grew().notified();
            if alive.strong_count() == 0 {
                return;
            }
            grew.await;
        }
    }

    /// Builds, signs and checks an event upon the head, and adds it to `commit`.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the room does not allow it, `M_BAD_JSON` or `M_TOO_LARGE` when it cannot
    /// be an event; what the room's policy server says against it.
    pub async fn append(&mut self, commit: &mut Commit, mut append: Append) -> ApiResult<Arc<Pdu>> {
        let txn = append.txn.take();
        let mut pdu = self.build(append)?;
        if let Some(policy) = self.policy_for(&pdu)? {
            pdu = policy::ask(&self.app, &policy, &pdu, self.rules).await?;
        }
        let pdu = Arc::new(pdu);
        self.add(commit, &pdu, txn, None).await?;
        Ok(pdu)
    }

    /// Builds, signs and checks an event upon the head, without adding it.
    ///
    /// # Errors
    /// As [`Turn::append`].
    pub fn build(&self, append: Append) -> ApiResult<Pdu> {
        let Append {
            sender,
            mut draft,
            origin_server_ts,
            ..
        } = append;
        if self.rules.redaction.content_field_redacts {
            // The content says it, and is what is signed.
            draft.redacts = None;
        }
        let auth_events = select_auth_events(&draft, &sender, &self.head.state, self.rules)
            .map_err(|rejection| ApiError::bad_json(rejection.to_string()))?;
        let creates_room = draft.kind == "m.room.create" && self.head.state.is_empty();
        let implied = creates_room && self.rules.authorization.room_create_event_id_as_room_id;
        let context = DraftContext {
            room_id: (!implied).then_some(&*self.room_id),
            sender: &sender,
            origin_server_ts,
            prev_events: &self.head.extremities,
            auth_events: &auth_events,
            depth: (self.head.depth + 1).min(DEPTH_MAX),
            rules: self.rules,
        };
        let pdu = draft.sign(&context, &self.app.key)?;
        self.check(&pdu)?;
        Ok(pdu)
    }

    /// Whether the room allows an event upon its head.
    pub(super) fn check(&self, pdu: &Pdu) -> ApiResult<()> {
        // Neither closure can fail the request: an event that cannot be read does not allow.
        if *pdu.kind() == TimelineEventType::RoomCreate {
            allowed_by_auth_events(pdu, &self.rules.authorization, |id| {
                self.pdu(id).ok().flatten()
            })
            .map_err(|rejection| ApiError::bad_json(rejection.to_string()))?;
        }
        allowed_by_state(pdu, &self.rules.authorization, |kind, key| {
            self.state_event(kind, key).ok().flatten()
        })?;
        Ok(())
    }

    /// Adds a checked event to `commit` and to the head.
    ///
    /// `place` is where it stands when that is not upon the whole head.
    pub(super) async fn add(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        txn: Option<TxnRef>,
        mut place: Option<Place>,
    ) -> ApiResult<()> {
        let gap = place.as_mut().and_then(|place| place.gap.take());
        let gap = gap.map(|gap| self.gap_entry(commit, gap)).transpose()?;
        let rewrite = self.empty(commit, pdu).await?;
        // What this server says itself is new, and nobody can have redacted it.
        let (redacted_by, pdu) = match &place {
            Some(_) => self.emptied_before(pdu)?,
            None => (None, pdu.clone()),
        };
        let pdu = &pdu;
        let Step {
            state_before,
            after,
            state_after,
            replaces,
            states,
            changes,
        } = match place {
            None => self.step(commit, pdu),
            Some(place) => self.step_aside(commit, pdu, place)?,
        };
        let mut members = Vec::new();
        for change in &changes {
            if &*change.kind == "m.room.member" {
                members.extend(self.member_row(commit, pdu, change).await?);
            }
        }
        let entry = commit.event(NewEvent {
            room: self.room,
            pdu: pdu.clone(),
            state_before,
            state_after,
            replaces,
            states,
            head: Arc::new(self.head.clone()),
            changes,
            txn: txn.clone(),
            rewrite,
            redacted_by,
            gap: gap.flatten(),
        });
        for (key, row) in members {
            commit.put_raw_at(entry, key, row.pack());
        }
        if let Some(txn) = &txn {
            commit.put_raw(
                txn_key(self.room, txn),
                Packed::new().raw(pdu.event_id().as_bytes()),
            );
        }
        self.note_relation(commit, entry, pdu);
        let placed = Placed {
            pdu: pdu.clone(),
            standing: None,
            after: Some(after),
        };
        self.appended
            .insert(placed.pdu.event_id().to_owned(), (placed, txn));
        Ok(())
    }

    /// The log entry of a gap, right before that of the event behind it; the gap, unless the room has all that it
    /// may have.
    fn gap_entry(&self, commit: &mut Commit, gap: GapRow) -> ApiResult<Option<GapRow>> {
        let view = self.app.store.room(self.room)?;
        if view.is_some_and(|view| view.has_gaps_max()) {
            tracing::info!(room_id = %self.room_id, "one gap more than are written down");
            return Ok(None);
        }
        commit.log(Change::Gap { room: self.room });
        Ok(Some(gap))
    }

    /// Notes an event that got its place in this turn otherwise.
    pub(super) fn remember(&mut self, placed: Placed) {
        self.appended
            .insert(placed.pdu.event_id().to_owned(), (placed, None));
    }

    /// Keeps an event outside the timeline, which does not change the room.
    pub(super) fn put_aside(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        standing: Standing,
        before: Option<StateMap>,
    ) {
        let (room, head) = (self.room, &mut self.head);
        let after = before.as_ref().map(|before| match standing {
            Standing::SoftFailed => state_after(before, pdu),
            Standing::Rejected | Standing::Outlier => before.clone(),
        });
        let event = AsideEvent {
            room,
            pdu: pdu.clone(),
            standing,
            state_before: before.map(|state| head.number(commit, room, &state)),
            state_after: after.as_ref().map(|state| head.number(commit, room, state)),
        };
        commit.put_aside(event, &head.version);
        let placed = Placed {
            pdu: pdu.clone(),
            standing: Some(standing),
            after,
        };
        self.appended
            .insert(placed.pdu.event_id().to_owned(), (placed, None));
    }

    /// The row of a user whose membership changed with `pdu`, most often by it.
    async fn member_row(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        change: &StateChange,
    ) -> ApiResult<Option<(Packed, MembershipRow)>> {
        let state_key = &*change.state_key;
        let Ok(user_id) = UserId::parse(state_key) else {
            return Ok(None);
        };
        let event = match &change.event_id {
            Some(id) if id == pdu.event_id() => Some(pdu.clone()),
            Some(id) => self.pdu(id)?,
            None => None,
        };
        let content = event
            .as_ref()
            .map(|event| event.content_as::<MemberContent>());
        let membership = match content {
            Some(Some(content)) => Membership::of(&content.membership),
            // Another server's event may say anything.
            Some(None) => return Ok(None),
            None => Membership::Leave,
        };
        let event = event.unwrap_or_else(|| pdu.clone());
        // The row before this one must be on disk: this one carries some of it on.
        let queued = self
            .slot
            .unpublished
            .values()
            .find(|event| event.placed.pdu.is_state("m.room.member", state_key));
        if let Some(event) = queued {
            self.published(&event.alive).await;
        }
        let user: UserNum = self.app.store.user_num(&user_id)?;
        let old_membership = self.head.membership(user);
        let old = self.app.store.user_room(user, self.room)?;
        let first = self.moved.insert(user);
        assert!(first, "a turn changes each membership at most once");
        let (joined, left) = (
            membership == Membership::Join,
            old_membership == Membership::Join,
        );
        let row = MembershipRow {
            membership,
            position: 0,
            event_id: event.event_id().to_owned(),
            by_self: event.sender() == user_id,
            joined_at: match (&old, joined && !left) {
                (_, true) => Position::MAX,
                (Some(old), false) => old.joined_at,
                (None, false) => 0,
            },
            left_at: match (&old, left && !joined) {
                (_, true) => Position::MAX,
                (Some(old), false) => old.left_at,
                (None, false) => 0,
            },
            forgotten: false,
        };
        if joined {
            // Whatever way they came: what they knew from outside is of no use, and must not decide how they leave.
            super::outside::forget(commit, user, self.room);
        }
        let (key, value) = self.head.set_membership(self.room, user, membership);
        commit.put_raw(key, value);
        Ok(Some((
            Packed::key(Keyspace::USER_ROOM).user(user).room(self.room),
            row,
        )))
    }

    fn note_relation(&self, commit: &mut Commit, entry: EntryIndex, pdu: &Pdu) {
        if let Some(relation) = super::relations::Relation::of(pdu) {
            relation.put(commit, entry, self.room, pdu);
        }
    }

    /// Queues what was appended and ends the turn; the next one is built upon it at once.
    ///
    /// Wait for the [`Pending`] before telling anybody.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn finish(self, commit: Commit) -> ApiResult<Pending> {
        let store = self.app.store.clone();
        Self::finish_all(&store, vec![self], commit).await
    }

    /// As [`Turn::finish`], for turns of several rooms whose events are in one commit.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn finish_all(
        store: &Store,
        mut turns: Vec<Self>,
        mut commit: Commit,
    ) -> ApiResult<Pending> {
        let alive = Arc::new(());
        let mut unpublished = Vec::with_capacity(turns.len());
        for turn in &mut turns {
            let appended = std::mem::take(&mut turn.appended);
            let events = appended.into_iter().map(|(id, (placed, txn))| {
                let alive = Arc::downgrade(&alive);
                (id, Unpublished { placed, txn, alive })
            });
            unpublished.push(events.collect::<Vec<_>>());
        }
        commit.hold(alive);
        let pending = store.queue(commit).await?;
        for (turn, events) in turns.iter_mut().zip(unpublished) {
            turn.slot.head = Some(Arc::new(turn.head.clone()));
            turn.slot.unpublished.extend(events);
        }
        Ok(pending)
    }
}

/// Where the answer to a request is kept: by device, room and `txnId`.
///
/// Spec: client-server API, "Transaction identifiers".
fn txn_key(room: RoomNum, txn: &TxnRef) -> Packed {
    use sha2::{Digest as _, Sha256};
    Packed::key(Keyspace::TXN)
        .user(txn.user)
        .raw(&Sha256::digest(txn.device.as_bytes()))
        .room(room)
        .raw(&Sha256::digest(txn.txn_id.as_bytes()))
}
