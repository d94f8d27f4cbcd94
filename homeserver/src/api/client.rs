//! The client-server API, by chapter.

mod account;
mod account_data;
mod discovery;
mod events;
mod login;
mod membership;
mod push_rules;
pub mod reading;
mod register;
mod rooms;
mod sync;
pub mod uia;

use crate::http::Routes;

/// Adds the routes of every chapter.
pub fn routes(routes: &mut Routes) {
    account::routes(routes);
    account_data::routes(routes);
    discovery::routes(routes);
    events::routes(routes);
    login::routes(routes);
    membership::routes(routes);
    push_rules::routes(routes);
    reading::routes(routes);
    register::routes(routes);
    rooms::routes(routes);
    sync::routes(routes);
}
