//! How many events of a room a user has not read and wants to know of.
//!
//! A count is made when its user asks: the rules are evaluated over what came after their receipt, and
//! what was found is remembered up to a position, so that the next look evaluates only what is newer.
//! Sending an event and reading it cost nothing for those who do not look. What took long to find is also
//! written down, so that a restart does not find it again.
//!
//! At most the newest [`WALK_EVENTS_MAX`] events behind the receipt are evaluated at once, and at most
//! [`COUNTED_MAX`] are counted: a count of that size means "that many or more". Events before the user's
//! last join are not counted, nor are invites. Sending a message reads what came before it in its thread.
//! Spec: client-server API, "Receiving notifications", "Threaded read receipts", "Notification counts".

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::{Weighter, sync::Cache};
use ruma::{EventId, OwnedEventId, UserId, events::TimelineEventType, push::Action};
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, Table, UserNum},
    rooms::{Membership, MembershipRow, RoomView, TimelineEvent},
};

use super::evaluate::{Judge, Version, wishes};
use crate::{error::ApiResult, receipts, rooms::relations::Relation, server::App};

/// How many events are evaluated at once, at most: the newest.
pub const WALK_EVENTS_MAX: usize = 1_000;

/// How many events of a room are counted for a user, at most: the newest.
pub const COUNTED_MAX: usize = 1_000;

/// How much memory remembered counts may use, in bytes.
const BYTES_MAX: u64 = 16 << 20;

/// How many events must have been evaluated for a count to be worth writing down.
const WORTH_EVENTS: usize = 256;

/// How many counts wait to be written down; more are not written.
const UNWRITTEN_MAX: usize = 1_024;

/// How often counts are written down.
const WRITE_EVERY: std::time::Duration = std::time::Duration::from_mins(1);

/// How many relations are followed to find an event's thread. Spec: MSC3773 leaves it to servers;
/// others follow three.
const HOPS_MAX: usize = 3;

const UNREAD: Table<Found> = Table::new(Keyspace::UNREAD);

/// Counts of one room or thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events that the user wants to know of.
    #[serde(rename = "notification_count")]
    pub notify: u64,
    /// Those of them that stand out.
    #[serde(rename = "highlight_count")]
    pub highlight: u64,
    /// Those of them that are calls.
    #[serde(skip)]
    pub calls: u64,
}

/// What a user has not read of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Outside of threads.
    pub main: Counts,
    /// In threads, by their roots; only threads with something unread.
    pub threads: BTreeMap<OwnedEventId, Counts>,
}

impl Unread {
    /// With threads and without.
    pub fn total(&self) -> Counts {
        let mut total = self.main;
        for counts in self.threads.values() {
            total.notify += counts.notify;
            total.highlight += counts.highlight;
            total.calls += counts.calls;
        }
        total
    }
}

/// The root of a thread; `None` for what is in none.
type Thread = Option<OwnedEventId>;

/// An event that its user wants to know of: its order, and two bits of what it is. There are up to
/// [`COUNTED_MAX`] for each user and room, so they are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Counted(i64);

impl Counted {
    const HIGHLIGHT: i64 = 1;
    const CALL: i64 = 2;

    fn new(order: i64, highlight: bool, call: bool) -> Self {
        let highlight = if highlight { Self::HIGHLIGHT } else { 0 };
        let call = if call { Self::CALL } else { 0 };
        Self(order << 2 | highlight | call)
    }

    const fn order(self) -> i64 {
        self.0 >> 2
    }

    const fn is_highlight(self) -> bool {
        self.0 & Self::HIGHLIGHT != 0
    }

    const fn is_call(self) -> bool {
        self.0 & Self::CALL != 0
    }
}

/// What was found in a room for a user, up to a position.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Found {
    /// By which rules.
    version: Version,
    /// The join that it begins behind.
    joined_at: Position,
    upto: Position,
    /// Oldest first.
    counted: Vec<Counted>,
    /// The thread of each of them that is in one, by its order.
    threads: BTreeMap<i64, OwnedEventId>,
    /// The newest message of the user's own in each thread.
    own: Vec<(Thread, i64)>,
    /// How many events were evaluated since it was last written down.
    #[serde(skip)]
    unwritten: usize,
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<(UserNum, RoomNum), Arc<Found>> for Weigh {
    fn weight(&self, _: &(UserNum, RoomNum), found: &Arc<Found>) -> u64 {
        let threaded = found.threads.len() + found.own.len();
        192 + 8 * found.counted.capacity() as u64 + 80 * threaded as u64
    }
}

/// What is remembered.
#[derive(Debug)]
pub struct Counting {
    found: Cache<(UserNum, RoomNum), Arc<Found>, Weigh>,
    /// What is worth writing down.
    unwritten: Mutex<BTreeSet<(UserNum, RoomNum)>>,
}

impl Default for Counting {
    fn default() -> Self {
        Self {
            found: Cache::with_weighter(16_384, BYTES_MAX, Weigh),
            unwritten: Mutex::default(),
        }
    }
}

