//! The client-server API, by chapter.

mod account;
mod context;
mod discovery;
mod events;
mod login;
mod members;
mod membership;
mod register;
mod relations;
mod rooms;
mod spaces;
mod sync;
pub mod uia;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    account::routes(routes);
    context::routes(routes);
    discovery::routes(routes);
    events::routes(routes);
    login::routes(routes);
    members::routes(routes);
    membership::routes(routes);
    register::routes(routes);
    relations::routes(routes);
    rooms::routes(routes);
    spaces::routes(routes);
    sync::routes(routes);
}
