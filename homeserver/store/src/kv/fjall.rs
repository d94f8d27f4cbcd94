//! The engine for where disk space or write load is dear: fjall, a log-structured merge tree.
//! All rows lie in one keyspace, as they are; fjall takes values of any size we allow.
//!
//! Durable means: the batch is in the journal and the journal is synced. Whatever else fjall
//! writes (tables, versions) it can make again from the journal.

use std::ops::Bound;
use std::path::{Path, PathBuf};

use ::fjall::{Database, Error, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _};

use super::{Direction, Kv, KvError, Row, Visit, means_damage};

/// An open fjall store.
pub(super) struct Fjall {
    database: Database,
    rows: Keyspace,
    directory: PathBuf,
}

impl Fjall {
    /// Opens or creates the store in `directory`, which the caller has claimed.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Fjall, KvError> {
        let failed = |error| failure(directory, "open", error);
        let database = Database::builder(directory)
            .cache_size(cache_bytes)
            // Batches stay in the journal's buffer until `flush`, which is what makes them last.
            .manual_journal_persist(true)
            .open()
            .map_err(failed)?;
        let rows = database
            .keyspace("rows", KeyspaceCreateOptions::default)
            .map_err(failed)?;
        Ok(Fjall {
            database,
            rows,
            directory: directory.to_owned(),
        })
    }

    fn failure(&self, action: &'static str, error: Error) -> KvError {
        failure(&self.directory, action, error)
    }
}

impl Kv for Fjall {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        // Through a snapshot: reading the keyspace itself would see a batch while it is applied.
        let value = self
            .database
            .snapshot()
            .get(&self.rows, key)
            .map_err(|error| self.failure("read", error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut rows = self
            .database
            .snapshot()
            .range::<&[u8], _>(&self.rows, range);
        let mut next = || match direction {
            Direction::Ascending => rows.next(),
            Direction::Descending => rows.next_back(),
        };
        while let Some(row) = next() {
            let (key, value) = row
                .into_inner()
                .map_err(|error| self.failure("read", error))?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        let mut batch = self.database.batch();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(&self.rows, key.as_slice(), value.as_slice()),
                None => batch.remove(&self.rows, key.as_slice()),
            }
        }
        batch.commit().map_err(|error| self.failure("write", error))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|error| self.failure("flush", error))
    }
}

/// Sorts fjall's errors into ours.
fn failure(directory: &Path, action: &'static str, error: Error) -> KvError {
    let directory = directory.to_owned();
    match error {
        Error::Io(source) | Error::Storage(::fjall::LsmError::Io(source))
            if !means_damage(&source) =>
        {
            KvError::Io {
                action,
                path: directory,
                source,
            }
        }
        Error::Locked => KvError::InUse { directory },
        Error::Poisoned | Error::KeyspaceDeleted => KvError::Engine {
            engine: "fjall",
            action,
            directory,
            source: error.into(),
        },
        damage => KvError::Damaged {
            directory,
            cause: damage.to_string(),
        },
    }
}
