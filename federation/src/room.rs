//! An event in its room: state, authorisation, visibility.

pub mod auth;
mod state;
pub mod visibility;

pub use self::state::{StateChange, StateMap};
