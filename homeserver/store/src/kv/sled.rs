//! The default engine: sled 0.34.7 and no other, with what it takes to use it safely.
//!
//! - `flush` of sled only writes. What makes a batch last is the `sync_data` after it, on a
//!   handle of our own to sled's one data file.
//! - No value above 4 KB, no run of `ff` in a key: see `layout.rs`.
//! - Segments of 2 MiB instead of 512 KiB: a node of long keys would otherwise outgrow what sled
//!   keeps in its data file and go to a file that is never synced.
//! - `flush_every_ms` stays on, because sled cleans its segments in that thread. `flush_async`
//!   is never called: it deadlocks.
//! - A snapshot that was being written at a crash is removed before opening; sled would call it
//!   corruption.

use std::fs::{self, File};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ::sled::{Batch, Config, Db, Error, IVec};

use super::directory::io_error;
use super::layout::{self, Head, Stored};
use super::{Direction, FIRST_PAGE_ROWS, Kv, KvError, Row, Visit, means_damage};

/// sled's segment size, in bytes; fixed at creation.
///
/// sled moves a node out of its data file at a quarter of this. The largest node has 319
/// children with keys of up to 1,030 bytes (512, each escaped, and a chunk number): 333 KB.
const SEGMENT_BYTES: usize = 2 << 20;

/// sled counts a node in its cache by its size in the file; in memory, with keys and values apart, it takes twice that.
const CACHE_COUNTED_HALF: u64 = 2;

/// Most rows in one page of a scan: what a write may have to wait for.
const PAGE_ROWS_MAX: usize = 256;

/// A page ends with the row that makes it this large, in bytes (256 KiB).
const PAGE_BYTES_MAX: usize = 256 << 10;

/// How often a lock is tried that outlives the store that it belonged to.
const RELEASED_TRIES: usize = 500;

/// After what time it is tried again.
const RELEASED_AGAIN: Duration = Duration::from_millis(10);

/// An open sled store.
pub(super) struct Sled {
    rows: Db,
    /// sled's data file, for syncing.
    data: File,
    directory: PathBuf,
    /// Held for writing while a batch is applied, for reading while a page or a chunked value is
    /// read: so neither sees half a batch.
    batch: RwLock<()>,
    /// Which first bytes of keys have, or had since opening, a chunked value. Only under those
    /// must a write look whether it replaces one; most kinds of rows never have one.
    chunked: Box<[AtomicBool]>,
}

/// One row as a page holds it: sled's key, and the value.
struct Found {
    key: IVec,
    value: Value,
}

enum Value {
    /// With its tag, as sled has it: not copied.
    Whole(IVec),
    Assembled(Vec<u8>),
}

/// Rows that were read at one moment.
struct Page {
    rows: Vec<Found>,
    /// Is there nothing after them?
    last: bool,
}

type Range = (Bound<IVec>, Bound<IVec>);

