//! Upgrading a room to another version.
//!
//! Spec: client-server API, "Room Upgrades".

use ruma::api::client::room::upgrade_room;

use crate::{
    error::ApiResult,
    http::{Caller, Routes, limits::Doing},
    rooms::upgrade::{self, Upgrade},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(upgrade);
}

async fn upgrade(
    app: App,
    caller: Caller,
    request: upgrade_room::v3::Request,
) -> ApiResult<upgrade_room::v3::Response> {
    caller.limit(&app, Doing::CreateRoom)?;
    caller.must_not_be_suspended()?;
    let wanted = Upgrade {
        version: request.new_version,
        additional_creators: request.additional_creators,
    };
    let replacement = upgrade::upgrade(&app, &caller, &request.room_id, wanted).await?;
    Ok(upgrade_room::v3::Response::new(replacement))
}
