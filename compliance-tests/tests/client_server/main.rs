//! The client-server API, one module for each chapter of the specification.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects should end there"
)]

mod accounts;
mod delayed;
mod keys;
mod media;
mod push;
mod rooms;
mod rooms_read;
mod sliding;
mod unread;
