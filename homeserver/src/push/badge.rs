//! How many events a user has not read in all of their rooms: the number on an app's icon.
//!
//! Kept only for users with pushers, room by room, so that one more event costs one room's count.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::sync::Cache;
use store::keys::{RoomNum, UserNum};

use super::unread::{self, Counts};
use crate::{error::ApiResult, server::App};

/// How many users' numbers stay in memory; those of others are made anew from all of their rooms.
const BADGES_CACHED_MAX: usize = 10_000;

/// Rooms with something unread.
type Rooms = BTreeMap<RoomNum, Counts>;

/// The numbers of users with pushers.
#[derive(Debug)]
pub struct Badges(Cache<UserNum, Arc<Mutex<Rooms>>>);

impl Default for Badges {
    fn default() -> Self {
        Self(Cache::new(BADGES_CACHED_MAX))
    }
}

/// Looks at a room again. Whether the user has less to read than they were told; `None`: it is not
/// known what they were told, and it will be counted when it is told next.
///
/// # Errors
/// When the store cannot be read.
pub fn refresh(app: &App, user: UserNum, room: RoomNum) -> ApiResult<Option<bool>> {
    let Some(badge) = app.push.badges.0.get(&user) else {
        return Ok(None);
    };
    let counts = of_room(app, user, room)?;
    let mut rooms = badge.lock().unwrap_or_else(PoisonError::into_inner);
    let before = rooms.remove(&room).unwrap_or_default();
    if counts.notify > 0 {
        rooms.insert(room, counts);
    }
    Ok(Some(counts.notify < before.notify))
}

/// Forgets a user's number: something changed for all of their rooms.
pub fn forget(app: &App, user: UserNum) {
    app.push.badges.0.remove(&user);
}

/// How many unread events, and how many missed calls among them, a user has in all of their rooms.
///
/// # Errors
/// When the store cannot be read.
pub fn total(app: &App, user: UserNum) -> ApiResult<(u64, u64)> {
    let badge = match app.push.badges.0.get(&user) {
        Some(badge) => badge,
        None => {
            let mut rooms = Rooms::new();
            for (room, _) in app.store.user_rooms(user)? {
                let counts = of_room(app, user, room)?;
                if counts.notify > 0 {
                    rooms.insert(room, counts);
                }
            }
            let badge = Arc::new(Mutex::new(rooms));
            app.push.badges.0.insert(user, badge.clone());
            badge
        }
    };
    let rooms = badge.lock().unwrap_or_else(PoisonError::into_inner);
    let sum = |count: fn(&Counts) -> u64| rooms.values().map(count).sum();
    Ok((sum(|counts| counts.notify), sum(|counts| counts.calls)))
}

fn of_room(app: &App, user: UserNum, room: RoomNum) -> ApiResult<Counts> {
    let row = app.store.user_room(user, room)?;
    let Some(view) = app.store.room(room)? else {
        return Ok(Counts::default());
    };
    let user_id = app.store.user_id(user)?;
    let until = app.store.published();
    Ok(unread::of(app, &view, user, &user_id, row.as_ref(), until)?.total())
}
