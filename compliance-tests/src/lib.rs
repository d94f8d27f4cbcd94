//! Behaviour asserted from the outside: whole servers in one process, spoken to through their router.
//!
//! A [`World`] is a server with a memory store, a simulated clock and a seed; a [`Client`] is a user's
//! device; a [`Network`] has several servers, and [`Stranger`]s, whose every word a test chooses; a [`simulation`] lets
//! one seed decide everything. Tests are in `tests/`, one file for each chapter of the specification, one test for each
//! sentence.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

mod checks;
mod client;
mod image;
mod network;
pub mod simulation;
mod stranger;
mod world;

pub use self::{
    client::{Client, Reply, event_ids, segment},
    image::{png, png_claiming},
    network::Network,
    stranger::Stranger,
    world::World,
};
