//! Who waits in `/sync`, and waking those whom a change concerns.
//!
//! The waker is a reader of the log. What it does for an entry is bounded by those who wait *and*
//! are concerned: neither the members of a room nor the rooms of a user are walked where the other
//! side is shorter.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use store::{
    keys::{Position, RoomNum, UserNum},
    log::{Change, LogEntry},
    rooms::{Membership, RoomView},
};
use tokio::sync::Notify;

use crate::{log::Reader, metrics::Stage, server::App};

/// How much later than everybody else the sender of an event is woken.
///
/// Clients take an event that `/sync` tells before `/send` has answered for somebody else's, and show
/// theirs as not sent; this lets the answer go out first.
const SENDER_LAG: Duration = Duration::from_millis(3);

/// How many entries the waker takes at a time.
const BATCH_ENTRIES_MAX: usize = 512;

/// Users who wait for something to happen.
#[derive(Debug, Default)]
pub struct Wakeups {
    waiting: Mutex<BTreeMap<UserNum, (usize, Arc<Notify>)>>,
}

/// A user's place among those who wait; given up when dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    wakeups: &'a Wakeups,
    user: UserNum,
    notify: Arc<Notify>,
}

impl Waiting<'_> {
    /// What resolves when something may have happened. Take it before looking.
    pub fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.wakeups.lock();
        if let Some((count, _)) = waiting.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.user);
            }
        }
    }
}

impl Wakeups {
    /// A user begins to wait.
    pub fn wait(&self, user: UserNum) -> Waiting<'_> {
        let mut waiting = self.lock();
        let (count, notify) = waiting.entry(user).or_default();
        *count += 1;
        Waiting {
            wakeups: self,
            user,
            notify: notify.clone(),
        }
    }

    /// Wakes one user.
    pub fn wake(&self, user: UserNum) {
        if let Some((_, notify)) = self.lock().get(&user) {
            notify.notify_waiters();
        }
    }

    /// Wakes the joined members of a room, but for `later`.
    pub fn wake_room(&self, view: &RoomView, later: Option<UserNum>) {
        let waiting = self.lock();
        let joined = |membership: Option<&Membership>| membership == Some(&Membership::Join);
        if waiting.len() <= view.head.members.len() {
            for (user, (_, notify)) in waiting.iter() {
                if Some(*user) != later && joined(view.head.members.get(user)) {
                    notify.notify_waiters();
                }
            }
        } else {
            let members = view.head.members.iter();
            for (user, membership) in members.filter(|(user, _)| Some(**user) != later) {
                if let (true, Some((_, notify))) = (joined(Some(membership)), waiting.get(user)) {
                    notify.notify_waiters();
                }
            }
        }
    }

    /// How many users wait.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// How many users wait, and in how many requests.
    pub fn waiting(&self) -> (usize, usize) {
        let waiting = self.lock();
        (
            waiting.len(),
            waiting.values().map(|(count, _)| count).sum(),
        )
    }

    /// Whether a user waits.
    pub fn waits(&self, user: UserNum) -> bool {
        self.lock().contains_key(&user)
    }

    /// Wakes a user and those who share a room with them.
    pub fn wake_contacts(&self, app: &App, user: UserNum) {
        for other in self.users() {
            if other == user
                || crate::rooms::members::share_a_room(app, other, user).unwrap_or(true)
            {
                self.wake(other);
            }
        }
    }

    fn users(&self) -> Vec<UserNum> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<UserNum, (usize, Arc<Notify>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the log and wakes whoever an entry concerns, for as long as the server runs.
///
/// It begins at the end of the log as it is now, not as it will be when the task first runs.
pub fn wake(app: App) -> impl Future<Output = ()> + Send {
    let position = app.store.published();
    let reader = app.metrics.reader("wakeups");
    wake_from(app, reader, position)
}

async fn wake_from(app: App, reader: Reader, mut position: Position) {
    // Senders who are still to be woken: at most those who wait.
    let mut late: BTreeMap<UserNum, tokio::time::Instant> = BTreeMap::new();
    loop {
        let now = app.clock.instant();
        late.retain(|sender, due| {
            let early = *due > now;
            if !early {
                app.wakeups.wake(*sender);
            }
            early
        });
        let read = reader.next(&app.store, position, BATCH_ENTRIES_MAX);
        let entries = match late.values().min() {
            None => read.await,
            Some(due) => {
                tokio::select! {
                    biased;
                    entries = read => entries,
                    () = tokio::time::sleep_until(*due) => continue,
                }
            }
        };
        let began = app.clock.instant();
        let mut rooms = BTreeMap::new();
        let mut users = BTreeSet::new();
        for (at, entry) in &entries {
            position = *at;
            concerned(&app, entry, &mut rooms, &mut users);
        }
        for (room, sender) in rooms {
            if let Ok(Some(view)) = app.store.room(room) {
                app.wakeups.wake_room(&view, sender);
            }
            if let Some(sender) = sender.filter(|sender| app.wakeups.waits(*sender)) {
                late.entry(sender)
                    .or_insert(app.clock.instant() + SENDER_LAG);
            }
        }
        for user in users {
            app.wakeups.wake(user);
        }
        app.metrics
            .stage(Stage::FanOut, app.clock.instant() - began);
    }
}

/// The rooms whose members, and the users whom, an entry concerns.
///
/// With a room stands the one sender of all that happened there.
fn concerned(
    app: &App,
    entry: &LogEntry,
    rooms: &mut BTreeMap<RoomNum, Option<UserNum>>,
    users: &mut BTreeSet<UserNum>,
) {
    match entry {
        LogEntry::Event(event) => {
            let sender = app.store.find_user(event.pdu.sender()).ok().flatten();
            let of_room = rooms.entry(event.room).or_insert(sender);
            *of_room = of_room.filter(|other| Some(*other) == sender);
            // Whoever is invited, kicked or banned is not among the joined.
            if *event.pdu.kind() == ruma::events::TimelineEventType::RoomMember {
                let target = event
                    .pdu
                    .state_key()
                    .and_then(|key| ruma::UserId::parse(key).ok());
                users.extend(target.and_then(|target| app.store.find_user(&target).ok().flatten()));
            }
        }
        LogEntry::Other(change) => match change {
            Change::Receipt {
                room,
                private: false,
                ..
            } => {
                rooms.insert(*room, None);
            }
            Change::Receipt { user, .. }
            | Change::AccountData { user, .. }
            | Change::ToDevice { user, .. }
            | Change::KeyCounts { user, .. }
            | Change::Outside { user, .. }
            | Change::ThreadSubscription { user }
            | Change::Forgot { user } => {
                users.insert(*user);
            }
            Change::ToServer { .. } | Change::Relay { .. } | Change::Gap { .. } => {}
            Change::DeviceList { user } | Change::Profile { user } => {
                users.insert(*user);
                users.extend(app.wakeups.users().into_iter().filter(|other| {
                    crate::rooms::members::share_a_room(app, *user, *other).unwrap_or(true)
                }));
            }
        },
    }
}
