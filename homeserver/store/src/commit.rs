//! A commit: rows and log entries that become durable together, or not at all.
//!
//! A commit is data. The committer, a thread of its own and the only writer, takes what is queued,
//! gives each log entry its position, applies the rows, flushes once for all of them, and only then
//! publishes: readers never see what a crash could undo. See `spec/decisions/0001-sled.md`.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    Inner, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, Table},
    kv::{Row, VALUE_BYTES_MAX},
    log::{Change, LogEntry},
    rooms::{AsideEvent, Gap, NewEvent, TimelineEvent, WrittenEvent},
};

/// How many commits may wait for the committer; senders wait beyond that.
const QUEUE_COMMITS_MAX: usize = 1_024;

/// How many commits share one flush.
const GROUP_COMMITS_MAX: usize = 256;

/// How many rows go into one atomic batch of the engine, unless a single commit has more.
///
/// The engine stops readers while it applies a batch, so a group is applied in several.
const BATCH_ROWS_MAX: usize = 128;

/// Names a log entry of a commit whose position is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryIndex(usize);

/// Rows and log entries that become durable together.
#[derive(Debug, Default)]
pub struct Commit {
    rows: Vec<PendingRow>,
    pub(crate) entries: Vec<PendingEntry>,
    /// What it keeps outside the timelines, for readers right after.
    pub(crate) asides: Vec<Arc<AsideEvent>>,
    /// Gaps of timelines as they are now, for readers right after.
    pub(crate) gaps: Vec<(RoomNum, Gap)>,
    /// What history empties, as it is now, for readers right after.
    pub(crate) rewritten: Vec<Arc<TimelineEvent>>,
    held: Vec<Arc<()>>,
}

#[derive(Debug)]
struct PendingRow {
    entry: usize,
    key: Packed,
    value: Option<Packed>,
}

#[derive(Debug)]
pub(crate) enum PendingEntry {
    Event(Box<NewEvent>),
    Change(Change),
}

impl Commit {
    /// An empty commit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.entries.is_empty()
    }

    /// Adds a log entry.
    pub fn log(&mut self, change: Change) -> EntryIndex {
        self.push_entry(PendingEntry::Change(change))
    }

    pub(crate) fn push_entry(&mut self, entry: PendingEntry) -> EntryIndex {
        self.entries.push(entry);
        EntryIndex(self.entries.len() - 1)
    }

    /// Writes a row that does not depend on a position.
    pub fn put_raw(&mut self, key: Packed, value: Packed) {
        self.rows.push(PendingRow {
            entry: 0,
            key,
            value: Some(value),
        });
    }

    /// Writes a row whose key or value holds the position of `entry`.
    pub fn put_raw_at(&mut self, entry: EntryIndex, key: Packed, value: Packed) {
        self.rows.push(PendingRow {
            entry: entry.0,
            key,
            value: Some(value),
        });
    }

    /// Deletes a row.
    pub fn delete(&mut self, key: Packed) {
        self.rows.push(PendingRow {
            entry: 0,
            key,
            value: None,
        });
    }

    /// Writes a row of a table.
    pub fn put<V: Serialize + DeserializeOwned>(
        &mut self,
        table: Table<V>,
        key: Packed,
        value: &V,
    ) {
        self.put_raw(checked(table.keyspace(), key), json(value));
    }

    /// Writes a row of a table whose key holds the position of `entry`.
    pub fn put_at<V: Serialize + DeserializeOwned>(
        &mut self,
        table: Table<V>,
        entry: EntryIndex,
        key: Packed,
        value: &V,
    ) {
        self.put_raw_at(entry, checked(table.keyspace(), key), json(value));
    }

    /// Keeps `token` until the commit is published: who holds a weak reference can tell.
    pub fn hold(&mut self, token: Arc<()>) {
        self.held.push(token);
    }

    /// That no row is larger than the engine takes: what clients send ends up in rows, and one that is too
    /// large must cost a request, not the committer.
    pub(crate) fn check_sizes(&self) -> Result<(), StoreError> {
        let largest = self.rows.iter().filter_map(|row| row.value.as_ref());
        let largest = largest.map(|value| value.bytes.len()).max().unwrap_or(0);
        if largest > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge { bytes: largest });
        }
        Ok(())
    }

    /// Adds everything of `other` behind this commit's own rows and entries.
    pub fn append(&mut self, other: Self) {
        let shift = self.entries.len();
        self.rows
            .extend(other.rows.into_iter().map(|row| PendingRow {
                entry: row.entry + shift,
                ..row
            }));
        self.entries.extend(other.entries);
        self.asides.extend(other.asides);
        self.gaps.extend(other.gaps);
        self.rewritten.extend(other.rewritten);
        self.held.extend(other.held);
    }
}

