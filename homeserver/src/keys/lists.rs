//! Whose devices a user has to look up again, because they changed or because a room is shared anew.
//!
//! Each change of a user's devices or keys is one row, at the position of its log entry; an older row
//! of the same user is deleted with it, so that there are never more rows than users. Who shares a
//! room is read from the rooms in which something happened.
//! Spec: client-server API, "Tracking the device list for a user".

pub mod changes;

use std::collections::BTreeSet;

use ruma::{DeviceId, OwnedUserId, UserId};
use serde::Serialize;
use store::{
    Commit, EntryIndex, Store,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    kv::Direction,
    log::Change,
    rooms::{Membership, RoomView},
};

use crate::{error::ApiResult, rooms::members::share_a_room, server::App};

/// How many users one answer names at most in each list; a client asks for the keys of the others when
/// it meets them.
const USERS_MAX: usize = 50_000;

/// Whose devices a client has to look up again, and whose it need not follow any more.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceLists {
    /// Users whose devices or keys changed, or who share a room with the user since.
    pub changed: BTreeSet<OwnedUserId>,
    /// Users who share no room with the user any more.
    pub left: BTreeSet<OwnedUserId>,
}

impl DeviceLists {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// What of a user changed, as other servers are told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A device: it is new, gone, renamed, or has other keys or signatures.
    Device(&'a DeviceId),
    /// Cross-signing keys.
    SigningKeys,
    /// Whatever a user of another server may have changed.
    Anything,
}

/// Tells that the devices or keys of `user` changed: everyone who shares a room with them learns of it.
///
/// # Errors
/// When the store cannot be read.
pub fn note(store: &Store, commit: &mut Commit, user: UserNum, what: What<'_>) -> ApiResult<()> {
    note_all(store, commit, user, [what])
}

/// As [`note`], for several changes at once.
///
/// # Errors
/// When the store cannot be read.
pub fn note_all<'a>(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    whats: impl IntoIterator<Item = What<'a>>,
) -> ApiResult<()> {
    let entry = note_row(store, commit, user, None)?;
    let names = whats.into_iter().filter_map(|what| match what {
        What::Device(device) => Some(device.as_str()),
        What::SigningKeys => Some(changes::SIGNING_KEYS),
        What::Anything => None,
    });
    changes::put(store, commit, entry, user, names)
}

/// Tells that what `viewer` sees of the keys of `user` changed: only `viewer` learns of it.
///
/// # Errors
/// When the store cannot be read.
pub fn note_for(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    viewer: UserNum,
) -> ApiResult<()> {
    note_row(store, commit, user, Some(viewer)).map(drop)
}

/// Where a user's device list stands for other servers: the position of the last change that everybody sees, 0 if there
/// was none. It only grows, and grows with each change.
///
/// Spec: server-server API, "Device Management", `stream_id`.
///
/// # Errors
/// When the store cannot be read.
pub fn stream_id(store: &Store, user: UserNum) -> ApiResult<Position> {
    let position = store.get_raw(last_key(user, 0))?;
    Ok(position
        .and_then(|value| Unpack(&value).position())
        .unwrap_or(0))
}

fn last_key(user: UserNum, viewer: u64) -> Packed {
    Packed::key(Keyspace::DEVICE_LIST_POSITION)
        .user(user)
        .u64(viewer)
}

fn note_row(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    viewer: Option<UserNum>,
) -> ApiResult<EntryIndex> {
    let whom = viewer.map_or(0, |viewer| viewer.0);
    let last = last_key(user, whom);
    if let Some(position) = store
        .get_raw(last.clone())?
        .and_then(|value| Unpack(&value).position())
    {
        commit.delete(change_key(position));
    }
    let entry = commit.log(Change::DeviceList {
        user: viewer.unwrap_or(user),
    });
    let row = Packed::new().user(user).u64(whom);
    let key = Packed::key(Keyspace::DEVICE_LIST_CHANGE).position();
    commit.put_raw_at(entry, key, row);
    commit.put_raw_at(entry, last, Packed::new().position());
    Ok(entry)
}

fn change_key(position: Position) -> Packed {
    Packed::key(Keyspace::DEVICE_LIST_CHANGE).i64(i64::try_from(position).unwrap_or(i64::MAX))
}

