//! A room's turn: one change at a time, each built upon the one before.
//!
//! A turn works on the room's newest head, which may not be flushed yet; readers see the head only
//! after the flush. So changes of one room are grouped into one flush as those of many rooms are.
//! Nothing in here awaits the network.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use federation::{
    event::{Draft, DraftContext, Pdu},
    room::{
        Powers, StateChange,
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
    keys::{Keyspace, Packed, Position, RoomNum, StateId, UserNum},
    rooms::{Membership, MembershipRow, NewEvent, Rewrite, RoomHead, TxnRef},
};
use tokio::sync::OwnedMutexGuard;

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// Rooms whose newest head is remembered; idle ones go when there are more.
const SLOTS_MAX: usize = 4_096;

/// The turns of all rooms.
#[derive(Debug)]
pub struct Rooms {
    store: Store,
    /// Held while an alias is made or removed.
    aliases: Arc<tokio::sync::Mutex<()>>,
    slots: Mutex<BTreeMap<RoomNum, Arc<tokio::sync::Mutex<Slot>>>>,
}

/// What the next turn of a room begins with.
#[derive(Debug, Default)]
struct Slot {
    head: Option<Arc<RoomHead>>,
    unpublished: Vec<Unpublished>,
}

/// An event that is queued and perhaps not flushed yet.
#[derive(Debug)]
struct Unpublished {
    pdu: Arc<Pdu>,
    txn: Option<TxnRef>,
    /// Gone when the event is published.
    alive: Weak<()>,
}

