//! The homeserver: everything with I/O, and the APIs.
//!
//! Reading order: [`server`] (how it is put together) → [`http`] (how a request becomes a call) →
//! [`rooms`] (how a room changes) → [`sync`] (how clients learn of it) → [`api`] (every endpoint).

pub mod account_data;
pub mod accounts;
pub mod api;
pub mod appservices;
pub mod asked;
pub mod config;
pub mod delayed;
pub mod ephemeral;
pub mod error;
pub mod guests;
pub mod http;
pub mod invites;
pub mod keys;
pub mod log;
pub mod media;
pub mod metrics;
pub mod peers;
pub mod presence;
pub mod push;
pub mod receipts;
pub mod reports;
pub mod rooms;
pub mod seams;
pub mod search;
pub mod server;
pub mod sync;
pub mod tasks;
pub mod threads;
pub mod to_device;
pub mod upgrades;
pub mod upkeep;
