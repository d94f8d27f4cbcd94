//! The store: the only code that touches the disk for anything but media files.
//!
//! Reading order: [`keys`] (the whole schema) → [`Commit`] (how anything is written) → [`log`]
//! (how anything is learned of) → [`rooms`] (timelines, states, views).
//!
//! A read takes `&Store` and returns what is applied; whoever needs a consistent picture pins
//! [`Store::published`] first and ignores what lies behind it.

pub mod commit;
pub mod keys;
pub mod kv;
pub mod log;
pub mod rooms;

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use federation::room::StateMap;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;

pub use self::commit::{Commit, Committed, EntryIndex, Pending};
use self::{
    commit::Committer,
    keys::{Keyspace, Packed, Position, RoomNum, StateId, Table, Unpack, UserNum},
    kv::{Direction, Engine, Kv, KvError},
    log::{LogEntry, Tail},
    rooms::{AsideEvent, RoomCache, TimelineEvent},
};

/// The number of the schema that this code reads and writes.
pub const SCHEMA: u64 = 1;

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed.
    #[error("the store failed")]
    Kv(#[from] KvError),
    /// A write failed; the store takes no more of them.
    #[error("the store can no longer write")]
    Write(#[source] Arc<KvError>),
    /// A row is not what it should be.
    #[error("a row of keyspace {keyspace:#04x} is damaged: key {key}")]
    Corrupt {
        /// The first byte of the row's key.
        keyspace: u8,
        /// The key in hexadecimal.
        key: String,
    },
    /// A row is larger than the engine takes; nothing was written.
    #[error(
        "a row of {bytes} bytes cannot be stored, the limit is {}",
        kv::VALUE_BYTES_MAX
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// The directory was written by a newer version of this program.
    #[error(
        "the data directory has schema {found}, this version knows schemas up to {SCHEMA}: \
         start the newer version that wrote it, or restore a backup from before the upgrade"
    )]
    NewerSchema {
        /// The schema found.
        found: u64,
    },
}

impl StoreError {
    pub(crate) fn corrupt(keyspace: Keyspace, key: &[u8]) -> Self {
        use std::fmt::Write as _;
        let mut hex = String::new();
        for byte in key {
            write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Self::Corrupt {
            keyspace: keyspace.0,
            key: hex,
        }
    }
}

pub(crate) type EventCache =
    Arc<quick_cache::sync::Cache<OwnedEventId, Arc<TimelineEvent>, WeighEvent>>;

pub(crate) type AsideCache = quick_cache::sync::Cache<OwnedEventId, Arc<AsideEvent>, WeighAside>;

#[derive(Clone, Debug)]
pub(crate) struct WeighAside;

impl quick_cache::Weighter<OwnedEventId, Arc<AsideEvent>> for WeighAside {
    fn weight(&self, _: &OwnedEventId, event: &Arc<AsideEvent>) -> u64 {
        512 + 2 * event.pdu.json().len() as u64
    }
}
/// The event at a place of a timeline, to find it in [`EventCache`] without parsing its row.
pub(crate) type PlaceCache = quick_cache::sync::Cache<(RoomNum, i64), OwnedEventId>;

/// How many places of events stay in memory.
const PLACES_CACHED_MAX: usize = 32_768;

pub(crate) type StateCache = Arc<quick_cache::sync::Cache<(RoomNum, StateId), StateMap>>;

/// How many states of rooms stay in memory; they share what did not change between them.
const STATES_CACHED_MAX: usize = 512;

#[derive(Clone, Debug)]
pub(crate) struct WeighEvent;

impl quick_cache::Weighter<OwnedEventId, Arc<TimelineEvent>> for WeighEvent {
    fn weight(&self, _: &OwnedEventId, event: &Arc<TimelineEvent>) -> u64 {
        // The JSON, the content once more, and the parsed fields.
        512 + 2 * event.pdu.json().len() as u64
    }
}

pub(crate) struct Inner {
    kv: Arc<dyn Kv>,
    tail: Tail,
    grew: Notify,
    rooms: RoomCache,
    events: EventCache,
    asides: AsideCache,
    places: PlaceCache,
    states: StateCache,
    names: Names,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("published", &self.tail.published())
            .finish_non_exhaustive()
    }
}

