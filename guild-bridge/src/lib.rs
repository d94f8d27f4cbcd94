//! What a guild means in Matrix: roles, overwrites, permissions. No I/O, no clock.
//!
//! So far the one function that everything else of a guild is derived from: [`effective`].

mod permissions;

pub use self::permissions::{Grants, Overwrite, Permissions, effective};
