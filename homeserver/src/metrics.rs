//! What is counted and measured, and how Prometheus is told.
//!
//! A measurement is a few additions to atomic numbers: no lock, no allocation, no name looked up, because
//! the path of a message is measured in microseconds. What is known elsewhere, such as positions and sizes,
//! is read when somebody asks. No label ever holds what a user could choose: routes, statuses, stages, tasks
//! and the IDs of application services, nothing else.
//!
//! The text format is written here, as it is a page of code; a registry behind a trait would be a
//! dependency that costs more than it does. Spec: none; Prometheus, "Exposition formats".

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use federation::wire::queue::Outcome;

use crate::{http::limits::Doing, log::Reader, server::App};

/// Upper bounds of the buckets for durations, in microseconds; the last bucket has none.
const BOUNDS_US: [u64; 14] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Statuses that are counted each by itself; the rest is counted together.
const STATUSES: [u16; 18] = [
    200, 201, 204, 302, 304, 400, 401, 403, 404, 405, 408, 409, 413, 429, 500, 502, 503, 504,
];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bucket, not added up.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Something took so long.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }
}

/// A part of the path of an event that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the head of the request until the event is read: token, rate limit, body.
    Receive,
    /// Waiting for the room's turn.
    Turn,
    /// The turn itself: building, signing, authorising, queueing.
    Decide,
    /// From the queue until it survives a crash, with those that wait for the same flush.
    Flush,
    /// Waking those who wait for it; once for what the waker finds together.
    FanOut,
}

impl Stage {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Receive, "receive"),
        (Self::Turn, "turn"),
        (Self::Decide, "decide"),
        (Self::Flush, "flush"),
        (Self::FanOut, "fan_out"),
    ];
}

/// What is measured of one route.
#[derive(Debug)]
pub struct Measured {
    method: String,
    path: String,
    took: Histogram,
    statuses: [AtomicU64; STATUSES.len() + 1],
}

impl Measured {
    /// Nothing yet, of a route.
    pub fn new(method: String, path: String) -> Self {
        Self {
            method,
            path,
            took: Histogram::default(),
            statuses: Default::default(),
        }
    }

    /// A request was answered.
    pub fn answered(&self, status: u16, took: Duration) {
        let slot = STATUSES.iter().position(|known| *known == status);
        if let Some(count) = self.statuses.get(slot.unwrap_or(STATUSES.len())) {
            count.fetch_add(1, Relaxed);
        }
        self.took.record(took);
    }
}

/// Everything that is counted as it happens.
#[derive(Debug, Default)]
pub struct Metrics {
    routes: OnceLock<Vec<Arc<Measured>>>,
    stages: [Histogram; Stage::ALL.len()],
    readers: Mutex<Vec<Reader>>,
    transactions_taken: AtomicU64,
    transactions_failed: AtomicU64,
    sent_to_servers: [AtomicU64; SENT.len()],
}

/// What can become of a transaction for another server.
const SENT: [&str; 3] = ["taken", "refused", "failed"];

impl Metrics {
    /// Another server was sent a transaction.
    pub fn federation_transaction(&self, outcome: Outcome) {
        let slot = match outcome {
            Outcome::Taken => 0,
            Outcome::Refused => 1,
            Outcome::Failed { .. } => 2,
            Outcome::Empty => return,
        };
        if let Some(count) = self.sent_to_servers.get(slot) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// These routes are measured. The first call counts.
    pub fn measure(&self, routes: Vec<Arc<Measured>>) {
        drop(self.routes.set(routes));
    }

    /// A stage of the path of an event took so long.
    pub fn stage(&self, stage: Stage, took: Duration) {
        if let Some(histogram) = self.stages.get(stage as usize) {
            histogram.record(took);
        }
    }

    /// A reader of the log of this name, which is one of the code's or of the configuration's.
    pub fn reader(&self, name: impl Into<String>) -> Reader {
        let reader = Reader::new(name);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push(reader.clone());
        reader
    }

    /// An application service was sent a transaction, and took it or not.
    pub fn transaction(&self, taken: bool) {
        let count = if taken {
            &self.transactions_taken
        } else {
            &self.transactions_failed
        };
        count.fetch_add(1, Relaxed);
    }
}

/// All of it as Prometheus reads it.
pub async fn render(app: &App) -> String {
    let directory = app.config.data.directory.clone();
    let disk = crate::seams::heavy(app.seams.inline, move || size_on_disk(&directory, 0)).await;
    let mut page = Page(String::with_capacity(64 << 10));
    page.requests(&app.metrics);
    page.stages(&app.metrics);
    page.log(app);
    page.kind("store_disk_bytes", "gauge", "Size of the data directory.");
    page.value("store_disk_bytes", &[], disk);
    page.federation(app);
    page.memory(app);
    page.waiting(app);
    page.refused(app);
    page.0
}

/// The page under construction.
struct Page(String);

/// What every name begins with.
const PREFIX: &str = "guildhall_";

impl Page {
    fn line(&mut self, arguments: fmt::Arguments<'_>) {
        self.0
            .write_fmt(arguments)
            .expect("writing to a string cannot fail");
        self.0.push('\n');
    }

