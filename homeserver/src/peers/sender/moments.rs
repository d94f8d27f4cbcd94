//! What is true only for a while, and is told to those servers that are concerned: typing, receipts, presence.
//!
//! Spec: server-server API, "Typing Notifications", "Receipts", "Presence".

use std::collections::{BTreeMap, BTreeSet};

use federation::wire::queue::Moment as Told;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, UInt,
    api::federation::transactions::edu::{PresenceUpdate, ReceiptData},
    events::receipt::{Receipt, ReceiptThread},
    presence::PresenceState,
};
use serde::Deserialize;
use store::{
    keys::{Position, RoomNum, UserNum},
    rooms::Membership,
};

use super::servers::Servers;
use crate::{ephemeral::Moment, error::ApiResult, presence::SAY_AGAIN_MS, receipts, server::App};

/// How often it is said again that somebody still types, in milliseconds: others forget it after 60 s.
const TYPING_AGAIN_MS: u64 = 40_000;

/// To whom something is told.
pub(super) type Addressed = (BTreeSet<OwnedServerName>, Told);

/// What was told so far.
#[derive(Debug)]
pub(super) struct Telling {
    /// Up to here.
    told: Moment,
    /// Local users who type, with when that was said last.
    typing: BTreeMap<(RoomNum, UserNum), u64>,
    /// When it is said again who is there.
    presence_at_ms: u64,
}

#[derive(Deserialize)]
struct Shown {
    presence: PresenceState,
    #[serde(default)]
    last_active_ago: UInt,
    #[serde(default)]
    currently_active: bool,
    status_msg: Option<String>,
}

impl Telling {
    pub(super) fn new(app: &App) -> Self {
        Self {
            told: app.moments.last(),
            typing: BTreeMap::new(),
            presence_at_ms: app.clock.now_ms() + SAY_AGAIN_MS,
        }
    }

    /// Up to which moment things are told.
    pub(super) fn told(&self) -> Moment {
        self.told
    }

    /// When there is something to say again, in milliseconds since the epoch.
    pub(super) fn wake_at_ms(&self, app: &App) -> Option<u64> {
        let typing = self
            .typing
            .values()
            .min()
            .map(|said| said + TYPING_AGAIN_MS);
        let presence = app.config.presence.enabled.then_some(self.presence_at_ms);
        [typing, presence].into_iter().flatten().min()
    }

    /// What there is to tell, where the log was read up to `position`.
    pub(super) fn take(
        &mut self,
        app: &App,
        servers: &mut Servers,
        position: Position,
    ) -> ApiResult<Vec<Addressed>> {
        let mut out = Vec::new();
        let now_ms = app.clock.now_ms();
        let until = app.moments.last();
        if until > self.told {
            for room in app.typing.rooms_changed_since(self.told) {
                self.typing_in(app, servers, (room, position), now_ms, &mut out)?;
            }
        }
        let again: Vec<_> = self
            .typing
            .iter()
            .filter(|(_, said)| **said + TYPING_AGAIN_MS <= now_ms)
            .map(|(who, _)| *who)
            .collect();
        for (room, user) in again {
            self.typing.insert((room, user), now_ms);
            typing(app, servers, (room, position), user, true, &mut out)?;
        }
        if app.config.presence.enabled {
            let mut users = app.presence.changed_since(self.told);
            if self.presence_at_ms <= now_ms {
                self.presence_at_ms = now_ms + SAY_AGAIN_MS;
                users.extend(app.presence.known());
            }
            for user in users {
                let to = servers_of(app, servers, user, position)?;
                out.extend(presence(app, user)?.map(|update| (to, update)));
            }
        }
        self.told = until;
        out.retain(|(to, _)| !to.is_empty());
        Ok(out)
    }

