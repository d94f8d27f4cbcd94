//! The server-server API, as far as it goes: who this server is.

mod keys;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    keys::routes(routes);
}
