//! The client-server API, one module for each chapter of the specification.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

mod accounts;
mod appservices;
mod cross_signing;
mod delayed;
mod directory;
mod invites;
mod keys;
mod media;
mod operations;
mod peeking;
mod proofs;
mod push;
mod reports;
mod room_rules;
mod rooms;
mod rooms_read;
mod search;
mod sliding;
mod threads;
mod unread;
mod upgrade;
