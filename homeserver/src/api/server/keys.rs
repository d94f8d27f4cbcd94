//! This server's version and signing keys, and what it knows of the keys of others: every server is a notary.
//!
//! Spec: server-server API, "Server implementation", "Retrieving server keys".

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use federation::wire::keyring::{Want, is_ed25519};
use http::{Method, StatusCode};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName,
    canonical_json::try_from_json_map, signatures::sign_json,
};
use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, bytes_reply, limits::Doing},
    peers::keys::Need,
    server::App,
};

/// How long others may go by an answer before they ask again, in milliseconds: a day.
const VALID_MS: u64 = 24 * 60 * 60 * 1_000;

/// How many servers one request can make this server ask for their keys. What is asked for beyond that is answered from
/// what is known.
const ASKED_MAX: usize = 100;

/// How many keys of one server one request can ask for by name.
const KEY_IDS_MAX: usize = 32;

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(Method::GET, "/_matrix/federation/v1/version", version);
    routes.route(Method::GET, "/_matrix/key/v2/server", own_keys);
    // Gone from the specification, and still asked for.
    routes.route(Method::GET, "/_matrix/key/v2/server/{key_id}", own_keys);
    routes.route(
        Method::GET,
        "/_matrix/key/v2/query/{server_name}",
        known_keys,
    );
    routes.route(Method::POST, "/_matrix/key/v2/query", query_keys);
}

async fn version(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "server": { "name": "Guildhall", "version": env!("CARGO_PKG_VERSION") } }))
}

/// This server's keys, signed. Peers check the signature over the bytes, so they are canonical JSON.
fn signed_keys(app: &App) -> ApiResult<CanonicalJsonObject> {
    let key_pair = app.key.key_pair();
    let key_id = format!("ed25519:{}", key_pair.version());
    let public_key = federation::wire::request::public_key_base64(&app.key);
    let mut old_keys = Map::new();
    for old in &app.config.federation.old_verify_keys {
        if old.id != key_id {
            let expired_ts = old.expired_unix_seconds.saturating_mul(1_000);
            let old_key = json!({ "key": old.public_key, "expired_ts": expired_ts });
            old_keys.insert(old.id.clone(), old_key);
        }
    }
    let object = json!({
        "server_name": app.server_name(),
        "valid_until_ts": app.clock.now_ms() + VALID_MS,
        "verify_keys": { key_id: { "key": public_key } },
        "old_verify_keys": old_keys,
    });
    let object: Map<String, Value> =
        serde_json::from_value(object).map_err(|error| ApiError::internal(&error))?;
    let object = try_from_json_map(object).map_err(|error| ApiError::internal(&error))?;
    signed(app, object)
}

/// With this server's signature beside those that are there.
fn signed(app: &App, mut object: CanonicalJsonObject) -> ApiResult<CanonicalJsonObject> {
    sign_json(app.server_name().as_str(), app.key.key_pair(), &mut object)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(object)
}

fn canonical(object: &CanonicalJsonObject) -> ApiResult<Response> {
    let bytes = serde_json::to_vec(object).map_err(|error| ApiError::internal(&error))?;
    Ok(bytes_reply(StatusCode::OK, "application/json", bytes))
}

async fn own_keys(app: App, _: Public, _: RawRequest) -> ApiResult<Response> {
    canonical(&signed_keys(&app)?)
}

async fn known_keys(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Response> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let server = ServerName::parse(request.arg(0))
        .map_err(|_| ApiError::invalid_param("this is not a server name"))?;
    let until_ms = match request.query("minimum_valid_until_ts") {
        Some(until) => until
            .parse()
            .map_err(|_| ApiError::invalid_param("`minimum_valid_until_ts` is not a time"))?,
        None => app.clock.now_ms(),
    };
    let need = Need {
        wants: BTreeSet::new(),
        until_ms,
    };
    answer(&app, vec![(server, need)]).await
}

async fn query_keys(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Response> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let body: Map<String, Value> = request.json()?;
    let asked = body.get("server_keys").and_then(Value::as_object);
    let asked = asked.ok_or_else(|| ApiError::bad_json("`server_keys` is not an object"))?;
    let mut needs = Vec::new();
    for (name, criteria) in asked {
        let Ok(server) = ServerName::parse(name) else {
            continue;
        };
        let criteria = criteria
            .as_object()
            .ok_or_else(|| ApiError::bad_json("what is asked of a server is not an object"))?;
        needs.push((server, need(&app, criteria)));
    }
    answer(&app, needs).await
}

/// What is asked of one server: for each key, until when an answer must count.
fn need(app: &App, criteria: &Map<String, Value>) -> Need {
    let until_ms = criteria
        .values()
        .filter_map(|criteria| criteria.get("minimum_valid_until_ts")?.as_u64())
        .max();
    let key_ids = criteria.keys().filter(|key_id| is_ed25519(key_id));
    let wants = key_ids.take(KEY_IDS_MAX).map(|key_id| Want {
        key_ids: BTreeSet::from([key_id.clone()]),
        at_ms: None,
        current: false,
    });
    Need {
        wants: wants.collect(),
        until_ms: until_ms.unwrap_or_else(|| app.clock.now_ms()),
    }
}

/// What the servers themselves said last, as they said it, with this server's signature added.
async fn answer(app: &App, needs: Vec<(OwnedServerName, Need)>) -> ApiResult<Response> {
    let mut answers: Vec<CanonicalJsonValue> = Vec::new();
    let (mut asked, mut known) = (BTreeMap::new(), Vec::new());
    for (server, need) in needs {
        if server == app.server_name() {
            answers.push(signed_keys(app)?.into());
        } else if asked.len() < ASKED_MAX {
            asked.insert(server, need);
        } else {
            known.push(server);
        }
    }
    app.peers.keys.refresh(app, &asked).await;
    for server in asked.keys().chain(&known) {
        if let Some(answer) = app.peers.keys.published(app, server)? {
            answers.push(signed(app, answer)?.into());
        }
    }
    canonical(&CanonicalJsonObject::from([(
        "server_keys".to_owned(),
        answers.into(),
    )]))
}