impl Rooms {
    /// The rooms in `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            aliases: Arc::default(),
            slots: Mutex::default(),
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
            .retain(|event| event.alive.strong_count() > 0);
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
            appended: Vec::new(),
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
            appended: Vec::new(),
        }))
    }

    /// Waits for the right to make or remove an alias.
    pub(super) async fn lock_aliases(&self) -> OwnedMutexGuard<()> {
        self.aliases.clone().lock_owned().await
    }

    fn slot(&self, room: RoomNum) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX {
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|slot| {
                        slot.unpublished
                            .iter()
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
    app: App,
    /// The room's short number.
    pub room: RoomNum,
    /// The room's ID.
    pub room_id: OwnedRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// The head, with what was appended in this turn.
    pub head: RoomHead,
    slot: OwnedMutexGuard<Slot>,
    appended: Vec<(Arc<Pdu>, Option<TxnRef>)>,
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
    /// An event of this room, also one that is not flushed yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn pdu(&self, event_id: &EventId) -> ApiResult<Option<Arc<Pdu>>> {
        let new = self.appended.iter().map(|(pdu, _)| pdu);
        let queued = self.slot.unpublished.iter().map(|event| &event.pdu);
        if let Some(pdu) = new.chain(queued).find(|pdu| pdu.event_id() == event_id) {
            return Ok(Some(pdu.clone()));
        }
        Ok(self
            .app
            .store
            .event(event_id)?
            .map(|event| event.pdu.clone()))
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
            .iter()
            .find(|event| event.txn.as_ref() == Some(txn));
        if let Some(event) = queued {
            self.published(&event.alive).await;
            return Ok(Some(event.pdu.event_id().to_owned()));
        }
        let row = self.app.store.get_raw(txn_key(self.room, txn))?;
        Ok(row.and_then(|row| String::from_utf8(row).ok()?.try_into().ok()))
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
    /// be an event.
    pub async fn append(&mut self, commit: &mut Commit, append: Append) -> ApiResult<Arc<Pdu>> {
        let Append {
            sender,
            mut draft,
            origin_server_ts,
            txn,
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
            depth: self.head.depth + 1,
            rules: self.rules,
        };
        let pdu = Arc::new(draft.sign(&context, &self.app.key)?);
        self.check(&pdu)?;
        self.add(commit, &pdu, txn).await?;
        Ok(pdu)
    }

    fn check(&self, pdu: &Pdu) -> ApiResult<()> {
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
    async fn add(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        txn: Option<TxnRef>,
    ) -> ApiResult<()> {
        let state_before = self.head.state_id;
        let rewrite = self.what_it_empties(pdu)?;
        let mut changes = Vec::new();
        let mut member = None;
        if let Some(state_key) = pdu.state_key() {
            let change = StateChange {
                kind: pdu.kind().to_string().into(),
                state_key: state_key.into(),
                event_id: Some(pdu.event_id().to_owned()),
            };
            self.head.state.apply(&change);
            self.head.state_id = StateId(state_before.0 + 1);
            changes.push(change);
            if *pdu.kind() == TimelineEventType::RoomMember {
                member = self.member_row(commit, pdu, state_key).await?;
            }
        }
        self.head.extremities = vec![pdu.event_id().to_owned()];
        self.head.depth = pdu.depth();
        let entry = commit.event(NewEvent {
            room: self.room,
            pdu: pdu.clone(),
            state_before,
            head: Arc::new(self.head.clone()),
            changes,
            txn: txn.clone(),
            rewrite,
        });
        // The rows of the state go with the head that `commit.event` keeps.
        self.head.block = commit.head_block(entry).unwrap_or_default();
        if let Some((key, row)) = member {
            commit.put_raw_at(entry, key, row.pack());
        }
        if let Some(txn) = &txn {
            commit.put_raw(
                txn_key(self.room, txn),
                Packed::new().raw(pdu.event_id().as_bytes()),
            );
        }
        self.note_relation(commit, entry, pdu);
        self.appended.push((pdu.clone(), txn));
        Ok(())
    }

    /// The row of the user whose membership changed.
    async fn member_row(
        &mut self,
        commit: &mut Commit,
        pdu: &Pdu,
        state_key: &str,
    ) -> ApiResult<Option<(Packed, MembershipRow)>> {
        let Ok(user_id) = UserId::parse(state_key) else {
            return Ok(None);
        };
        let Some(content) = pdu.content_as::<MemberContent>() else {
            return Ok(None);
        };
        // The row before this one must be on disk: this one carries some of it on.
        let queued = self
            .slot
            .unpublished
            .iter()
            .find(|event| event.pdu.is_state("m.room.member", state_key));
        if let Some(event) = queued {
            self.published(&event.alive).await;
        }
        let user: UserNum = self.app.store.user_num(&user_id)?;
        let old_membership = self.head.membership(user);
        let membership = Membership::of(&content.membership);
        let old = self.app.store.user_room(user, self.room)?;
        let earlier = self
            .appended
            .iter()
            .any(|(pdu, _)| pdu.is_state("m.room.member", state_key));
        assert!(!earlier, "a turn changes each membership at most once");
        let (joined, left) = (
            membership == Membership::Join,
            old_membership == Membership::Join,
        );
        let row = MembershipRow {
            membership,
            position: 0,
            event_id: pdu.event_id().to_owned(),
            by_self: pdu.sender() == user_id,
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
        let (key, value) = self.head.set_membership(self.room, user, membership);
        commit.put_raw(key, value);
        Ok(Some((
            Packed::key(Keyspace::USER_ROOM).user(user).room(self.room),
            row,
        )))
    }

    /// What a redaction empties: an event of this room whose sender, or someone with the power to
    /// redact, asked for it.
    ///
    /// Spec: room versions 3 and later, "Handling redactions".
    fn what_it_empties(&self, pdu: &Pdu) -> ApiResult<Option<Rewrite>> {
        let Some(target) = pdu.redacts() else {
            return Ok(None);
        };
        let Some(target) = self.app.store.event(target)? else {
            return Ok(None);
        };
        if target.room != self.room || target.redacted_by.is_some() {
            return Ok(None);
        }
        let same_server = target.pdu.sender().server_name() == pdu.sender().server_name();
        if !same_server && !self.powers()?.can_redact(pdu.sender()) {
            return Ok(None);
        }
        let left = target
            .pdu
            .redacted(self.rules)
            .map_err(|error| ApiError::internal(&error))?;
        Ok(Some(Rewrite {
            pdu: Arc::new(left),
            because: pdu.event_id().to_owned(),
            target,
        }))
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
            let events = turn.appended.drain(..).map(|(pdu, txn)| Unpublished {
                pdu,
                txn,
                alive: Arc::downgrade(&alive),
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
