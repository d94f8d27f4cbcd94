//! The process: configuration, HTTP, tasks, the clock.

pub mod config;
