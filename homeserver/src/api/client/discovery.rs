//! What a client asks before and right after it logs in: versions, well-known, capabilities.
//!
//! Spec: client-server API, "API Standards", "Server Discovery", "Capabilities negotiation",
//! "Voice over IP"; MSC4143 for group calls.

use std::collections::BTreeMap;

use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::Method;
use serde_json::{Map, Value, json};
use sha1::Sha1;

use super::PREFIXES;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, Guest, Public, RawRequest, Routes},
    server::App,
};

/// The versions of the specification that clients may count on.
const VERSIONS: [&str; 27] = [
    "r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2",
    "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13",
    "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// What is served beyond them, or by the names it had before.
const UNSTABLE: [&str; 25] = [
    "com.beeper.msc4169",
    "org.matrix.msc2285.stable",
    "org.matrix.msc3030",
    "org.matrix.msc3440.stable",
    "org.matrix.msc3771",
    "org.matrix.msc3773",
    "org.matrix.e2e_cross_signing",
    "org.matrix.msc3814",
    "org.matrix.msc3881",
    "org.matrix.msc3916.stable",
    "org.matrix.msc3952_intentional_mentions",
    "org.matrix.msc3981",
    "org.matrix.msc4140",
    "org.matrix.msc4143",
    "org.matrix.msc4155",
    "org.matrix.msc4222",
    "org.matrix.msc4306",
    "org.matrix.msc4308",
    "org.matrix.msc4380.stable",
    "org.matrix.simplified_msc3575",
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
    "uk.timedout.msc4323",
];

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(Method::GET, "/_matrix/client/versions", versions);
    routes.raw(Method::GET, "/.well-known/matrix/client", well_known_client);
    routes.raw(Method::GET, "/.well-known/matrix/server", well_known_server);
    routes.raw(
        Method::GET,
        "/.well-known/matrix/support",
        well_known_support,
    );
    for prefix in PREFIXES {
        routes.raw(Method::GET, &format!("{prefix}/capabilities"), capabilities);
        routes.raw(
            Method::GET,
            &format!("{prefix}/voip/turnServer"),
            turn_server,
        );
    }
    let transports = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
    routes.raw(Method::GET, transports, rtc_transports);
}

async fn versions(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let unstable: BTreeMap<&str, bool> = UNSTABLE.iter().map(|name| (*name, true)).collect();
    Ok(json!({ "versions": VERSIONS, "unstable_features": unstable }))
}

async fn well_known_client(app: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let mut known = json!({ "m.homeserver": { "base_url": app.config.public_base_url() } });
    let foci = transports(&app);
    if let (Some(known), false) = (known.as_object_mut(), foci.is_empty()) {
        known.insert("org.matrix.msc4143.rtc_foci".to_owned(), foci.into());
    }
    Ok(known)
}

async fn well_known_server(app: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let server = app.config.server.well_known_server.as_ref();
    server
        .map(|server| json!({ "m.server": server }))
        .ok_or_else(|| ApiError::not_found("this server delegates to no other name"))
}

async fn well_known_support(app: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let support = &app.config.server.support;
    if support.page.is_none() && support.contacts.is_empty() {
        return Err(ApiError::not_found("nobody is named to ask for help"));
    }
    let contacts: Vec<Value> = support.contacts.iter().map(contact).collect();
    let mut known = Map::new();
    known.extend(
        support
            .page
            .clone()
            .map(|page| ("support_page".to_owned(), page.into())),
    );
    if !contacts.is_empty() {
        known.insert("contacts".to_owned(), contacts.into());
    }
    Ok(known.into())
}

fn contact(contact: &crate::config::Contact) -> Value {
    let mut known = Map::new();
    known.insert("role".to_owned(), contact.role.as_str().into());
    let matrix_id = contact.matrix_id.as_ref().map(ToString::to_string);
    known.extend(matrix_id.map(|id| ("matrix_id".to_owned(), id.into())));
    let email = contact.email.clone();
    known.extend(email.map(|email| ("email_address".to_owned(), email.into())));
    known.into()
}

/// The services for group calls, as clients are told them (MSC4143).
fn transports(app: &App) -> Vec<Value> {
    let urls = app.config.rtc.livekit_service_urls.iter();
    urls.map(|url| json!({ "type": "livekit", "livekit_service_url": url }))
        .collect()
}

async fn rtc_transports(app: App, _: Guest, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "rtc_transports": transports(&app) }))
}

/// Credentials of the relay, which checks them with the same secret: no account is needed there.
async fn turn_server(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    let turn = &app.config.turn;
    let Some(secret) = turn
        .shared_secret
        .as_ref()
        .filter(|_| !turn.uris.is_empty())
    else {
        return Ok(json!({}));
    };
    let until = app.clock.now_ms() / 1_000 + turn.lifetime_seconds;
    let username = format!("{until}:{}", caller.user_id);
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(username.as_bytes());
    let password = base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
    Ok(json!({
        "username": username,
        "password": password,
        "uris": turn.uris,
        "ttl": turn.lifetime_seconds,
    }))
}

async fn capabilities(app: App, caller: Guest, _: RawRequest) -> ApiResult<Value> {
    let Guest(caller) = caller;
    let available: BTreeMap<String, &str> = federation::event::SERVED_ROOM_VERSIONS
        .into_iter()
        .map(|version| (version.to_string(), "stable"))
        .collect();
    let enabled = |enabled: bool| json!({ "enabled": enabled });
    let mut capabilities = json!({
        "m.room_versions": { "default": app.default_room_version(), "available": available },
        "m.change_password": enabled(caller.account.password_hash.is_some()),
        "m.set_displayname": enabled(true),
        "m.set_avatar_url": enabled(true),
        "m.3pid_changes": enabled(false),
        "m.get_login_token": enabled(true),
        "m.profile_fields": enabled(true),
        "m.forget_forced_upon_leave": enabled(false),
        "uk.tcpip.msc4133.profile_fields": enabled(true),
    });
    if let (Some(capabilities), true) = (capabilities.as_object_mut(), caller.account.admin) {
        for name in ["m.account_moderation", "uk.timedout.msc4323"] {
            capabilities.insert(name.to_owned(), json!({ "suspend": true, "lock": true }));
        }
    }
    Ok(json!({ "capabilities": capabilities }))
}
