//! Following the log: everything that happens because something was written reads it from there.
//!
//! A reader holds nothing up: what was written is acknowledged before any reader has seen it. How far each
//! is behind stands in `/metrics`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use store::{Store, keys::Position, log::LogEntry};

/// How long after a failure of the store the log is read again.
const RETRY: Duration = Duration::from_secs(10);

/// A reader of the log, and how far it is.
#[derive(Clone, Debug)]
pub struct Reader {
    name: Arc<str>,
    position: Arc<AtomicU64>,
}

impl Reader {
    /// A reader at the beginning. [`crate::metrics::Metrics::reader`] makes one that is measured.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into().into(),
            position: Arc::default(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Up to where it has dealt with everything.
    pub fn position(&self) -> Position {
        self.position.load(Relaxed)
    }

    /// It has dealt with everything up to here.
    pub fn at(&self, position: Position) {
        self.position.store(position, Relaxed);
    }

    /// The log behind `position`, with which it has dealt: at most `limit` entries, as soon as there is one.
    ///
    /// Does not fail: while the store cannot be read, it tries again.
    pub async fn next(
        &self,
        store: &Store,
        position: Position,
        limit: usize,
    ) -> Vec<(Position, LogEntry)> {
        self.at(position);
        loop {
            match store.next_log(position, limit).await {
                Ok(entries) => return entries,
                Err(error) => {
                    tracing::error!(%error, reader = self.name(), "the log cannot be read; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}
