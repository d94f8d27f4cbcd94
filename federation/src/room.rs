//! An event in its room: state, authorisation, visibility.

pub mod acl;
pub mod auth;
mod join_rules;
mod power;
pub mod resolve;
mod state;
pub mod visibility;

pub use self::{
    power::Powers,
    state::{StateChange, StateMap},
};
