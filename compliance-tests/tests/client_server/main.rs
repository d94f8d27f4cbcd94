//! The client-server API, one module for each chapter of the specification.

mod accounts;
mod delayed;
mod keys;
mod media;
mod rooms;
