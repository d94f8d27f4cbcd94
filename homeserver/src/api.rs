//! The APIs: one file for each chapter of the specification, each handler a translation.
//!
//! A handler reads a typed request, asks the modules below, and answers. What must happen in two
//! areas at once is written here, so that the areas need not know each other.

pub mod client;
pub mod operations;
pub mod server;

use crate::http::Routes;

/// Adds every route of the server.
pub fn routes(routes: &mut Routes) {
    client::routes(routes);
    operations::routes(routes);
    server::routes(routes);
}
