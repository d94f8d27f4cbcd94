//! The call relay that will run inside the homeserver.
//!
//! Empty so far: `spec/architecture.md` says what belongs here.
