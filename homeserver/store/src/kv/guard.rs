//! What holds for every engine, wrapped around each of them: the sizes of keys and values, one
//! row a key in a batch, no flush when nothing changed, and no write after one that failed.
//!
//! It does not make writers wait for each other: there is only one, the committer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::directory::Claim;
use super::{Direction, KEY_BYTES_MAX, Kv, KvError, Row, VALUE_BYTES_MAX, Visit, without_panic};

/// An engine with the rules that hold for all engines.
pub(super) struct Guarded<E> {
    // Declared first, so that it is closed before the claim lets go of the directory.
    engine: E,
    directory: PathBuf,
    /// Set after an apply, taken by a flush: so a flush never misses what was applied before it.
    unflushed: AtomicBool,
    failed: OnceLock<Arc<KvError>>,
    _claim: Option<Claim>,
}

impl<E: Kv> Guarded<E> {
    /// Around an engine that owns the claimed directory.
    pub(super) fn on_disk(engine: E, claim: Claim) -> Guarded<E> {
        Guarded {
            engine,
            directory: claim.directory().to_owned(),
            unflushed: AtomicBool::new(false),
            failed: OnceLock::new(),
            _claim: Some(claim),
        }
    }

    /// Around an engine that has no directory.
    pub(super) fn in_memory(engine: E) -> Guarded<E> {
        Guarded {
            engine,
            directory: PathBuf::new(),
            unflushed: AtomicBool::new(false),
            failed: OnceLock::new(),
            _claim: None,
        }
    }

    /// Runs one write or sync; the first that fails is the last that is tried.
    fn write(&self, work: impl FnOnce() -> Result<(), KvError>) -> Result<(), KvError> {
        if let Some(cause) = self.failed.get() {
            return Err(KvError::ReadOnly {
                cause: Arc::clone(cause),
            });
        }
        without_panic(&self.directory, work).map_err(|error| {
            let cause = self.failed.get_or_init(|| Arc::new(error));
            KvError::ReadOnly {
                cause: Arc::clone(cause),
            }
        })
    }
}

impl<E: Kv> Kv for Guarded<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        assert_key(key);
        self.engine.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        self.engine.scan(from, to, direction, visit)
    }

    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        let mut last = BTreeMap::new();
        for row in rows {
            let (key, value) = row;
            assert_key(key);
            let bytes = value.as_ref().map_or(0, Vec::len);
            assert!(
                bytes <= VALUE_BYTES_MAX,
                "a value of {bytes} bytes belongs in a file"
            );
            last.insert(key, row);
        }
        self.write(|| {
            if last.len() == rows.len() {
                self.engine.apply(rows)
            } else {
                // A group of commits may touch a row more than once. Engines need not say which
                // of two rows with one key wins, so they never see two.
                let rows: Vec<Row> = last.into_values().cloned().collect();
                self.engine.apply(&rows)
            }
        })?;
        self.unflushed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        self.write(|| {
            if self.unflushed.swap(false, Ordering::SeqCst) {
                self.engine.flush()
            } else {
                Ok(())
            }
        })
    }
}

fn assert_key(key: &[u8]) {
    let bytes = key.len();
    assert!(
        (1..=KEY_BYTES_MAX).contains(&bytes),
        "a key has 1 to {KEY_BYTES_MAX} bytes: {bytes}"
    );
}