impl Sled {
    /// Opens or creates the store in `directory`, which the caller has claimed.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Sled, KvError> {
        remove_unfinished_snapshots(directory)?;
        let failed = |error| failure(directory, "open", error);
        let config = Config::new()
            .path(directory)
            .cache_capacity(cache_bytes / CACHE_COUNTED_HALF)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(500));
        let rows = open_released(&config).map_err(failed)?;
        rows.flush().map_err(failed)?;
        let path = directory.join("db");
        let data = File::options()
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let chunked = find_chunked(&rows).map_err(failed)?;
        Ok(Sled {
            rows,
            data,
            directory: directory.to_owned(),
            batch: RwLock::new(()),
            chunked,
        })
    }

    fn failure(&self, action: &'static str, error: Error) -> KvError {
        failure(&self.directory, action, error)
    }

    fn damaged(&self, key: &[u8]) -> KvError {
        KvError::Damaged {
            directory: self.directory.clone(),
            // Not the key: it may name a user.
            cause: format!(
                "a row under {:?}, {} bytes, cannot be read",
                key.first(),
                key.len()
            ),
        }
    }

    /// What sled has under a row's key.
    fn stored(&self, key: &[u8]) -> Result<Option<IVec>, KvError> {
        self.rows
            .get(layout::escape(key))
            .map_err(|error| self.failure("read", error))
    }

    /// Puts the chunks of a value together. The caller holds `batch`.
    fn assemble(&self, key: &[u8], head: Head) -> Result<Vec<u8>, KvError> {
        let mut value = Vec::with_capacity(usize::from(head.chunks) * layout::STORED_BYTES_MAX);
        for number in 0..head.chunks {
            let chunk = self
                .rows
                .get(layout::chunk_key(key, number))
                .map_err(|error| self.failure("read", error))?
                .ok_or_else(|| self.damaged(key))?;
            value.extend_from_slice(&chunk);
        }
        if Head::of(&value) == head {
            Ok(value)
        } else {
            Err(self.damaged(key))
        }
    }

    /// Reads up to `rows` rows of `range`, all as they are at one moment.
    fn page(&self, range: Range, direction: Direction, rows: usize) -> Result<Page, KvError> {
        let _no_batch = self.batch.read().unwrap_or_else(PoisonError::into_inner);
        // sled's iterator keeps a copy of the node it is in: a fresh one for every page.
        let mut found = self.rows.range::<IVec, _>(range);
        let mut page = Page {
            rows: Vec::with_capacity(rows),
            last: false,
        };
        let mut bytes = 0;
        while page.rows.len() < rows && bytes < PAGE_BYTES_MAX {
            let next = match direction {
                Direction::Ascending => found.next(),
                Direction::Descending => found.next_back(),
            };
            let Some(row) = next else {
                page.last = true;
                break;
            };
            let (key, stored) = row.map_err(|error| self.failure("read", error))?;
            let value = match layout::decode(&stored) {
                Some(Stored::Whole(_)) => Value::Whole(stored),
                Some(Stored::Chunked(head)) => {
                    let key = layout::unescape(&key).ok_or_else(|| self.damaged(&key))?;
                    Value::Assembled(self.assemble(&key, head)?)
                }
                None => return Err(self.damaged(&key)),
            };
            bytes += value.bytes().len();
            page.rows.push(Found { key, value });
        }
        Ok(page)
    }

    /// How many chunks the row has now. Reads nothing if no row of its kind ever had any.
    fn chunks(&self, key: &[u8]) -> Result<u16, KvError> {
        if !self.may_be_chunked(key).load(Ordering::Relaxed) {
            return Ok(0);
        }
        let Some(stored) = self.stored(key)? else {
            return Ok(0);
        };
        match layout::decode(&stored) {
            Some(Stored::Whole(_)) => Ok(0),
            Some(Stored::Chunked(head)) => Ok(head.chunks),
            None => Err(self.damaged(key)),
        }
    }

    fn may_be_chunked(&self, key: &[u8]) -> &AtomicBool {
        let first = usize::from(*key.first().expect("keys are not empty"));
        self.chunked
            .get(first)
            .expect("there is a flag for each of the 256 bytes")
    }
}

