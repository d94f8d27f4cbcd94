//! Pushers, and what gateways are told.
