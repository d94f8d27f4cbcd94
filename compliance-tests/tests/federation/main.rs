//! The server-server API, one module for each chapter of the specification.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

mod devices;
mod directory;
mod edus;
mod history;
mod inbox;
mod joining;
mod keys;
mod media;
mod policy;
mod profiles;
mod receiving;
mod requests;
mod resolving;
mod rooms;
mod sending;
mod spaces;
mod timeline_gaps;
