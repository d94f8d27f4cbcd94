//! Who is online. In memory only: after a restart everybody is offline until they sync again.
//!
//! A user is what the most present of their devices is. A device is what it said last, until it has
//! not synced for a while. Spec: client-server API, "Presence".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedDeviceId, UserId};
use serde_json::{Value, json};
use store::keys::UserNum;

use crate::{
    ephemeral::{Moment, Moments},
    server::App,
};

/// How long a device counts as present after its last sync, in milliseconds.
const SYNCED_MS: u64 = 30_000;

/// How long a user who does nothing is still online, in milliseconds.
const IDLE_MS: u64 = 300_000;

/// How long what another server says of its user holds, in milliseconds: servers say it again every
/// [`SAY_AGAIN_MS`].
const HEARD_MS: u64 = 30 * 60_000;

/// How often other servers are told again of who is still there, in milliseconds. Spec: none; others do so.
pub const SAY_AGAIN_MS: u64 = 25 * 60_000;

/// How often it is looked who has gone.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How many devices of a user are told apart.
const DEVICES_MAX: usize = 16;

/// How many users are remembered.
const USERS_MAX: usize = 100_000;

/// How a user, or a device, is there; the later, the more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not at all.
    #[default]
    Offline,
    /// Idle.
    Unavailable,
    /// There.
    Online,
}

impl State {
    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "offline" => Some(Self::Offline),
            "unavailable" => Some(Self::Unavailable),
            "online" => Some(Self::Online),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Unavailable => "unavailable",
            Self::Online => "online",
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    devices: BTreeMap<OwnedDeviceId, (State, u64)>,
    shown: State,
    status: Option<String>,
    active_ms: u64,
    changed: Moment,
    /// What their server said of a user of another one, and until when that holds.
    heard: Option<(State, u64)>,
}

impl Entry {
    fn look(&self, now_ms: u64) -> State {
        if let Some((state, until_ms)) = self.heard {
            return if until_ms > now_ms {
                state
            } else {
                State::Offline
            };
        }
        let present = self.devices.values().map(|(state, _)| *state).max();
        match present.unwrap_or_default() {
            State::Online if self.active_ms + IDLE_MS <= now_ms => State::Unavailable,
            state => state,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    users: BTreeMap<UserNum, Entry>,
    by_moment: BTreeSet<(Moment, UserNum)>,
}

impl Inner {
    /// Notes how a user is now; whether others see a difference.
    fn settle(&mut self, moments: &Moments, user: UserNum, now_ms: u64, told: bool) -> bool {
        let Some(entry) = self.users.get_mut(&user) else {
            return false;
        };
        let state = entry.look(now_ms);
        if state == entry.shown && !told {
            return false;
        }
        self.by_moment.remove(&(entry.changed, user));
        entry.shown = state;
        entry.changed = moments.tick();
        self.by_moment.insert((entry.changed, user));
        true
    }
}

/// Who is online.
#[derive(Debug, Default)]
pub struct Presence(Mutex<Inner>);

impl Presence {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device says how its user is; with `status`, also what they are doing. Whether others see a
    /// difference.
    pub fn say(
        &self,
        moments: &Moments,
        (user, device): (UserNum, OwnedDeviceId),
        state: State,
        status: Option<Option<String>>,
        now_ms: u64,
    ) -> bool {
        let mut inner = self.lock();
        if inner.users.len() >= USERS_MAX && !inner.users.contains_key(&user) {
            return false;
        }
        let entry = inner.users.entry(user).or_default();
        let before = entry.devices.get(&device).map(|(state, _)| *state);
        if before != Some(state) && state == State::Online {
            entry.active_ms = now_ms;
        }
        if before.is_some() || entry.devices.len() < DEVICES_MAX {
            entry.devices.insert(device, (state, now_ms));
        }
        let mut told = false;
        if let Some(status) = status {
            entry.active_ms = now_ms;
            told = entry.status != status;
            entry.status = status;
        }
        inner.settle(moments, user, now_ms, told)
    }

    /// The server of a user says how they are. Whether others see a difference.
    pub fn hear(
        &self,
        moments: &Moments,
        user: UserNum,
        state: State,
        status: Option<String>,
        active_ms: u64,
        now_ms: u64,
    ) -> bool {
        let mut inner = self.lock();
        if inner.users.len() >= USERS_MAX && !inner.users.contains_key(&user) {
            return false;
        }
        let entry = inner.users.entry(user).or_default();
        entry.heard = Some((state, now_ms + HEARD_MS));
        entry.active_ms = active_ms.min(now_ms);
        let told = entry.status != status;
        entry.status = status;
        inner.settle(moments, user, now_ms, told)
    }

    /// A user did something.
    pub fn active(&self, user: UserNum, now_ms: u64) {
        if let Some(entry) = self.lock().users.get_mut(&user) {
            entry.active_ms = now_ms;
        }
    }

    /// Notes who has gone or become idle; `waits` says who waits in `/sync`. Whom others see
    /// changed.
    fn expire(
        &self,
        moments: &Moments,
        now_ms: u64,
        waits: impl Fn(UserNum) -> bool,
    ) -> Vec<UserNum> {
        let mut inner = self.lock();
        let mut gone = Vec::new();
        for (user, entry) in &mut inner.users {
            if !waits(*user) {
                entry
                    .devices
                    .retain(|_, (_, synced_ms)| *synced_ms + SYNCED_MS > now_ms);
            }
            if entry.look(now_ms) != entry.shown {
                gone.push(*user);
            }
        }
        gone.retain(|user| inner.settle(moments, *user, now_ms, false));
        gone
    }

    /// Whose presence changed after `since`.
    pub fn changed_since(&self, since: Moment) -> Vec<UserNum> {
        let inner = self.lock();
        let changed = inner.by_moment.range((since + 1, UserNum(0))..);
        changed.map(|(_, user)| *user).collect()
    }

    /// Those who are not offline, or say what they do.
    pub fn known(&self) -> Vec<UserNum> {
        let inner = self.lock();
        let told = |entry: &Entry| entry.shown != State::Offline || entry.status.is_some();
        let known = inner.users.iter().filter(|(_, entry)| told(entry));
        known.map(|(user, _)| *user).collect()
    }

    /// A user's presence, as clients are told it.
    pub fn content(&self, user: UserNum, now_ms: u64) -> Value {
        let inner = self.lock();
        let Some(entry) = inner.users.get(&user) else {
            return json!({ "presence": "offline" });
        };
        let mut content = json!({
            "presence": entry.shown.name(),
            "last_active_ago": now_ms.saturating_sub(entry.active_ms),
            "currently_active": entry.shown == State::Online,
        });
        if let (Some(status), Some(content)) = (&entry.status, content.as_object_mut()) {
            content.insert("status_msg".to_owned(), status.clone().into());
        }
        content
    }

    /// The event that tells a user's presence.
    pub fn event(&self, user: UserNum, user_id: &UserId, now_ms: u64) -> Value {
        json!({
            "type": "m.presence",
            "sender": user_id,
            "content": self.content(user, now_ms),
        })
    }
}

/// Looks who has gone, for ever.
pub async fn watch(app: App) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let waits = |user| app.wakeups.waits(user);
        for user in app.presence.expire(&app.moments, app.clock.now_ms(), waits) {
            app.wakeups.wake_contacts(&app, user);
        }
    }
}
