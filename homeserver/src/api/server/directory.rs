//! Aliases and the published directory of this server, for other servers.
//!
//! Spec: server-server API, `GET /query/directory`, "Published room directory".

use http::Method;
use ruma::api::federation::{
    directory::{get_public_rooms, get_public_rooms_filtered},
    query::get_room_information,
};
use serde_json::{Map, Value};

use crate::{
    api::client::directory::{own_alias, page, wanted},
    error::{ApiError, ApiResult},
    http::{Origin, RawRequest, Routes, routes},
    rooms::{directory::Wanted, read::known_room, served},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(alias);
    let path = "/_matrix/federation/v1/publicRooms";
    routes.raw(Method::GET, path, list);
    routes.raw(Method::POST, path, search);
}

/// Where an alias of this server leads, and which servers are in the room.
async fn alias(
    app: App,
    _: Origin,
    request: get_room_information::v1::Request,
) -> ApiResult<get_room_information::v1::Response> {
    let alias = request.room_alias;
    if alias.server_name() != app.server_name() {
        return Err(ApiError::invalid_param(
            "the alias is not one of this server",
        ));
    }
    let room_id = own_alias(&app, &alias).await?;
    let (_, view) = known_room(&app, &room_id)?;
    let mut servers = served::residents(&app, &view)?;
    if servers.is_empty() {
        // Nobody is in the room any more; who knows the alias is the only one to ask.
        servers.push(app.server_name().to_owned());
    }
    Ok(get_room_information::v1::Response::new(room_id, servers))
}

async fn list(app: App, _: Origin, request: RawRequest) -> ApiResult<Map<String, Value>> {
    let request = routes::parse_typed::<get_public_rooms::v1::Request>(&request)?;
    let limit = request.limit.map(u64::from);
    let (wanted, network) = (Wanted::default(), &request.room_network);
    page(&app, &wanted, network, request.since.as_deref(), limit)
}

async fn search(app: App, _: Origin, request: RawRequest) -> ApiResult<Map<String, Value>> {
    let request = routes::parse_typed::<get_public_rooms_filtered::v1::Request>(&request)?;
    let (wanted, network) = (wanted(&request.filter)?, &request.room_network);
    let limit = request.limit.map(u64::from);
    page(&app, &wanted, network, request.since.as_deref(), limit)
}
