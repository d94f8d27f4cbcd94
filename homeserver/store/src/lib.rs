//! Written next.

pub mod kv;