fn key(user: UserNum, room: RoomNum) -> Packed {
    UNREAD.key().user(user).room(room)
}

/// Writes down what took long to find, for as long as the server runs.
pub async fn write(app: App) {
    loop {
        tokio::time::sleep(WRITE_EVERY).await;
        let unwritten = {
            let mut unwritten = app.push.unread.lock();
            std::mem::take(&mut *unwritten)
        };
        let mut commit = Commit::new();
        for place in unwritten {
            // What is no longer remembered is made again.
            if let Some(found) = app.push.unread.found.peek(&place) {
                commit.put(UNREAD, key(place.0, place.1), &*found);
            }
        }
        if !commit.is_empty() {
            // A count that is lost is made again.
            drop(app.store.queue(commit).await);
        }
    }
}

impl Counting {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<(UserNum, RoomNum)>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a user has read a room.
#[derive(Clone, Debug, Default)]
pub struct Floors {
    /// Everything up to here.
    all: i64,
    /// By thread.
    threads: BTreeMap<Thread, i64>,
}

impl Floors {
    /// How far a user's receipts say that they have read.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(store: &Store, room: RoomNum, user: UserNum) -> Result<Self, StoreError> {
        let mut floors = Self::default();
        for receipt in receipts::of_user(store, room, user)? {
            let order = receipt.row.order;
            match &*receipt.thread {
                "" => floors.all = floors.all.max(order),
                "main" => floors.raise(None, order),
                root => floors.raise(EventId::parse(root).ok(), order),
            }
        }
        Ok(floors)
    }

    fn raise(&mut self, thread: Thread, order: i64) {
        let floor = self.threads.entry(thread).or_default();
        *floor = order.max(*floor);
    }

    /// Whether an event at `order` of a thread is read.
    pub fn cover(&self, thread: &Thread, order: i64) -> bool {
        order <= self.all
            || self
                .threads
                .get(thread)
                .is_some_and(|floor| order <= *floor)
    }
}

/// The thread that an event is in: that of its own, or of what it relates to.
///
/// # Errors
/// When the store cannot be read.
pub fn thread_of(store: &Store, event: &TimelineEvent) -> Result<Thread, StoreError> {
    let mut relation = Relation::of(&event.pdu);
    for _ in 0..HOPS_MAX {
        let Some(Relation {
            target, rel_type, ..
        }) = relation
        else {
            return Ok(None);
        };
        if rel_type == "m.thread" {
            return Ok(Some(target));
        }
        let target = store.event(&target)?;
        relation = target
            .filter(|target| target.room == event.room)
            .and_then(|target| Relation::of(&target.pdu));
    }
    Ok(None)
}

/// What a user has not read of a room that they are joined to; nothing if they are not.
///
/// Only what is up to `until` counts.
///
/// # Errors
/// When the store cannot be read.
pub fn of(
    app: &App,
    view: &RoomView,
    user: UserNum,
    user_id: &UserId,
    row: Option<&MembershipRow>,
    until: Position,
) -> ApiResult<Unread> {
    let Some(row) = row.filter(|row| row.membership == Membership::Join) else {
        return Ok(Unread::default());
    };
    let mut floors = Floors::of(&app.store, view.room, user)?;
    let found = Looking {
        app,
        view,
        user,
        user_id,
        joined_at: row.joined_at,
        read: floors.all,
    }
    .look(until)?;
    for (thread, order) in &found.own {
        floors.raise(thread.clone(), *order);
    }
    let mut unread = Unread::default();
    for one in &found.counted {
        let thread = found.threads.get(&one.order()).cloned();
        if one.order() > order(until) || floors.cover(&thread, one.order()) {
            continue;
        }
        let counts = match thread {
            Some(root) => unread.threads.entry(root).or_default(),
            None => &mut unread.main,
        };
        counts.notify += 1;
        counts.highlight += u64::from(one.is_highlight());
        counts.calls += u64::from(one.is_call());
    }
    Ok(unread)
}

fn order(position: Position) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

struct Looking<'a> {
    app: &'a App,
    view: &'a RoomView,
    user: UserNum,
    user_id: &'a UserId,
    joined_at: Position,
    /// Everything up to here is read.
    read: i64,
}