fn checked(keyspace: Keyspace, key: Packed) -> Packed {
    assert_eq!(
        key.bytes.first(),
        Some(&keyspace.0),
        "a key belongs to the table it is put into"
    );
    key
}

fn json(value: &impl Serialize) -> Packed {
    Packed::new()
        .raw(&serde_json::to_vec(value).expect("rows have string keys and no failing parts"))
}

/// Where a commit ended up.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// The position of the commit's first log entry; entry `i` has `first + i`.
    ///
    /// Of a commit without entries: the last position before it.
    pub first: Position,
}

impl Committed {
    /// The position of one entry.
    pub fn position(&self, entry: EntryIndex) -> Position {
        self.first + entry.0 as Position
    }
}

pub(crate) struct Job {
    commit: Commit,
    done: Option<oneshot::Sender<Result<Committed, StoreError>>>,
    _place: Option<OwnedSemaphorePermit>,
}

/// The sending half of the committer.
#[derive(Debug)]
pub(crate) struct Committer {
    /// `None` only while it is dropped.
    queue: Option<mpsc::UnboundedSender<Job>>,
    /// `None` if it is a task.
    thread: Option<std::thread::JoinHandle<()>>,
    /// Bounds the queue at [`QUEUE_COMMITS_MAX`]; a job gives its place back when it is written.
    places: Arc<Semaphore>,
}

/// What becomes of a commit that was queued.
#[derive(Debug)]
#[must_use = "an error of the store is only seen here"]
pub struct Pending(oneshot::Receiver<Result<Committed, StoreError>>);

impl Pending {
    /// A commit that is written already.
    pub(crate) fn done(outcome: Result<Committed, StoreError>) -> Self {
        let (done, pending) = oneshot::channel();
        drop(done.send(outcome));
        Self(pending)
    }

    /// Waits until the commit survives kill -9 and power loss.
    ///
    /// # Errors
    /// When the store cannot write any more; nothing is acknowledged from then on.
    pub async fn flushed(self) -> Result<Committed, StoreError> {
        self.0.await.map_err(|_| StoreError::Closed)?
    }
}

impl Committer {
    /// Starts the committer thread. It ends when the last sender is gone.
    pub(crate) fn start(inner: Arc<Inner>) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || run(&inner, jobs))
            .expect("a process that cannot start one thread cannot serve");
        Self {
            queue: Some(queue),
            thread: Some(thread),
            places: Arc::new(Semaphore::new(QUEUE_COMMITS_MAX)),
        }
    }

    /// A committer that is a task and not a thread, and works for `pause()` on each group: what a simulation has,
    /// so that it can crash while commits wait. It ends when the last sender is gone.
    pub(crate) fn paced(
        inner: Arc<Inner>,
        pause: impl FnMut() -> Duration + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, jobs) = mpsc::unbounded_channel();
        let committer = Self {
            queue: Some(queue),
            thread: None,
            places: Arc::new(Semaphore::new(QUEUE_COMMITS_MAX)),
        };
        (committer, run_paced(inner, jobs, pause))
    }

    fn give(&self, job: Job) -> Result<(), StoreError> {
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(job).map_err(|_| StoreError::Closed)
    }

    /// How many commits have a place in the queue.
    pub(crate) fn queued(&self) -> usize {
        QUEUE_COMMITS_MAX - self.places.available_permits()
    }

    /// Queues a commit; commits become durable in the order they are queued.
    pub(crate) async fn send(&self, commit: Commit) -> Result<Pending, StoreError> {
        let place = self
            .places
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let (done, pending) = oneshot::channel();
        self.give(Job {
            commit,
            done: Some(done),
            _place: Some(place),
        })?;
        Ok(Pending(pending))
    }

    /// Queues a commit from code that cannot wait for a place: the few rows of a new short number,
    /// of which each request makes a bounded number.
    pub(crate) fn send_now(&self, commit: Commit) -> Result<Pending, StoreError> {
        let (done, pending) = oneshot::channel();
        self.give(Job {
            commit,
            done: Some(done),
            _place: None,
        })?;
        Ok(Pending(pending))
    }
}

impl Drop for Committer {
    /// Waits until what is queued is written and the engine is closed: the directory can be opened again.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, whoever waited for a commit has learned of it.
            drop(thread.join());
        }
    }
}

/// A log entry with its position, before it is published.
enum Written {
    Event(WrittenEvent),
    Change(Change),
}

