//! The lowest layer: rows of bytes in key order, behind a trait with four methods and three
//! engines. [`open`] gives sled (the default), fjall or memory; everything above this file is
//! the same for all three, and so are the tests (`kv/tests.rs`, `tests/kill.rs`,
//! `tests/power_loss.rs`).
//!
//! What it deliberately does not do: it knows no keyspaces, no events and no numbers, it has no
//! transactions that read, no iterators that outlive a call, and it makes no ids. A commit is
//! data. That is what lets an engine that spans machines take this place later.
//!
//! | File | What |
//! |---|---|
//! | `guard.rs` | around every engine: sizes, one row a key, read-only after the first failed write |
//! | `directory.rs` | whose directory it is: stamp, lock, free space |
//! | `sled.rs`, `layout.rs` | sled and how rows lie in it |
//! | `fjall.rs`, `memory.rs` | the other two |
//!
//! Spec: none; no client or server ever sees this.

mod directory;
mod fjall;
mod guard;
mod layout;
mod memory;
mod sled;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::guard::Guarded;
pub use self::memory::Memory;

/// A key and what to store under it; `None` deletes the row.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// What [`Kv::scan`] calls with each key and value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Longest key, in bytes. Keys are never empty.
pub const KEY_BYTES_MAX: usize = 512;

/// Longest value, in bytes (1 MiB). Anything larger belongs in a file named by its hash.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Sorts after every key: the `to` of a scan that has no upper end.
pub const END: &[u8] = &[0xff; KEY_BYTES_MAX + 1];

/// Free disk space below which an engine is not opened, in bytes (64 MiB).
///
/// Opening writes: sled rewrites torn segments, fjall replays its journal into tables. Better
/// to stop before that than halfway through.
pub const FREE_BYTES_MIN: u64 = 64 << 20;

/// From which end [`Kv::scan`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

/// Rows of bytes in key order.
///
/// Every method blocks on the disk: call them from threads that may block. Keys are 1 to
/// [`KEY_BYTES_MAX`] bytes, values up to [`VALUE_BYTES_MAX`]; longer ones are a bug of the
/// caller and panic.
pub trait Kv: Send + Sync + 'static {
    /// The value under `key`.
    ///
    /// # Errors
    /// The disk could not be read, or what it holds is damaged. Not finding the row is no error.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Visits rows with from <= key < to in `direction`, until `visit` breaks.
    ///
    /// Rows are read in pages. A page shows every batch wholly or not at all; the next page may
    /// show batches that were applied in between. The first page is at least
    /// [`FIRST_PAGE_ROWS`] rows. `visit` runs between the pages, so it may take its time and may
    /// call this engine again; a write waits at most for one page.
    ///
    /// # Errors
    /// As for [`get`](Kv::get); some rows may have been visited by then.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError>;

    /// Applies all rows or none; visible to readers at once, durable after the next
    /// [`flush`](Kv::flush). Of several rows with one key the last counts.
    ///
    /// Only one caller ever writes: the committer.
    ///
    /// # Errors
    /// [`KvError::ReadOnly`], on the first failure and on every call after it. Readers of this
    /// process may then see part of the batch; after a restart they see none of it.
    fn apply(&self, rows: &[Row]) -> Result<(), KvError>;

    /// Returns once everything applied survives kill -9 and power loss.
    ///
    /// # Errors
    /// [`KvError::ReadOnly`], on the first failure and on every call after it. What was applied
    /// since the last successful flush may or may not be there after a restart.
    fn flush(&self) -> Result<(), KvError>;
}

/// Rows in the first page of a scan at the least: so many are always seen at one moment.
pub const FIRST_PAGE_ROWS: usize = 16;

/// Which engine, and what it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// sled 0.34: the default.
    Sled {
        /// Memory for the nodes that were read or written lately, in bytes.
        cache_bytes: u64,
    },
    /// fjall 3: for where disk space or write load is dear.
    Fjall {
        /// Block cache, in bytes. Write buffers of up to 128 MiB come on top.
        cache_bytes: u64,
    },
    /// Nothing on disk, for simulations and tests; the directory is ignored.
    Memory,
}

impl Engine {
    /// The engine's name as the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Sled { .. } => "sled",
            Engine::Fjall { .. } => "fjall",
            Engine::Memory => "memory",
        }
    }
}