/// Short numbers of users and rooms.
struct Names {
    users: quick_cache::sync::Cache<OwnedUserId, UserNum>,
    user_ids: quick_cache::sync::Cache<UserNum, OwnedUserId>,
    rooms: quick_cache::sync::Cache<OwnedRoomId, RoomNum>,
    next_user: AtomicU64,
    next_room: AtomicU64,
    /// Held while a number is given, so that nobody gets two.
    giving: Mutex<()>,
}

/// How much memory the store may use, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CacheSizes {
    /// Parsed events.
    pub events_bytes: u64,
    /// Parsed events outside the timelines.
    pub asides_bytes: u64,
    /// Views of rooms.
    pub rooms_bytes: u64,
}

impl Default for CacheSizes {
    fn default() -> Self {
        Self {
            events_bytes: 16 << 20,
            asides_bytes: 16 << 20,
            rooms_bytes: 32 << 20,
        }
    }
}

/// How full a cache is.
#[derive(Clone, Copy, Debug)]
pub struct CacheUse {
    /// Of what.
    pub name: &'static str,
    /// How many.
    pub entries: usize,
    /// How much memory they take, about; of caches that are bounded by it.
    pub bytes: Option<u64>,
}

/// The store. A clone is another handle of the same one.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// `None`: commits are written on the calling task, as a simulation wants it.
    committer: Option<Arc<Committer>>,
}

impl Store {
    /// Opens the store in `directory`.
    ///
    /// # Errors
    /// When the directory is in use, damaged, of another engine or of a newer version.
    pub fn open(engine: Engine, directory: &Path, sizes: CacheSizes) -> Result<Self, StoreError> {
        let inline = matches!(engine, Engine::Memory);
        let kv = kv::open(engine, directory)?;
        Self::with_kv(kv, sizes, inline)
    }