fn run(inner: &Inner, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut group = Vec::new();
    while let Some(job) = jobs.blocking_recv() {
        group.push(job);
        while group.len() < GROUP_COMMITS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        write_group(inner, group.drain(..));
    }
}

async fn run_paced(
    inner: Arc<Inner>,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    mut pause: impl FnMut() -> Duration,
) {
    let mut group = Vec::new();
    while let Some(job) = jobs.recv().await {
        group.push(job);
        tokio::time::sleep(pause()).await;
        while group.len() < GROUP_COMMITS_MAX {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        write_group(&inner, group.drain(..));
    }
}

/// Applies, flushes and publishes a group of commits, and answers each.
pub(crate) fn write_group(inner: &Inner, jobs: impl Iterator<Item = Job>) {
    let mut position = inner.tail.published();
    let mut rows: Vec<Row> = Vec::new();
    let mut batches: Vec<Vec<Row>> = Vec::new();
    let mut published: Vec<(Position, Written)> = Vec::new();
    let mut answers = Vec::new();
    let (mut held, mut asides) = (Vec::new(), Vec::new());
    let (mut gaps, mut rewritten) = (Vec::new(), Vec::new());
    for Job {
        mut commit,
        done,
        _place,
    } in jobs
    {
        let first = position + 1;
        held.append(&mut commit.held);
        asides.append(&mut commit.asides);
        gaps.append(&mut commit.gaps);
        rewritten.append(&mut commit.rewritten);
        render(commit, &mut position, &mut rows, &mut published);
        if rows.len() >= BATCH_ROWS_MAX {
            batches.push(std::mem::take(&mut rows));
        }
        let first = if position < first { position } else { first };
        answers.push((done, Committed { first }));
    }
    batches.push(rows);

    // A cold read of a room must not see rows whose events are not published yet.
    let loading = inner.rooms.stop_loading();
    let outcome = batches
        .iter()
        .try_for_each(|batch| inner.kv.apply(batch))
        .and_then(|()| inner.kv.flush());
    if let Err(error) = &outcome {
        tracing::error!(%error, "the store can no longer write; nothing more will be acknowledged");
    } else {
        for event in asides {
            inner.asides.insert(event.pdu.event_id().to_owned(), event);
        }
        for (_, written) in &published {
            if let Written::Event(written) = written {
                inner.rooms.advance(written);
            }
        }
        for (room, gap) in gaps {
            inner.rooms.set_gap(room, gap);
        }
        for event in rewritten {
            inner.rooms.rewrite(&event);
        }
        inner.tail.publish(
            published
                .into_iter()
                .map(|(position, written)| match written {
                    Written::Event(written) => (position, LogEntry::Event(written.event)),
                    Written::Change(change) => (position, LogEntry::Other(change)),
                }),
        );
    }
    drop(loading);
    // From here on, what was held back until the publication may go by the published rows.
    drop(held);
    if outcome.is_ok() {
        inner.grew.notify_waiters();
    }
    let error = outcome.err().map(Arc::new);
    for (done, committed) in answers {
        let answer = match &error {
            None => Ok(committed),
            Some(error) => Err(StoreError::Write(error.clone())),
        };
        if let Some(done) = done {
            // Whoever asked may be gone; the commit stands all the same.
            drop(done.send(answer));
        }
    }
}

/// Gives the commit's entries their positions, and turns everything into rows.
fn render(
    commit: Commit,
    position: &mut Position,
    rows: &mut Vec<Row>,
    published: &mut Vec<(Position, Written)>,
) {
    let first = *position + 1;
    for entry in commit.entries {
        *position += 1;
        let log_key = Packed::key(Keyspace::LOG).position().fill(*position);
        match entry {
            PendingEntry::Event(event) => {
                let event = event.at(*position, rows);
                rows.push((log_key, Some(crate::rooms::log_row(&event.event))));
                published.push((*position, Written::Event(event)));
            }
            PendingEntry::Change(change) => {
                rows.push((log_key, Some(json(&change).into_bytes())));
                published.push((*position, Written::Change(change)));
            }
        }
    }
    for row in commit.rows {
        let position = first + row.entry as Position;
        rows.push((
            row.key.fill(position),
            row.value.map(|value| value.fill(position)),
        ));
    }
}

/// Writes one commit on the calling thread: what a store without a committer does.
pub(crate) fn write_inline(inner: &Inner, commit: Commit) -> Result<Committed, StoreError> {
    let (done, mut answer) = oneshot::channel();
    write_group(
        inner,
        std::iter::once(Job {
            commit,
            done: Some(done),
            _place: None,
        }),
    );
    answer.try_recv().map_err(|_| StoreError::Closed)?
}
