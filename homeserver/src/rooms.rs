//! Rooms: the one way to change them, and what is read of them.
//!
//! To change a room, take its [`Turn`], append events, finish. What follows from a change is a
//! reader of the log, never one more call in here.

pub mod accept;
pub mod acl;
pub mod aliases;
pub mod backfill;
pub mod chains;
pub mod create;
pub mod directory;
pub mod foreign;
mod gap;
pub mod hosting;
pub mod join;
pub mod later;
pub mod members;
pub mod outline;
pub mod outside;
pub mod policy;
pub mod read;
pub mod receive;
mod redactions;
pub mod relations;
pub mod rules;
pub mod send;
pub mod served;
pub mod spaces;
mod steps;
pub mod turn;
pub mod upgrade;

pub use self::turn::{Rooms, Turn};