impl Looking<'_> {
    /// What is found up to `until`, from what was found before.
    fn look(&self, until: Position) -> ApiResult<Arc<Found>> {
        let wishes = wishes(self.app, self.user, self.user_id)?;
        let counting = &self.app.push.unread;
        let place = (self.user, self.view.room);
        let old = match counting.found.get(&place) {
            Some(found) => Some(found),
            None => self.written()?.map(Arc::new),
        };
        let fits =
            |old: &Arc<Found>| old.version == wishes.version && old.joined_at == self.joined_at;
        let old = old.filter(fits);
        if let Some(old) = &old
            && (old.upto >= until || self.view.position <= old.upto)
        {
            return Ok(old.clone());
        }
        let lower = self.read.max(order(self.joined_at));
        let lower = lower.max(old.as_ref().map_or(0, |old| order(old.upto)));
        let judge = Judge::of(self.app, self.view, self.user, self.user_id, wishes.clone())?;
        let new = self.walk(&judge, lower, order(until))?;
        let mut found = Found {
            version: wishes.version,
            joined_at: self.joined_at,
            upto: until,
            counted: new.counted,
            threads: new.threads,
            own: new.own,
            unwritten: new.walked,
        };
        if let Some(old) = old.filter(|_| new.walked < WALK_EVENTS_MAX) {
            let still = old.counted.iter().filter(|one| one.order() > self.read);
            let mut counted: Vec<_> = still.copied().collect();
            counted.append(&mut found.counted);
            found.counted = counted;
            let still = old.threads.iter().filter(|(order, _)| **order > self.read);
            found
                .threads
                .extend(still.map(|(order, root)| (*order, root.clone())));
            for (thread, order) in &old.own {
                if *order > self.read && !found.own.iter().any(|(known, _)| known == thread) {
                    found.own.push((thread.clone(), *order));
                }
            }
            found.unwritten += old.unwritten;
        }
        for target in new.redacted {
            let target = self.app.store.event(&target)?;
            if let Some(target) = target.filter(|target| target.redacted_by.is_some()) {
                found.counted.retain(|one| one.order() != target.order);
            }
        }
        let surplus = found.counted.len().saturating_sub(COUNTED_MAX);
        for gone in found.counted.drain(..surplus) {
            found.threads.remove(&gone.order());
        }
        let surplus = found.own.len().saturating_sub(COUNTED_MAX);
        found.own.truncate(found.own.len() - surplus);
        found.counted.shrink_to_fit();
        let worth = found.unwritten >= WORTH_EVENTS;
        if worth {
            found.unwritten = 0;
        }
        let found = Arc::new(found);
        counting.found.insert(place, found.clone());
        if worth {
            let mut unwritten = counting.lock();
            if unwritten.len() < UNWRITTEN_MAX {
                unwritten.insert(place);
            }
        }
        Ok(found)
    }

    /// What was written down; nothing if it was by a version that wrote otherwise.
    fn written(&self) -> ApiResult<Option<Found>> {
        let row = self.app.store.get_raw(key(self.user, self.view.room))?;
        Ok(row.and_then(|row| serde_json::from_slice(&row).ok()))
    }

    /// Evaluates the newest events in `lower < order <= upper`.
    fn walk(&self, judge: &Judge<'_>, lower: i64, upper: i64) -> ApiResult<Walk> {
        let mut walk = Walk::default();
        let (store, view) = (&self.app.store, self.view);
        let older = view.tail.front().map(|first| first.order);
        let older = older.filter(|tail| lower.saturating_add(1) < *tail && !judge.has_own_rules());
        let lower_of_walk = older.map_or(lower, |tail| tail.saturating_sub(1));
        let orders = (Bound::Excluded(lower_of_walk), Bound::Included(upper));
        view.walk_back(store, orders, |event| {
            walk.take(store, judge, self.user_id, &event)?;
            Ok(walk.walked < WALK_EVENTS_MAX)
        })?;
        if older.is_some() {
            let loud = self.app.push.loud.before_tail(store, view, lower)?;
            for order in loud.into_iter().rev().filter(|order| *order <= upper) {
                if walk.walked >= WALK_EVENTS_MAX {
                    break;
                }
                if let Some(event) = store.event_at(view.room, order)? {
                    walk.take(store, judge, self.user_id, &event)?;
                }
            }
        }
        walk.counted.reverse();
        Ok(walk)
    }
}

/// What was found on the way from the newest event back.
#[derive(Debug, Default)]
struct Walk {
    counted: Vec<Counted>,
    threads: BTreeMap<i64, OwnedEventId>,
    own: Vec<(Thread, i64)>,
    redacted: Vec<OwnedEventId>,
    walked: usize,
}

impl Walk {
    fn take(
        &mut self,
        store: &Store,
        judge: &Judge<'_>,
        user_id: &UserId,
        event: &TimelineEvent,
    ) -> Result<(), StoreError> {
        self.walked += 1;
        let pdu = &event.pdu;
        let redaction = *pdu.kind() == TimelineEventType::RoomRedaction;
        if redaction {
            self.redacted.extend(pdu.redacts().map(ToOwned::to_owned));
        }
        if pdu.sender() == user_id {
            if pdu.state_key().is_none() && !redaction {
                let thread = thread_of(store, event)?;
                if !self.own.iter().any(|(known, _)| *known == thread) {
                    self.own.push((thread, event.order));
                }
            }
            return Ok(());
        }
        if let Some(actions) = judge.actions(event) {
            let thread = thread_of(store, event)?;
            let highlight = actions.iter().any(Action::is_highlight);
            let call = *pdu.kind() == TimelineEventType::CallInvite;
            let counted = Counted::new(event.order, highlight, call);
            self.counted.push(counted);
            self.threads.extend(thread.map(|root| (event.order, root)));
        }
        Ok(())
    }
}
