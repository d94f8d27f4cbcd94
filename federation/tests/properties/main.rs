//! Properties of whatever other servers may send: nothing panics, limits hold, what is written is read.
//!
//! Inputs are random, and made so that much of them is nearly right. `PROPTEST_CASES` says how many each property sees;
//! a failure prints the smallest input that was found.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

mod events;
mod keys;
mod rooms;
mod samples;
mod servers;
mod transactions;