    fn kind(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {PREFIX}{name} {help}"));
        self.line(format_args!("# TYPE {PREFIX}{name} {kind}"));
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        let labels = Labels(labels);
        self.line(format_args!("{PREFIX}{name}{labels} {value}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl fmt::Display) {
        self.kind(name, "gauge", help);
        self.value(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut count = 0;
        let bounds = BOUNDS_US.iter().map(|us| seconds(*us));
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let bucket = format!("{name}_bucket");
        for (value, bound) in histogram.buckets.iter().zip(bounds) {
            count += value.load(Relaxed);
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            self.value(&bucket, &labels, count);
        }
        let sum = seconds(histogram.sum_us.load(Relaxed));
        self.value(&format!("{name}_sum"), labels, sum);
        self.value(&format!("{name}_count"), labels, count);
    }

    fn requests(&mut self, metrics: &Metrics) {
        let asked: Vec<_> = metrics
            .routes
            .get()
            .into_iter()
            .flatten()
            .filter(|route| route.took.count() > 0)
            .collect();
        let name = "http_requests_total";
        self.kind(name, "counter", "Requests, by route and status.");
        for route in &asked {
            let statuses = STATUSES.iter().map(ToString::to_string);
            let statuses = statuses.chain(["other".to_owned()]);
            for (count, status) in route.statuses.iter().zip(statuses) {
                let count = count.load(Relaxed);
                let labels = [
                    ("method", &*route.method),
                    ("route", &*route.path),
                    ("status", &*status),
                ];
                if count > 0 {
                    self.value(name, &labels, count);
                }
            }
        }
        let name = "http_request_seconds";
        self.kind(
            name,
            "histogram",
            "Time from a request's head to its answer; long-polls wait in it.",
        );
        for route in &asked {
            let labels = [("method", &*route.method), ("route", &*route.path)];
            self.histogram(name, &labels, &route.took);
        }
    }

    fn stages(&mut self, metrics: &Metrics) {
        let name = "send_stage_seconds";
        self.kind(
            name,
            "histogram",
            "The path of an event that a client sends, by stage.",
        );
        for ((_, stage), histogram) in Stage::ALL.iter().zip(&metrics.stages) {
            self.histogram(name, &[("stage", stage)], histogram);
        }
    }

    fn log(&mut self, app: &App) {
        let published = app.store.published();
        self.gauge("log_position", "Last position of the log.", published);
        let name = "log_reader_lag";
        self.kind(
            name,
            "gauge",
            "Entries of the log that a reader has not dealt with.",
        );
        let readers = app.metrics.readers.lock();
        let readers = readers.unwrap_or_else(PoisonError::into_inner).clone();
        for reader in &readers {
            let lag = published.saturating_sub(reader.position());
            self.value(name, &[("reader", reader.name())], lag);
        }
        let queued = app.store.queued_commits();
        self.gauge(
            "commit_queue_length",
            "Commits that wait for the committer.",
            queued,
        );
        let name = "appservice_transactions_total";
        self.kind(
            name,
            "counter",
            "Transactions sent to application services.",
        );
        for (outcome, count) in [
            ("taken", &app.metrics.transactions_taken),
            ("failed", &app.metrics.transactions_failed),
        ] {
            self.value(name, &[("outcome", outcome)], count.load(Relaxed));
        }
    }

    fn federation(&mut self, app: &App) {
        let name = "federation_transactions_total";
        self.kind(name, "counter", "Transactions sent to other servers.");
        for (outcome, count) in SENT.iter().zip(&app.metrics.sent_to_servers) {
            self.value(name, &[("outcome", outcome)], count.load(Relaxed));
        }
        let name = "federation_destinations";
        self.kind(
            name,
            "gauge",
            "Other servers that are sent something, or were lately.",
        );
        for (condition, count) in app.outgoing.conditions() {
            let condition = crate::peers::sender::condition_name(condition);
            self.value(name, &[("condition", condition)], count);
        }
    }

    fn memory(&mut self, app: &App) {
        if let Some(bytes) = resident_bytes() {
            self.gauge("resident_memory_bytes", "Memory of the process.", bytes);
        }
        let caches = app.store.caches();
        for (name, help, unit) in [
            ("cache_entries", "Entries in the store's caches.", false),
            (
                "cache_bytes",
                "Memory of the store's caches that are bounded by it, about.",
                true,
            ),
        ] {
            self.kind(name, "gauge", help);
            for cache in &caches {
                let entries = Some(cache.entries as u64);
                let value = if unit { cache.bytes } else { entries };
                if let Some(value) = value {
                    self.value(name, &[("cache", cache.name)], value);
                }
            }
        }
        let (users, sessions) = app.accounts.loaded();
        self.gauge("accounts_loaded", "Accounts in memory.", users);
        self.gauge("sessions_loaded", "Sessions in memory.", sessions);
    }

    fn waiting(&mut self, app: &App) {
        let (users, requests) = app.wakeups.waiting();
        self.gauge("waiting_users", "Users who wait in a long-poll.", users);
        self.gauge("waiting_requests", "Long-polls that wait.", requests);
    }

    fn refused(&mut self, app: &App) {
        let name = "rate_limited_total";
        self.kind(
            name,
            "counter",
            "Requests refused by a rate limit, by what it is for.",
        );
        for (doing, count) in app.limits.refused() {
            self.value(name, &[("doing", doing.name())], count);
        }
    }
}

impl Doing {
    /// The limit's name, as in the configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Message => "messages",
            Self::Join => "joins",
            Self::Invite => "invites",
            Self::CreateRoom => "room_creations",
            Self::Upload => "uploads",
            Self::Preview => "url_previews",
            Self::Search => "searches",
            Self::Profile => "profile_changes",
            Self::Report => "reports",
            Self::DelayedEvent => "delayed_events",
            Self::FailedLogin => "failed_logins",
            Self::Login => "logins",
            Self::Register => "registrations",
            Self::Anonymous => "anonymous_requests",
        }
    }
}

/// Labels as they stand behind a name.
struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            formatter.write_char(if index == 0 { '{' } else { ',' })?;
            write!(formatter, "{name}=\"")?;
            for character in value.chars() {
                match character {
                    '\\' => formatter.write_str("\\\\")?,
                    '"' => formatter.write_str("\\\"")?,
                    '\n' => formatter.write_str("\\n")?,
                    other => formatter.write_char(other)?,
                }
            }
            formatter.write_char('"')?;
        }
        if self.0.is_empty() {
            return Ok(());
        }
        formatter.write_char('}')
    }
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How deep directories are looked into.
const DEPTH_MAX: u32 = 4;

