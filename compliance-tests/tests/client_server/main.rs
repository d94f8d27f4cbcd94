//! The client-server API, one module for each chapter of the specification.

mod rooms;
mod rooms_read;
