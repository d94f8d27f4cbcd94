//! Everything that runs in the background: named, counted, stopped together.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
};

use tokio::{sync::Notify, task::JoinSet};

/// How long tasks may take to stop before they are dropped.
const STOP_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// The background tasks of a server.
#[derive(Debug, Default)]
pub struct Tasks {
    set: Mutex<JoinSet<()>>,
    stopping: std::sync::atomic::AtomicBool,
    stop: Notify,
}

impl Tasks {
    /// Starts a task. It is dropped at its next await when the server stops.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        use tracing::Instrument as _;
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.spawn(work.instrument(tracing::info_span!("task", name)));
    }

    /// Returns when the server stops: for tasks that must finish what they do first.
    pub async fn stopping(&self) {
        let stop = self.stop.notified();
        if !self.is_stopping() {
            stop.await;
        }
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Tells every task to stop, without waiting: long requests answer early.
    pub fn announce_stop(&self) {
        self.stopping
            .store(true, std::sync::atomic::Ordering::Release);
        self.stop.notify_waiters();
    }

    /// Stops every task and waits until they are gone.
    pub async fn stop(&self) {
        self.announce_stop();
        let mut set = {
            let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *set)
        };
        set.abort_all();
        let all = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, all).await.is_err() {
            tracing::warn!("a background task did not stop in time");
        }
    }
}