impl Kv for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let Some(stored) = self.stored(key)? else {
            return Ok(None);
        };
        if let Some(Stored::Whole(value)) = layout::decode(&stored) {
            return Ok(Some(value.to_vec()));
        }
        // Head and chunks must be of one batch: once more, with the writer kept out.
        let _no_batch = self.batch.read().unwrap_or_else(PoisonError::into_inner);
        let Some(stored) = self.stored(key)? else {
            return Ok(None);
        };
        match layout::decode(&stored) {
            Some(Stored::Whole(value)) => Ok(Some(value.to_vec())),
            Some(Stored::Chunked(head)) => self.assemble(key, head).map(Some),
            None => Err(self.damaged(key)),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        let mut low = Bound::Included(IVec::from(&*layout::escape(from)));
        let mut high = Bound::Excluded(IVec::from(&*layout::escape(to)));
        let mut rows = FIRST_PAGE_ROWS;
        loop {
            let page = self.page((low.clone(), high.clone()), direction, rows)?;
            for found in &page.rows {
                let key = layout::unescape(&found.key).ok_or_else(|| self.damaged(&found.key))?;
                if visit(&key, found.value.bytes()).is_break() {
                    return Ok(());
                }
            }
            match page.rows.last() {
                Some(found) if !page.last => match direction {
                    Direction::Ascending => low = Bound::Excluded(found.key.clone()),
                    Direction::Descending => high = Bound::Excluded(found.key.clone()),
                },
                _ => return Ok(()),
            }
            rows = (rows * 4).min(PAGE_ROWS_MAX);
        }
    }

    fn apply(&self, rows: &[Row]) -> Result<(), KvError> {
        let mut batch = Batch::default();
        for (key, value) in rows {
            let old_chunks = self.chunks(key)?;
            let mut new_chunks = 0;
            let stored = layout::escape(key);
            match value {
                None => batch.remove(&*stored),
                Some(value) if value.len() <= layout::WHOLE_BYTES_MAX => {
                    batch.insert(&*stored, layout::whole(value));
                }
                Some(value) => {
                    let head = Head::of(value);
                    for (number, chunk) in (0..).zip(layout::chunks(value)) {
                        batch.insert(layout::chunk_key(key, number), chunk);
                    }
                    batch.insert(&*stored, head.encode());
                    self.may_be_chunked(key).store(true, Ordering::Relaxed);
                    new_chunks = head.chunks;
                }
            }
            for number in new_chunks..old_chunks {
                batch.remove(layout::chunk_key(key, number));
            }
        }
        let _no_reader = self.batch.write().unwrap_or_else(PoisonError::into_inner);
        self.rows
            .apply_batch(batch)
            .map_err(|error| self.failure("write", error))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.rows
            .flush()
            .map_err(|error| self.failure("flush", error))?;
        self.data
            .sync_data()
            .map_err(io_error("sync", &self.directory))
    }
}

impl Value {
    fn bytes(&self) -> &[u8] {
        match self {
            Value::Whole(stored) => stored.split_first().map_or(&[], |(_tag, value)| value),
            Value::Assembled(value) => value,
        }
    }
}

/// Opens a store that this process may have closed a moment ago: a thread of sled's holds its lock a little longer.
/// Nobody else can hold it, as the directory is claimed.
fn open_released(config: &Config) -> Result<Db, Error> {
    for _ in 0..RELEASED_TRIES {
        match config.open() {
            Err(Error::Io(error)) if error.to_string().contains("acquire lock") => {
                std::thread::sleep(RELEASED_AGAIN);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn remove_unfinished_snapshots(directory: &Path) -> Result<(), KvError> {
    let failed = |source| io_error("read", directory)(source);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            let path = entry.path();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

/// Which first bytes of keys have chunked values: one look-up for each that has, and one more.
fn find_chunked(rows: &Db) -> Result<Box<[AtomicBool]>, Error> {
    let chunked: Box<[AtomicBool]> = (0..=u8::MAX).map(|_| AtomicBool::new(false)).collect();
    let mut next = Some(0);
    while let Some(first) = next {
        next = match rows
            .range(layout::chunks_from(first)..)
            .next()
            .transpose()?
        {
            Some((key, _chunk)) => layout::chunk_first_byte(&key),
            None => None,
        };
        if let Some(found) = next {
            if let Some(flag) = chunked.get(usize::from(found)) {
                flag.store(true, Ordering::Relaxed);
            }
            next = found.checked_add(1);
        }
    }
    Ok(chunked)
}

/// Sorts sled's errors into ours.
fn failure(directory: &Path, action: &'static str, error: Error) -> KvError {
    let directory = directory.to_owned();
    match error {
        Error::Io(source) if !means_damage(&source) => KvError::Io {
            action,
            path: directory,
            source,
        },
        Error::Unsupported(_) => KvError::Engine {
            engine: "sled",
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
