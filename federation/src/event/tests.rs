//! Boundaries of events.
