//! The driver's one clock. The servers take theirs from a seam, so that a simulation owns time;
//! the driver stands outside every simulation and exists to read the real one.

use std::time::Instant;

/// The present moment on the monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures real time; nothing here runs in a simulation"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
