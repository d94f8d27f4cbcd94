//! Written next.

pub mod media;
