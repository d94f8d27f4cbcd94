//! The caller's own account.
//!
//! Spec: client-server API, "Account management", "Current account information".

use ruma::{DeviceId, api::client::account::whoami};
use store::{Commit, keys::UserNum, log::Change};

use crate::{
    error::ApiResult,
    http::{Guest, Routes},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(who_am_i);
}

async fn who_am_i(
    _: App,
    Guest(caller): Guest,
    _: whoami::v3::Request,
) -> ApiResult<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(caller.user_id, caller.account.guest);
    response.device_id = caller.device;
    Ok(response)
}

/// Removes a device with everything that is its own.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn remove_device(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    device: &DeviceId,
) -> ApiResult<()> {
    app.accounts.end_session(commit, user, device)?;
    app.accounts.delete_device(commit, user, device);
    commit.log(Change::DeviceList { user });
    Ok(())
}
