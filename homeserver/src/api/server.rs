//! The server-server API, as far as it goes: who this server and its users are.

mod keys;
mod membership;
mod openid;
pub mod transaction;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    keys::routes(routes);
    membership::routes(routes);
    openid::routes(routes);
    transaction::routes(routes);
}