    fn typing_in(
        &mut self,
        app: &App,
        servers: &mut Servers,
        (room, position): (RoomNum, Position),
        now_ms: u64,
        out: &mut Vec<Addressed>,
    ) -> ApiResult<()> {
        let mut now = BTreeSet::new();
        for user in app
            .typing
            .changed_since(room, self.told)
            .unwrap_or_default()
        {
            if app.is_local(&app.store.user_id(user)?) {
                now.insert(user);
            }
        }
        let of_room = (room, UserNum(0))..=(room, UserNum(u64::MAX));
        let before: BTreeSet<UserNum> = self
            .typing
            .range(of_room)
            .map(|((_, user), _)| *user)
            .collect();
        for user in now.difference(&before) {
            self.typing.insert((room, *user), now_ms);
            typing(app, servers, (room, position), *user, true, out)?;
        }
        for user in before.difference(&now) {
            self.typing.remove(&(room, *user));
            typing(app, servers, (room, position), *user, false, out)?;
        }
        Ok(())
    }
}

fn typing(
    app: &App,
    servers: &mut Servers,
    (room, position): (RoomNum, Position),
    user: UserNum,
    typing: bool,
    out: &mut Vec<Addressed>,
) -> ApiResult<()> {
    let to = others(app, servers, room, position)?;
    if let Some(room) = app.store.room_id(room)? {
        let user = app.store.user_id(user)?;
        out.push((to, Told::Typing { room, user, typing }));
    }
    Ok(())
}

/// The other servers in a room.
pub(super) fn others(
    app: &App,
    servers: &mut Servers,
    room: RoomNum,
    position: Position,
) -> ApiResult<BTreeSet<OwnedServerName>> {
    let present = servers.at(app, room, position)?.keys();
    Ok(present
        .filter(|name| *name != app.server_name())
        .cloned()
        .collect())
}

/// The other servers that share a room with a user.
pub(super) fn servers_of(
    app: &App,
    servers: &mut Servers,
    user: UserNum,
    position: Position,
) -> ApiResult<BTreeSet<OwnedServerName>> {
    let mut found = BTreeSet::new();
    if !app.is_local(&app.store.user_id(user)?) {
        return Ok(found);
    }
    for (room, row) in app.store.user_rooms(user)? {
        if row.membership == Membership::Join {
            found.append(&mut others(app, servers, room, position)?);
        }
    }
    Ok(found)
}

/// How a local user is there, as other servers are told it.
pub(super) fn presence(app: &App, user: UserNum) -> ApiResult<Option<Told>> {
    let user_id = app.store.user_id(user)?;
    if !app.is_local(&user_id) {
        return Ok(None);
    }
    let content = app.presence.content(user, app.clock.now_ms());
    let Ok(shown) = serde_json::from_value::<Shown>(content) else {
        return Ok(None);
    };
    let mut update = PresenceUpdate::new(user_id, shown.presence, shown.last_active_ago);
    update.currently_active = shown.currently_active;
    update.status_msg = shown.status_msg;
    Ok(Some(Told::Presence(update)))
}

/// The public receipts of a local user that were set at `position`.
pub(super) fn receipts(
    app: &App,
    servers: &mut Servers,
    room: RoomNum,
    user: UserNum,
    position: Position,
) -> ApiResult<Vec<Addressed>> {
    let user_id = app.store.user_id(user)?;
    let mut out = Vec::new();
    if !app.is_local(&user_id) {
        return Ok(out);
    }
    let to = others(app, servers, room, position)?;
    let Some(room_id) = app.store.room_id(room)?.filter(|_| !to.is_empty()) else {
        return Ok(out);
    };
    let before = position.saturating_sub(1);
    // One that was overtaken since is found at its later position.
    for receipt in receipts::changed(&app.store, room, user, before, position)? {
        if receipt.user != user || receipt.kind != "m.read" {
            continue;
        }
        let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(receipt.row.ts));
        let mut data = Receipt::new(ts);
        let thread = Some(receipt.thread).filter(|thread| !thread.is_empty());
        let Ok(thread) = ReceiptThread::try_from(thread) else {
            continue;
        };
        data.thread = thread;
        let told = Told::Receipt {
            room: room_id.clone(),
            user: user_id.clone(),
            data: ReceiptData::new(data, vec![receipt.row.event_id]),
        };
        out.push((to.clone(), told));
    }
    Ok(out)
}
