//! The server-server API, as far as it goes: who this server and its users are.

mod keys;
mod openid;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    keys::routes(routes);
    openid::routes(routes);
}
