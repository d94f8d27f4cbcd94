//! The client-server API, one module for each chapter of the specification.

mod delayed;
mod media;
mod rooms;
mod sliding;
