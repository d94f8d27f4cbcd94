//! How servers talk: transactions, what is in them, and when they are sent.

pub mod edu;
pub mod queue;
pub mod transaction;
