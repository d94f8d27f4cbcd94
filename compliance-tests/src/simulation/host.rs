//! A server of a simulation as a process: it starts, crashes, and starts again upon what its disk has kept.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use homeserver::{
    config::{Config, RegistrationMode},
    seams::{Clock, Entropy, Lost, Seams, Transport},
    server::{App, Server},
};
use ruma::{OwnedServerName, ServerName};
use store::{
    CacheSizes, Store,
    kv::{Kv, Memory},
};
use tokio::{sync::oneshot, task::JoinSet};
use tracing::Instrument as _;

use super::{SERVERS, chance::Chance};
use crate::network::answered;

/// The longest time that writing a group of commits takes, in milliseconds.
const COMMIT_MS_MAX: u64 = 6;

/// A server, whether it runs or not.
#[derive(Debug)]
pub(crate) struct Host {
    name: OwnedServerName,
    seed: u64,
    clock: Clock,
    disk: Disk,
    directory: tempfile::TempDir,
    starts: AtomicU64,
    up: Mutex<Option<Running>>,
}

/// What survives a crash.
#[derive(Default)]
struct Disk(Memory);

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Disk")
    }
}

struct Running {
    server: Server,
    /// Gone when nothing of the process is left.
    rows: Weak<dyn Kv>,
    /// The committer, and one task for each request that is being answered.
    work: JoinSet<()>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Running")
    }
}

impl Host {
    /// A server with an empty disk that does not run yet; its clock begins at `at_ms`.
    pub(crate) fn new(seed: u64, name: &str, at_ms: u64) -> Self {
        Self {
            name: ServerName::parse(name).expect("a valid server name"),
            seed,
            clock: paced(at_ms),
            disk: Disk::default(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            starts: AtomicU64::new(0),
            up: Mutex::default(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// Whether it runs.
    pub(crate) fn is_up(&self) -> bool {
        self.up().is_some()
    }

    /// What runs.
    ///
    /// # Panics
    /// When nothing does.
    pub(crate) fn app(&self) -> App {
        let up = self.up();
        let running = up.as_ref().expect("the server runs");
        running.server.app.clone()
    }

    /// Starts it upon what its disk has.
    pub(crate) async fn start(&self, transport: Arc<dyn Transport>) {
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        // Another one each time: a process does not remember what it has drawn before.
        let mut chance = Chance::of(self.seed, &format!("{} {number}", self.name));
        let seams = Seams {
            clock: self.clock.clone(),
            entropy: Entropy::from_seed(chance.bytes()),
            transport: Some(transport),
            inline: true,
        };
        let kv = self.disk.0.kv();
        let rows = Arc::downgrade(&kv);
        let pause = move || Duration::from_millis(chance.between(0, COMMIT_MS_MAX));
        let opened = Store::paced(kv, CacheSizes::default(), pause);
        let (store, committer) = opened.expect("the store opens");
        let mut work = JoinSet::new();
        work.spawn(committer);
        let server = Server::start_upon(store, self.config(), seams).await;
        let server = server.expect("the server starts");
        *self.up() = Some(Running { server, rows, work });
    }

    /// Where keys of servers are asked for that are not there: of all others, so that there is somebody who knows them.
    fn notaries(&self) -> Vec<OwnedServerName> {
        let others = SERVERS.iter().filter(|other| **other != self.name());
        others
            .map(|other| ServerName::parse(other).expect("a valid server name"))
            .collect()
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        self.directory.path().clone_into(&mut config.data.directory);
        config.server.name.clone_from(&self.name);
        config.registration.mode = RegistrationMode::Open;
        config.testing.rate_limits_off = true;
        config.testing.cheap_password_hashing = true;
        // Nothing is asked over TLS: the certificates of the system need not be read at each start.
        config.testing.accept_any_certificate = true;
        config.federation.enabled = true;
        config.federation.trusted_notaries = self.notaries();
        config.presence.enabled = false;
        config
    }

    /// Kills it, if it runs: what it was doing ends where it waits, and what was not flushed is lost. Whether it ran.
    ///
    /// # Panics
    /// When something of it goes on all the same.
    pub(crate) async fn crash(&self) -> bool {
        let running = self.up().take();
        let Some(running) = running else { return false };
        let Running {
            server,
            rows,
            mut work,
        } = running;
        work.abort_all();
        server.app.tasks.stop().await;
        while work.join_next().await.is_some() {}
        drop(server);
        assert!(rows.upgrade().is_none(), "nothing of a killed server lives");
        self.disk.0.crash();
        true
    }

    /// Asks it something. `None`: it does not run, or crashed before it answered.
    pub(crate) async fn call(
        &self,
        request: http::Request<Body>,
        bytes_max: usize,
    ) -> Option<Result<http::Response<Bytes>, Lost>> {
        let (done, answer) = oneshot::channel();
        {
            let mut up = self.up();
            let running = up.as_mut()?;
            while running.work.try_join_next().is_some() {}
            let router = running.server.router.clone();
            let answering = async move {
                // Whoever asked may have given up.
                drop(done.send(answered(router, request, bytes_max).await));
            };
            let span = tracing::info_span!("host", name = self.name());
            running.work.spawn(answering.instrument(span));
        }
        answer.await.ok()
    }

    fn up(&self) -> MutexGuard<'_, Option<Running>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A clock that shows `at_ms` now, and goes with tokio's.
#[expect(
    clippy::disallowed_methods,
    reason = "the simulated clocks are set by the runtime's paused one"
)]
pub(crate) fn paced(at_ms: u64) -> Clock {
    Clock::Paced {
        since: tokio::time::Instant::now(),
        at_ms,
    }
}
