//! The rows of the sender: their keys, and those that wait to be written.

use std::collections::BTreeMap;

use federation::wire::queue::Saved;
use ruma::{OwnedServerName, ServerName};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Position, RoomNum, Table, Unpack, UserNum},
    kv::Direction,
};

use crate::error::ApiResult;

/// How far each destination is.
pub(super) const DESTINATIONS: Table<Saved> = Table::new(Keyspace::DESTINATION);

/// Keyspaces whose keys begin with a destination, but for [`DESTINATIONS`].
pub(super) const OF_DESTINATION: [Keyspace; 5] = [
    Keyspace::DESTINATION_ROOM,
    Keyspace::DESTINATION_PENDING,
    Keyspace::DESTINATION_MESSAGE,
    Keyspace::DESTINATION_USER,
    Keyspace::DESTINATION_USER_TOLD,
];

/// The keys of a destination in one keyspace.
pub(super) fn of(keyspace: Keyspace, server: &ServerName) -> Packed {
    Packed::key(keyspace).text(server.as_str())
}

/// A room whose newest event a destination has not got.
pub(super) fn room(server: &ServerName, room: RoomNum) -> Packed {
    of(Keyspace::DESTINATION_ROOM, server).room(room)
}

/// A piece of the transaction that a destination has to be sent again.
pub(super) fn piece(server: &ServerName, piece: u64) -> Packed {
    of(Keyspace::DESTINATION_PENDING, server).u64(piece)
}

/// A message to devices that waits for a destination.
pub(super) fn message(server: &ServerName, position: Position) -> Packed {
    of(Keyspace::DESTINATION_MESSAGE, server).i64(i64::try_from(position).unwrap_or(i64::MAX))
}

/// A user of whose devices a destination has to be told.
pub(super) fn user(server: &ServerName, user: UserNum) -> Packed {
    of(Keyspace::DESTINATION_USER, server).user(user)
}

/// Up to where a destination was told of a user's devices.
pub(super) fn told(server: &ServerName, user: UserNum) -> Packed {
    of(Keyspace::DESTINATION_USER_TOLD, server).user(user)
}

/// The destinations that have rows in a keyspace. One look for each, however many rows it has.
pub(super) fn destinations(store: &Store, keyspace: Keyspace) -> ApiResult<Vec<OwnedServerName>> {
    let mut found: Vec<OwnedServerName> = Vec::new();
    let end = Packed::key(keyspace).end_of_prefix();
    let mut from = Packed::key(keyspace).into_bytes();
    loop {
        let mut name = None;
        store.visit_range(&from, &end, Direction::Ascending, |key, _| {
            name = Unpack::key(key).text();
            Ok(false)
        })?;
        let Some(name) = name else {
            return Ok(found);
        };
        from = Packed::key(keyspace).text(&name).end_of_prefix();
        found.extend(OwnedServerName::try_from(name).ok());
    }
}

/// Whether a destination has rows in a keyspace.
pub(super) fn has(store: &Store, keyspace: Keyspace, server: &ServerName) -> ApiResult<bool> {
    let mut found = false;
    store.visit(&of(keyspace, server), Direction::Ascending, |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

/// Rows that are to be written; kept until they are, as a store that fails may be asked again.
#[derive(Debug, Default)]
pub(super) struct Unwritten(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Unwritten {
    pub(super) fn put(&mut self, key: Packed, value: Packed) {
        self.0.insert(key.into_bytes(), Some(value.into_bytes()));
    }

    pub(super) fn delete(&mut self, key: Packed) {
        self.0.insert(key.into_bytes(), None);
    }

    /// Deletes every row behind a prefix, written or not.
    pub(super) fn delete_all(&mut self, store: &Store, prefix: &Packed) -> ApiResult<()> {
        let from = prefix.clone().into_bytes();
        for (_, value) in self.0.range_mut(from..prefix.end_of_prefix()) {
            *value = None;
        }
        store.visit(prefix, Direction::Ascending, |key, _| {
            self.0.insert(key.to_vec(), None);
            Ok(true)
        })?;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a row, written or not.
    pub(super) fn get(&self, store: &Store, key: Packed) -> ApiResult<Option<Vec<u8>>> {
        let key = key.into_bytes();
        match self.0.get(&key) {
            Some(value) => Ok(value.clone()),
            None => Ok(store.get_raw(Packed::new().raw(&key))?),
        }
    }

    pub(super) fn commit(&self) -> Commit {
        let mut commit = Commit::new();
        for (key, value) in &self.0 {
            let key = Packed::new().raw(key);
            match value {
                Some(value) => commit.put_raw(key, Packed::new().raw(value)),
                None => commit.delete(key),
            }
        }
        commit
    }

    pub(super) fn written(&mut self) {
        self.0.clear();
    }
}
