//! The things that a simulation replaces: time, randomness, the network between servers, and where heavy work runs.
//!
//! Everything else in the process takes these from here, which a lint enforces.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};

/// What a server takes from the world around it.
#[derive(Clone, Debug)]
pub struct Seams {
    /// The wall clock.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// What carries requests to other servers; `None` is the internet.
    pub transport: Option<Arc<dyn Transport>>,
    /// Whether heavy work runs on the calling task, as a simulation needs it.
    pub inline: bool,
}

impl Seams {
    /// The real clock, and randomness from the operating system.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn real() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self {
            clock: Clock::System,
            entropy: Entropy::from_seed(seed),
            transport: None,
            inline: false,
        })
    }
}

/// Carries one request to another server, and brings back its whole answer.
pub trait Transport: std::fmt::Debug + Send + Sync {
    /// Sends `outgoing`. Does not follow redirects, and does not try again.
    fn send(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<http::Response<Bytes>, Lost>>;
}

/// A request on its way to another server.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The server, by its name before delegation.
    pub server: OwnedServerName,
    /// The request; its URI is the target alone, path and query as they were signed.
    pub request: http::Request<Bytes>,
    /// How long it may take, from the first lookup to the last byte of the answer.
    pub timeout: Duration,
    /// The largest body of an answer, in bytes, unpacked.
    pub bytes_max: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Nobody was there: the request has not been sent.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been sent, and broke off.
    #[error("{0}")]
    BrokeOff(String),
    /// The answer is larger than it may be.
    #[error("the answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The answer, or all of it, did not come in time.
    #[error("the answer did not come in time")]
    TimedOut,
}

/// The wall clock.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The computer's.
    System,
    /// A test's: milliseconds since the Unix epoch.
    Simulated(Arc<AtomicU64>),
    /// A simulation's: it goes as tokio's paused clock does.
    Paced {
        /// When it was set.
        since: tokio::time::Instant,
        /// What it showed then, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn now_ms(&self) -> u64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
                }),
            Self::Simulated(now) => now.load(Ordering::Relaxed),
            Self::Paced { since, at_ms } => {
                let gone_ms = since.elapsed().as_millis();
                at_ms.saturating_add(u64::try_from(gone_ms).unwrap_or(u64::MAX))
            }
        }
    }

    /// Now, as events carry it.
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.now_ms()))
    }

    /// A monotonic reading for deadlines and rate limits; tokio's, so that a paused test owns it.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn instant(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
}

/// Randomness, from one seed.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<ChaCha20Rng>>);

impl Entropy {
    /// The same seed gives the same values in the same order.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(Arc::new(Mutex::new(ChaCha20Rng::from_seed(seed))))
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill_bytes(&mut bytes);
        bytes
    }

    /// A random text of `length` letters and digits; 10 of them are about 59 bits.
    pub fn text(&self, length: usize) -> String {
        const LETTERS: &[u8; 62] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let mut text = String::with_capacity(length);
        while text.len() < length {
            // 248 = 4 × 62: a byte above it would favour the first letters.
            let letters = self
                .bytes::<64>()
                .into_iter()
                .filter(|byte| *byte < 248)
                .filter_map(|byte| LETTERS.get(usize::from(byte % 62)));
            text.extend(
                letters
                    .map(|&letter| char::from(letter))
                    .take(length - text.len()),
            );
        }
        text
    }

    /// Between zero and `longest`, evenly: what a retry waits on top.
    pub fn jitter(&self, longest: Duration) -> Duration {
        let share = u64::from_be_bytes(self.bytes()) % 1_000;
        longest.mul_f64(f64::from(u32::try_from(share).unwrap_or(0)) / 1_000.0)
    }
}

/// Runs work that takes milliseconds or more off the threads that serve requests.
///
/// # Panics
/// When `work` does.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that leaves the runtime's threads"
)]
pub async fn heavy<T: Send + 'static>(
    inline: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if inline {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for the outcome.
            Err(_) => std::future::pending().await,
        },
    }
}

/// As [`heavy`], for work that borrows: the thread hands the other requests that it serves to another one first.
///
/// # Panics
/// When `work` does.
pub fn heavy_here<T>(inline: bool, work: impl FnOnce() -> T) -> T {
    if inline {
        return work();
    }
    tokio::task::block_in_place(work)
}
