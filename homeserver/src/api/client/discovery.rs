//! What a client asks before and right after it logs in: versions, well-known, capabilities.
//!
//! Spec: client-server API, "API Standards", "Server Discovery", "Capabilities negotiation".

use std::collections::BTreeMap;

use http::Method;
use ruma::api::client::discovery::get_capabilities;
use serde_json::{Value, json};

use crate::{
    error::ApiResult,
    http::{Caller, Public, RawRequest, Routes},
    server::App,
};

/// The versions of the specification that clients may count on.
const VERSIONS: [&str; 27] = [
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2",
    "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13",
    "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// What is served beyond them, or by the names it had before.
const UNSTABLE: [&str; 2] = ["org.matrix.msc4222", "org.matrix.simplified_msc3575"];

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(Method::GET, "/_matrix/client/versions", versions);
    routes.raw(Method::GET, "/.well-known/matrix/client", well_known_client);
    routes.add(capabilities);
}

async fn versions(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let unstable: BTreeMap<&str, bool> = UNSTABLE.iter().map(|name| (*name, true)).collect();
    Ok(json!({ "versions": VERSIONS, "unstable_features": unstable }))
}

async fn well_known_client(app: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "m.homeserver": { "base_url": app.config.public_base_url() } }))
}

async fn capabilities(
    app: App,
    _: Caller,
    _: get_capabilities::v3::Request,
) -> ApiResult<get_capabilities::v3::Response> {
    use get_capabilities::v3::{
        Capabilities, Response, RoomVersionStability, RoomVersionsCapability,
    };
    let available = federation::event::SERVED_ROOM_VERSIONS
        .into_iter()
        .map(|version| (version, RoomVersionStability::Stable))
        .collect();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(app.default_room_version(), available);
    Ok(Response::new(capabilities))
}