    /// Opens the store over an engine that is open already.
    ///
    /// `inline` writes each commit on the calling task instead of a thread of its own.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn with_kv(kv: Arc<dyn Kv>, sizes: CacheSizes, inline: bool) -> Result<Self, StoreError> {
        let inner = Self::inner(kv, sizes)?;
        let committer = (!inline).then(|| Arc::new(Committer::start(inner.clone())));
        Ok(Self { inner, committer })
    }

    /// Opens the store over an engine that is open already, and gives the task that writes its commits: each takes
    /// `pause()`. A simulation drops the task when the server crashes, and with it what was not written yet.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn paced(
        kv: Arc<dyn Kv>,
        sizes: CacheSizes,
        pause: impl FnMut() -> Duration + Send + 'static,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), StoreError> {
        let inner = Self::inner(kv, sizes)?;
        let (committer, work) = Committer::paced(inner.clone(), pause);
        let committer = Some(Arc::new(committer));
        Ok((Self { inner, committer }, work))
    }

    fn inner(kv: Arc<dyn Kv>, sizes: CacheSizes) -> Result<Arc<Inner>, StoreError> {
        let schema_key = Packed::key(Keyspace::META).text("schema").into_bytes();
        match kv.get(&schema_key)? {
            Some(value) => {
                let found = Unpack(&value).u64().unwrap_or(u64::MAX);
                if found > SCHEMA {
                    return Err(StoreError::NewerSchema { found });
                }
            }
            None => {
                kv.apply(&[(schema_key, Some(SCHEMA.to_be_bytes().to_vec()))])?;
                kv.flush()?;
            }
        }
        let last = |keyspace| last_number(&*kv, keyspace);
        let published = last(Keyspace::LOG)?.map_or(0, |number| number ^ (1 << 63));
        let next_user = last(Keyspace::USER_ID)?.unwrap_or(0) + 1;
        let next_room = last(Keyspace::ROOM_ID)?.unwrap_or(0) + 1;
        let events: EventCache = Arc::new(quick_cache::sync::Cache::with_weighter(
            16_384,
            sizes.events_bytes,
            WeighEvent,
        ));
        let states: StateCache = Arc::new(quick_cache::sync::Cache::new(STATES_CACHED_MAX));
        Ok(Arc::new(Inner {
            kv,
            tail: Tail::new(published),
            grew: Notify::new(),
            rooms: RoomCache::new(sizes.rooms_bytes, events.clone(), states.clone()),
            events,
            asides: AsideCache::with_weighter(16_384, sizes.asides_bytes, WeighAside),
            places: PlaceCache::new(PLACES_CACHED_MAX),
            states,
            names: Names {
                users: quick_cache::sync::Cache::new(20_000),
                user_ids: quick_cache::sync::Cache::new(20_000),
                rooms: quick_cache::sync::Cache::new(20_000),
                next_user: AtomicU64::new(next_user),
                next_room: AtomicU64::new(next_room),
                giving: Mutex::default(),
            },
        }))
    }

    /// Writes a commit and waits until it survives kill -9 and power loss.
    ///
    /// # Errors
    /// When the store cannot write any more.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, StoreError> {
        self.queue(commit).await?.flushed().await
    }

    /// Queues a commit. Commits become durable and visible in the order they are queued.
    ///
    /// # Errors
    /// When the store is closed, or a row is larger than [`kv::VALUE_BYTES_MAX`].
    pub async fn queue(&self, commit: Commit) -> Result<Pending, StoreError> {
        commit.check_sizes()?;
        match &self.committer {
            Some(committer) => committer.send(commit).await,
            None => Ok(Pending::done(commit::write_inline(&self.inner, commit))),
        }
    }

    /// The last position that readers may see.
    pub fn published(&self) -> Position {
        self.inner.tail.published()
    }

    /// Wakes whoever waits on it whenever the log has grown.
    ///
    /// Take `notified()` before reading, so that nothing slips between.
    pub fn grew(&self) -> &Notify {
        &self.inner.grew
    }

    /// The log behind `since`, at most `limit` entries; from memory if they are still there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn log(
        &self,
        since: Position,
        limit: usize,
    ) -> Result<Vec<(Position, LogEntry)>, StoreError> {
        if let Some(entries) = self.inner.tail.read(since, limit) {
            return Ok(entries);
        }
        let published = self.published();
        let key = |position: Position| {
            Packed::key(Keyspace::LOG)
                .i64(i64::try_from(position).unwrap_or(i64::MAX))
                .into_bytes()
        };
        let mut entries = Vec::new();
        let (from, to) = (key(since + 1), key(published + 1));
        self.visit_range(&from, &to, Direction::Ascending, |key, value| {
            let corrupt = || StoreError::corrupt(Keyspace::LOG, key);
            let position = Unpack::key(key).position().ok_or_else(corrupt)?;
            let entry = match rooms::parse_log_row(value) {
                Some(room) => {
                    let order = i64::try_from(position).map_err(|_| corrupt())?;
                    self.event_at(room, order)?.map(LogEntry::Event)
                }
                None => Some(LogEntry::Other(
                    serde_json::from_slice(value).map_err(|_| corrupt())?,
                )),
            };
            // A purged room leaves log rows that lead nowhere.
            entries.extend(entry.map(|entry| (position, entry)));
            Ok(entries.len() < limit)
        })?;
        Ok(entries)
    }

    /// The log behind `since` as [`Store::log`] gives it, as soon as there is any.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn next_log(
        &self,
        since: Position,
        limit: usize,
    ) -> Result<Vec<(Position, LogEntry)>, StoreError> {
        loop {
            let grew = self.grew().notified();
            tokio::pin!(grew);
            grew.as_mut().enable();
            let entries = self.log(since, limit)?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            grew.await;
        }
    }

    /// The value behind a key.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get_raw(&self, key: Packed) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner.kv.get(&key.into_bytes())?)
    }

    /// A row of a table.
    ///
    /// # Errors
    /// When the store cannot be read, or the row is damaged.
    pub fn get<V: Serialize + DeserializeOwned>(
        &self,
        table: Table<V>,
        key: Packed,
    ) -> Result<Option<V>, StoreError> {
        let key = key.into_bytes();
        let Some(value) = self.inner.kv.get(&key)? else {
            return Ok(None);
        };
        serde_json::from_slice(&value)
            .map(Some)
            .map_err(|_| StoreError::corrupt(table.keyspace(), &key))
    }

    /// Visits the rows whose key begins with `prefix`, until `visit` returns `false`.
    ///
    /// # Errors
    /// When the store cannot be read, or `visit` fails.
    pub fn visit(
        &self,
        prefix: &Packed,
        direction: Direction,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        self.visit_range(&prefix.bytes, &prefix.end_of_prefix(), direction, visit)
    }

    /// Visits the rows with `from <= key < to`, until `visit` returns `false`.
    ///
    /// # Errors
    /// When the store cannot be read, or `visit` fails.
    pub fn visit_range(
        &self,
        from: &[u8],
        to: &[u8],
        direction: Direction,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.inner.kv.scan(
            from,
            to,
            direction,
            &mut |key, value| match visit(key, value) {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(()),
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        outcome
    }

    /// The rows of a table whose key begins with `prefix`: keys without their keyspace, values.
    ///
    /// # Errors
    /// When the store cannot be read, or a row is damaged.
    pub fn rows<V: Serialize + DeserializeOwned>(
        &self,
        table: Table<V>,
        prefix: &Packed,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, V)>, StoreError> {
        let mut rows = Vec::new();
        self.visit(prefix, Direction::Ascending, |key, value| {
            if rows.len() == limit {
                return Ok(false);
            }
            let row = serde_json::from_slice(value)
                .map_err(|_| StoreError::corrupt(table.keyspace(), key))?;
            rows.push((key.get(1..).unwrap_or_default().to_vec(), row));
            Ok(true)
        })?;
        Ok(rows)
    }

    /// The short number of a user, if one was ever given.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_user(&self, user_id: &UserId) -> Result<Option<UserNum>, StoreError> {
        if let Some(user) = self.inner.names.users.get(user_id) {
            return Ok(Some(user));
        }
        let key = Packed::key(Keyspace::USER_NUM)
            .text(user_id.as_str())
            .into_bytes();
        let user = self
            .inner
            .kv
            .get(&key)?
            .and_then(|value| Unpack(&value).user());
        if let Some(user) = user {
            self.inner.names.users.insert(user_id.to_owned(), user);
        }
        Ok(user)
    }

    /// The short number of a user, given now if need be.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn user_num(&self, user_id: &UserId) -> Result<UserNum, StoreError> {
        if let Some(user) = self.find_user(user_id)? {
            return Ok(user);
        }
        let names = &self.inner.names;
        let _giving = names.giving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = names.users.get(user_id) {
            return Ok(user);
        }
        if let Some(user) = self.find_user(user_id)? {
            return Ok(user);
        }
        let user = UserNum(names.next_user.fetch_add(1, Ordering::Relaxed));
        let mut commit = Commit::new();
        commit.put_raw(
            Packed::key(Keyspace::USER_NUM).text(user_id.as_str()),
            Packed::new().user(user),
        );
        commit.put_raw(
            Packed::key(Keyspace::USER_ID).user(user),
            Packed::new().raw(user_id.as_bytes()),
        );
        self.queue_now(commit)?;
        names.users.insert(user_id.to_owned(), user);
        names.user_ids.insert(user, user_id.to_owned());
        Ok(user)
    }

    /// The ID of a user by short number.
    ///
    /// # Errors
    /// When the store cannot be read, or the number was never given.
    pub fn user_id(&self, user: UserNum) -> Result<OwnedUserId, StoreError> {
        if let Some(user_id) = self.inner.names.user_ids.get(&user) {
            return Ok(user_id);
        }
        let key = Packed::key(Keyspace::USER_ID).user(user).into_bytes();
        let user_id = self
            .inner
            .kv
            .get(&key)?
            .and_then(|value| String::from_utf8(value).ok())
            .and_then(|text| OwnedUserId::try_from(text).ok())
            .ok_or_else(|| StoreError::corrupt(Keyspace::USER_ID, &key))?;

        self.inner.names.user_ids.insert(user, user_id.clone());
        Ok(user_id)
    }

    /// The short number of a room, if one was ever given.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find_room(&self, room_id: &RoomId) -> Result<Option<RoomNum>, StoreError> {
        if let Some(room) = self.inner.names.rooms.get(room_id) {
            return Ok(Some(room));
        }
        let key = Packed::key(Keyspace::ROOM_NUM)
            .text(room_id.as_str())
            .into_bytes();
        let room = self
            .inner
            .kv
            .get(&key)?
            .and_then(|value| Unpack(&value).room());
        if let Some(room) = room {
            self.inner.names.rooms.insert(room_id.to_owned(), room);
        }
        Ok(room)
    }

    /// The short number of a room, given now if need be.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn room_num(&self, room_id: &RoomId) -> Result<RoomNum, StoreError> {
        if let Some(room) = self.find_room(room_id)? {
            return Ok(room);
        }
        let names = &self.inner.names;
        let _giving = names.giving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = self.find_room(room_id)? {
            return Ok(room);
        }
        let room = RoomNum(names.next_room.fetch_add(1, Ordering::Relaxed));
        let mut commit = Commit::new();
        commit.put_raw(
            Packed::key(Keyspace::ROOM_NUM).text(room_id.as_str()),
            Packed::new().room(room),
        );
        commit.put_raw(
            Packed::key(Keyspace::ROOM_ID).room(room),
            Packed::new().raw(room_id.as_bytes()),
        );
        self.queue_now(commit)?;
        names.rooms.insert(room_id.to_owned(), room);
        Ok(room)
    }

    /// The ID of a room by short number.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn room_id(&self, room: RoomNum) -> Result<Option<OwnedRoomId>, StoreError> {
        let key = Packed::key(Keyspace::ROOM_ID).room(room).into_bytes();
        let Some(value) = self.inner.kv.get(&key)? else {
            return Ok(None);
        };
        String::from_utf8(value)
            .ok()
            .and_then(|text| OwnedRoomId::try_from(text).ok())
            .map(Some)
            .ok_or_else(|| StoreError::corrupt(Keyspace::ROOM_ID, &key))
    }

    /// How many commits wait to be written, or are being written.
    pub fn queued_commits(&self) -> usize {
        self.committer
            .as_ref()
            .map_or(0, |committer| committer.queued())
    }

    /// How full each cache is.
    pub fn caches(&self) -> Vec<CacheUse> {
        let inner = &self.inner;
        let by_count = |name, entries: usize| CacheUse {
            name,
            entries,
            bytes: None,
        };
        let (rooms, rooms_bytes) = inner.rooms.used();
        vec![
            CacheUse {
                name: "rooms",
                entries: rooms,
                bytes: Some(rooms_bytes),
            },
            CacheUse {
                name: "events",
                entries: inner.events.len(),
                bytes: Some(inner.events.weight()),
            },
            by_count("states", inner.states.len()),
            by_count("user_numbers", inner.names.users.len()),
            by_count("user_ids", inner.names.user_ids.len()),
            by_count("room_numbers", inner.names.rooms.len()),
        ]
    }

    /// Queues a small commit ahead of whatever the caller commits next, without waiting.
    fn queue_now(&self, commit: Commit) -> Result<(), StoreError> {
        match &self.committer {
            Some(committer) => committer.send_now(commit).map(drop),
            None => commit::write_inline(&self.inner, commit).map(drop),
        }
    }
}

/// The largest number that follows the keyspace byte in any key of `keyspace`.
fn last_number(kv: &dyn Kv, keyspace: Keyspace) -> Result<Option<u64>, KvError> {
    let prefix = Packed::key(keyspace);
    let mut last = None;
    kv.scan(
        &prefix.bytes,
        &prefix.end_of_prefix(),
        Direction::Descending,
        &mut |key, _| {
            last = Unpack::key(key).u64();
            ControlFlow::Break(())
        },
    )?;
    Ok(last)
}

/// The rules of a served room version, for as long as the process lives.
pub fn rules_of(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    static RULES: std::sync::LazyLock<Vec<(RoomVersionId, RoomVersionRules)>> =
        std::sync::LazyLock::new(|| {
            federation::event::SERVED_ROOM_VERSIONS
                .into_iter()
                .filter_map(|version| {
                    Some((version.clone(), federation::event::rules_of(&version)?))
                })
                .collect()
        });
    RULES
        .iter()
        .find(|(known, _)| known == version)
        .map(|(_, rules)| rules)
}
