//! The client-server API, by chapter.

pub(crate) mod account;
mod account_data;
mod admin;
mod appservices;
mod backup;
mod context;
mod delayed;
mod destinations;
mod devices;
pub(crate) mod directory;
mod discovery;
mod events;
mod fallback;
mod keys;
mod login;
pub(crate) mod media;
mod members;
mod membership;
mod notices;
mod peeking;
mod presence;
mod profiles;
mod push_rules;
mod pushers;
pub mod reading;
mod register;
mod relations;
mod reports;
mod rooms;
mod search;
pub mod shared_secret;
mod sliding;
pub(crate) mod spaces;
mod sync;
mod threads;
pub mod uia;
mod upgrade;
mod users;

use crate::http::Routes;

/// What the paths of most endpoints begin with: as it was before version 1.1, and since.
const PREFIXES: [&str; 2] = ["/_matrix/client/r0", "/_matrix/client/v3"];

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    account::routes(routes);
    account_data::routes(routes);
    admin::routes(routes);
    appservices::routes(routes);
    context::routes(routes);
    delayed::routes(routes);
    destinations::routes(routes);
    devices::routes(routes);
    directory::routes(routes);
    discovery::routes(routes);
    events::routes(routes);
    backup::routes(routes);
    fallback::routes(routes);
    keys::routes(routes);
    login::routes(routes);
    media::routes(routes);
    members::routes(routes);
    membership::routes(routes);
    notices::routes(routes);
    peeking::routes(routes);
    presence::routes(routes);
    profiles::routes(routes);
    push_rules::routes(routes);
    pushers::routes(routes);
    reading::routes(routes);
    register::routes(routes);
    relations::routes(routes);
    reports::routes(routes);
    rooms::routes(routes);
    search::routes(routes);
    shared_secret::routes(routes);
    sliding::routes(routes);
    spaces::routes(routes);
    sync::routes(routes);
    threads::routes(routes);
    upgrade::routes(routes);
    users::routes(routes);
}
