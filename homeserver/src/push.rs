//! Notifications: which events a user wants to hear of.
//!
//! Spec: client-server API, "Push Notifications".

pub mod rules;
