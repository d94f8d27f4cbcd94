//! The server-server API, as far as it goes: who this server and its users are, and what others may read from it.

mod devices;
mod directory;
mod history;
mod keys;
mod media;
mod membership;
mod openid;
mod profiles;
mod spaces;
pub mod transaction;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    devices::routes(routes);
    directory::routes(routes);
    history::routes(routes);
    keys::routes(routes);
    media::routes(routes);
    membership::routes(routes);
    openid::routes(routes);
    profiles::routes(routes);
    spaces::routes(routes);
    transaction::routes(routes);
}