/// How much a directory holds, in bytes; what cannot be read counts nothing.
fn size_on_disk(directory: &std::path::Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        // Uploads are many, and lie in a directory of their own.
        Ok(found) if found.is_dir() && depth < DEPTH_MAX && entry.file_name() != "media" => {
            size_on_disk(&entry.path(), depth + 1)
        }
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    });
    sizes.sum()
}

/// The memory of this process, in bytes, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_no_longer_than_its_bound() {
        let histogram = Histogram::default();
        for us in [0, 25, 26, 30_000_000, 30_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let mut page = Page(String::new());
        page.histogram("x", &[("stage", "turn")], &histogram);
        let line = |text: &str| page.0.lines().any(|line| line == text);
        assert!(
            line("guildhall_x_bucket{stage=\"turn\",le=\"0.000025\"} 2"),
            "{}",
            page.0
        );
        assert!(line("guildhall_x_bucket{stage=\"turn\",le=\"0.00005\"} 3"));
        assert!(line("guildhall_x_bucket{stage=\"turn\",le=\"30\"} 4"));
        assert!(line("guildhall_x_bucket{stage=\"turn\",le=\"+Inf\"} 5"));
        assert!(line("guildhall_x_sum{stage=\"turn\"} 60.000052"));
        assert!(line("guildhall_x_count{stage=\"turn\"} 5"));
    }

    #[test]
    fn labels_are_escaped() {
        let labels = [("reader", "a \"b\" \\ \n")];
        assert_eq!(
            Labels(&labels).to_string(),
            "{reader=\"a \\\"b\\\" \\\\ \\n\"}"
        );
    }

    #[test]
    fn every_stage_has_the_place_of_its_name() {
        for (index, (stage, _)) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, index);
        }
    }
}
