//! What exactly changed of a local user's devices: what other servers are told piece by piece.
//!
//! One row for each device, also one that is gone, and one for the cross-signing keys. A user who makes and
//! deletes more than [`ROWS_MAX`] devices begins anew: a server that was told less than that looks up the
//! whole list. Spec: server-server API, "Device Management".

use store::{
    Commit, EntryIndex, Store,
    keys::{Keyspace, Packed, Position, Unpack, UserNum},
    kv::Direction,
};

use crate::error::ApiResult;

/// How many changes of a user are remembered.
const ROWS_MAX: usize = 200;

/// Stands in the place of a device for the cross-signing keys. No device has this ID.
pub const SIGNING_KEYS: &str = "";

/// Stands in the place of a device for the point before which nothing is remembered. Who calls a device like
/// this makes other servers look up all of their devices, no more.
const FLOOR: &str = "\0";

fn of_user(user: UserNum) -> Packed {
    Packed::key(Keyspace::DEVICE_CHANGED).user(user)
}

pub(super) fn put<'a>(
    store: &Store,
    commit: &mut Commit,
    entry: EntryIndex,
    user: UserNum,
    names: impl Iterator<Item = &'a str>,
) -> ApiResult<()> {
    let mut names = names.peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    let mut old = Vec::new();
    store.visit(&of_user(user), Direction::Ascending, |key, _| {
        old.push(key.to_vec());
        Ok(true)
    })?;
    if old.len() >= ROWS_MAX {
        for key in old {
            commit.delete(Packed::new().raw(&key));
        }
        let floor = of_user(user).text(FLOOR);
        commit.put_raw_at(entry, floor, Packed::new().position());
    }
    for name in names {
        let key = of_user(user).text(name);
        commit.put_raw_at(entry, key, Packed::new().position());
    }
    Ok(())
}

/// What changed of a user behind `since`, oldest first, with the positions: device IDs or
/// [`SIGNING_KEYS`]. `None`: not everything is remembered.
///
/// # Errors
/// When the store cannot be read.
pub fn since(
    store: &Store,
    user: UserNum,
    since: Position,
) -> ApiResult<Option<Vec<(Position, String)>>> {
    let (mut changes, mut whole) = (Vec::new(), true);
    store.visit(&of_user(user), Direction::Ascending, |key, value| {
        let mut parts = Unpack::key(key);
        let what = parts.user().and(parts.text());
        if let (Some(what), Some(position)) = (what, Unpack(value).position())
            && position > since
        {
            if what == FLOOR {
                whole = false;
            } else {
                changes.push((position, what));
            }
        }
        Ok(true)
    })?;
    changes.sort_unstable();
    Ok(whole.then_some(changes))
}

#[cfg(test)]
mod tests {
    use store::{CacheSizes, kv::Engine, log::Change};

    use super::*;

    async fn change(store: &Store, user: UserNum, what: &str) -> Position {
        let mut commit = Commit::new();
        let entry = commit.log(Change::DeviceList { user });
        put(store, &mut commit, entry, user, std::iter::once(what)).unwrap();
        let committed = store.commit(commit).await.unwrap();
        committed.position(entry)
    }

    fn store() -> Store {
        let nowhere = std::path::Path::new("");
        Store::open(Engine::Memory, nowhere, CacheSizes::default()).unwrap()
    }

    #[tokio::test]
    async fn each_device_is_told_once_at_its_last_change() {
        let (store, user) = (store(), UserNum(1));
        change(&store, user, "A").await;
        let b = change(&store, user, "B").await;
        let a = change(&store, user, "A").await;
        let keys = change(&store, user, SIGNING_KEYS).await;
        change(&store, UserNum(2), "C").await;
        let all = since(&store, user, 0).unwrap().unwrap();
        let expected = [(b, "B"), (a, "A"), (keys, "")];
        assert_eq!(all, expected.map(|(at, what)| (at, what.to_owned())));
        assert_eq!(since(&store, user, a).unwrap().unwrap().len(), 1);
        assert_eq!(since(&store, user, keys).unwrap().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn who_was_told_before_changes_were_forgotten_is_not_told_piece_by_piece() {
        let (store, user) = (store(), UserNum(1));
        let mut last = 0;
        for device in 0..ROWS_MAX {
            last = change(&store, user, &format!("D{device}")).await;
        }
        assert_eq!(since(&store, user, 0).unwrap().unwrap().len(), ROWS_MAX);
        let more = change(&store, user, "MORE").await;
        assert_eq!(since(&store, user, last).unwrap(), None);
        assert_eq!(since(&store, user, more).unwrap(), Some(Vec::new()));
        let next = change(&store, user, "NEXT").await;
        let told = since(&store, user, more).unwrap().unwrap();
        assert_eq!(told, [(next, "NEXT".to_owned())]);
    }
}