/// What changed for a user in `since < position <= until`.
///
/// `rooms` are those in which anything happened in between; without them all of the user's are looked
/// at. `keys` says whether anybody's devices or keys can have changed.
///
/// # Errors
/// When the store cannot be read.
pub fn between(
    app: &App,
    user: UserNum,
    since: Position,
    until: Position,
    rooms: Option<&BTreeSet<RoomNum>>,
    keys: bool,
) -> ApiResult<DeviceLists> {
    let mut changed = if keys {
        changed_keys(app, user, since, until)?
    } else {
        BTreeSet::new()
    };
    let mut parted = BTreeSet::new();
    let mine = match rooms {
        None => app.store.user_rooms(user)?,
        Some(rooms) => {
            let mut mine = Vec::new();
            for room in rooms {
                let row = app.store.user_room(user, *room)?;
                mine.extend(row.map(|row| (*room, row)));
            }
            mine
        }
    };
    for (room, row) in mine {
        let joined = row.membership == Membership::Join;
        if !joined && row.left_at <= since {
            continue;
        }
        let Some(view) = app.store.room(room)? else {
            continue;
        };
        let present = |met: &mut BTreeSet<UserNum>, also_invited: bool| {
            let members = view.head.members.iter();
            met.extend(members.filter_map(|(other, membership)| {
                let here = *membership == Membership::Join
                    || (also_invited && *membership == Membership::Invite);
                here.then_some(*other)
            }));
        };
        if !joined {
            present(&mut parted, false);
        } else if row.joined_at > since {
            present(&mut changed, true);
        } else {
            members_moved(app, &view, since, until, &mut changed, &mut parted)?;
        }
    }
    let mut lists = DeviceLists::default();
    for other in changed.into_iter().take(USERS_MAX) {
        lists.changed.insert(app.store.user_id(other)?);
    }
    parted.remove(&user);
    for other in parted.into_iter().take(USERS_MAX) {
        if !share_a_room(app, user, other)? {
            let other = app.store.user_id(other)?;
            lists.changed.remove(&other);
            lists.left.insert(other);
        }
    }
    Ok(lists)
}

/// The users, known to `user`, whose devices or keys changed.
fn changed_keys(
    app: &App,
    user: UserNum,
    since: Position,
    until: Position,
) -> ApiResult<BTreeSet<UserNum>> {
    let mut rows = BTreeSet::new();
    let (from, to) = (change_key(since + 1), change_key(until.saturating_add(1)));
    app.store.visit_range(
        &from.into_bytes(),
        &to.into_bytes(),
        Direction::Ascending,
        |_, value| {
            let mut parts = Unpack(value);
            if let (Some(whose), Some(viewer)) = (parts.user(), parts.u64()) {
                rows.insert((whose, viewer));
            }
            Ok(true)
        },
    )?;
    let mut changed = BTreeSet::new();
    for (whose, viewer) in rows {
        let concerned = match viewer {
            0 => whose == user || share_a_room(app, user, whose)?,
            viewer => viewer == user.0,
        };
        if concerned {
            changed.insert(whose);
        }
    }
    Ok(changed)
}

/// Who came into a room that the user was in all the time, and who left it.
fn members_moved(
    app: &App,
    view: &RoomView,
    since: Position,
    until: Position,
    came: &mut BTreeSet<UserNum>,
    parted: &mut BTreeSet<UserNum>,
) -> ApiResult<()> {
    let is_member = |kind: &str| kind == "m.room.member";
    let quiet = view.tail_since(since).is_some_and(|tail| {
        tail.iter()
            .all(|event| !is_member(&event.pdu.kind().to_string()))
    });
    if quiet {
        return Ok(());
    }
    for (_, changes) in app.store.state_changes(view.room, since, until)? {
        for change in changes {
            if !is_member(&change.kind) {
                continue;
            }
            let Ok(user_id) = UserId::parse(&*change.state_key) else {
                continue;
            };
            let Some(other) = app.store.find_user(&user_id)? else {
                continue;
            };
            let Some(row) = app.store.user_room(other, view.room)? else {
                continue;
            };
            match row.membership {
                Membership::Join if row.joined_at > since => came.insert(other),
                Membership::Invite => came.insert(other),
                Membership::Join => false,
                _ => row.left_at > since && parted.insert(other),
            };
        }
    }
    Ok(())
}
