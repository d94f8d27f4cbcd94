//! Named checks, the Rust twin of `../lib/check.js`, with the same output.
//!
//! A check is a step in one conversation between real clients, so the order matters and what one made the next one
//! uses. Lines are read by `../summary.py`: `ok SUITE: NAME (MS ms)` or `FAIL SUITE: NAME: REASON`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long one check may take.
const CHECK_MAX: Duration = Duration::from_mins(1);
/// How long [`until`] waits.
const UNTIL_MAX: Duration = Duration::from_secs(15);
/// How often [`until`] looks.
const UNTIL_EVERY: Duration = Duration::from_millis(20);
/// How much of a reason is printed, in characters.
const REASON_MAX: usize = 400;

/// Runs checks one after another and counts them.
pub struct Suite {
    name: &'static str,
    passed: usize,
    failed: usize,
}

impl Suite {
    /// A suite that has run nothing yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            passed: 0,
            failed: 0,
        }
    }

    /// Runs `body`; what it made, if it ended in time without an error.
    pub async fn check<T>(
        &mut self,
        name: &str,
        body: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let started = Instant::now();
        let outcome = match tokio::time::timeout(CHECK_MAX, body).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!(
                "not finished after {} s",
                CHECK_MAX.as_secs()
            )),
        };
        match outcome {
            Ok(made) => {
                self.passed += 1;
                println!(
                    "ok {}: {name} ({} ms)",
                    self.name,
                    started.elapsed().as_millis()
                );
                Some(made)
            }
            Err(error) => {
                self.failed += 1;
                let reason = format!("{error:#}")
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                println!(
                    "FAIL {}: {name}: {}",
                    self.name,
                    reason.chars().take(REASON_MAX).collect::<String>()
                );
                None
            }
        }
    }

    /// Prints the closing line; true if nothing failed.
    pub fn close(self) -> bool {
        println!(
            "{}: {} passed, {} failed",
            self.name, self.passed, self.failed
        );
        self.failed == 0
    }
}

/// Waits until `look` gives something, and returns that.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + UNTIL_MAX;
    loop {
        if let Some(found) = look().await.with_context(|| what.to_owned())? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("after {} s still not so: {what}", UNTIL_MAX.as_secs());
        }
        tokio::time::sleep(UNTIL_EVERY).await;
    }
}

/// `Some(())` if `condition` is true: for an [`until`] that waits for nothing but a fact.
#[expect(
    clippy::unnecessary_wraps,
    reason = "it is the answer of an `until`, which may fail"
)]
pub fn so(condition: bool) -> Result<Option<()>> {
    Ok(condition.then_some(()))
}