/// What can go wrong below the store.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The operating system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: "read", "flush", ….
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process, or another handle in this one, has the directory open.
    #[error("the store in {} is in use by another process: stop it first", directory.display())]
    InUse {
        /// The store's directory.
        directory: PathBuf,
    },
    /// Too little free space to start.
    #[error(
        "{} has {free_bytes} bytes free and the store needs {FREE_BYTES_MIN} to start: free some space",
        directory.display()
    )]
    DiskFull {
        /// The store's directory.
        directory: PathBuf,
        /// What the file system has left, in bytes.
        free_bytes: u64,
    },
    /// The directory belongs to another engine.
    #[error(
        "the store in {} was made by {found} and the configuration says {wanted}: set the engine \
         to {found}, or convert the store with `guildhall compact`",
        directory.display()
    )]
    OtherEngine {
        /// The store's directory.
        directory: PathBuf,
        /// The engine named by the stamp.
        found: String,
        /// The engine asked for.
        wanted: &'static str,
    },
    /// The directory holds something else than a store of ours.
    #[error(
        "{} holds {found}, not a store of this server: choose an empty directory",
        directory.display()
    )]
    NotAStore {
        /// The directory.
        directory: PathBuf,
        /// What it seems to hold.
        found: String,
    },
    /// What is on the disk is not what was written.
    #[error(
        "the store in {} is damaged ({cause}): bring back the last backup with `guildhall \
         restore`, or save what can still be read with `guildhall compact`",
        directory.display()
    )]
    Damaged {
        /// The store's directory.
        directory: PathBuf,
        /// What the engine said.
        cause: String,
    },
    /// The engine refused, for a reason of its own.
    #[error("{engine} cannot {action} the store in {}", directory.display())]
    Engine {
        /// Which engine.
        engine: &'static str,
        /// What was tried.
        action: &'static str,
        /// The store's directory.
        directory: PathBuf,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A write failed, now or earlier, and nothing is written any more until a restart.
    ///
    /// After a failed write or sync nobody knows what the disk holds, and trying again can
    /// report success for data that is gone. Whoever sees this must make it loud.
    #[error("the store no longer writes: {cause}")]
    ReadOnly {
        /// The first failure.
        cause: Arc<KvError>,
    },
}

/// Opens or creates the store in `directory`.
///
/// # Errors
/// The directory is in use, belongs to another engine or to something else, is damaged, or its
/// disk is nearly full; [`KvError`] says which, and what to do.
pub fn open(engine: Engine, directory: &Path) -> Result<Arc<dyn Kv>, KvError> {
    Ok(match engine {
        Engine::Memory => Memory::default().kv(),
        Engine::Sled { cache_bytes } => {
            let claim = directory::claim(directory, engine.name())?;
            let opened = without_panic(directory, || sled::Sled::open(directory, cache_bytes))?;
            claim.created()?;
            Arc::new(Guarded::on_disk(opened, claim))
        }
        Engine::Fjall { cache_bytes } => {
            let claim = directory::claim(directory, engine.name())?;
            let opened = without_panic(directory, || fjall::Fjall::open(directory, cache_bytes))?;
            claim.created()?;
            Arc::new(Guarded::on_disk(opened, claim))
        }
    })
}

/// Runs `work` of an engine; a panic in it becomes [`KvError::Damaged`].
///
/// Both engines assert what they believe about their files, so damage arrives as a panic as
/// often as it does as an error.
fn without_panic<T>(
    directory: &Path,
    work: impl FnOnce() -> Result<T, KvError>,
) -> Result<T, KvError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said: &dyn fmt::Display = if let Some(said) = panic.downcast_ref::<String>() {
            said
        } else if let Some(said) = panic.downcast_ref::<&str>() {
            said
        } else {
            &"the engine panicked"
        };
        Err(KvError::Damaged {
            directory: directory.to_owned(),
            cause: said.to_string(),
        })
    })
}

/// Does an error of the operating system say that a file is not as it was written?
///
/// A file that is shorter than it should be, or not there at all, is for a store what a wrong
/// checksum is.
fn means_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound | io::ErrorKind::InvalidData
    )
}
