//! Pushers, and what a user was told of before.
//!
//! Only pushers of kind `http` are served: this server sends no mail.
//! Spec: client-server API, "Push Notifications"; MSC3881 for `enabled` and `device_id`.

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::PREFIXES;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    push::{
        history,
        pushers::{self, PusherKey, PusherRow},
    },
    server::App,
    sync::Token,
};

/// The longest app ID, in characters. Spec: `POST /pushers/set`.
const APP_ID_CHARS_MAX: usize = 64;

/// The longest push key, in bytes. Spec: `POST /pushers/set`.
const PUSHKEY_BYTES_MAX: usize = 512;

/// The longest name, language or profile tag, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// The largest `data`, in bytes of JSON.
const DATA_BYTES_MAX: usize = 8_192;

/// The path that every gateway has. Spec: `POST /pushers/set`, `data.url`.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

/// How many notifications a client gets that names no number, and how many at most.
const NOTIFICATIONS_DEFAULT: usize = 20;
const NOTIFICATIONS_MAX: usize = 100;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(Method::GET, &format!("{prefix}/pushers"), list);
        routes.raw(Method::POST, &format!("{prefix}/pushers/set"), set);
        routes.raw(
            Method::GET,
            &format!("{prefix}/notifications"),
            notifications,
        );
    }
}

async fn list(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    let pushers = pushers::of_user(&app.store, caller.user)?;
    let pushers: Vec<Value> = pushers.iter().map(shown).collect();
    Ok(json!({ "pushers": pushers }))
}

fn shown(row: &PusherRow) -> Value {
    let mut pusher = json!({
        "kind": "http",
        "app_id": row.app_id,
        "pushkey": row.pushkey,
        "app_display_name": row.app_display_name,
        "device_display_name": row.device_display_name,
        "lang": row.lang,
        "data": row.data,
        "org.matrix.msc3881.enabled": row.enabled,
    });
    if let Some(pusher) = pusher.as_object_mut() {
        let mut say = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                pusher.insert(key.to_owned(), value.into());
            }
        };
        say("profile_tag", row.profile_tag.clone());
        let device = row.device.as_ref().map(ToString::to_string);
        say("org.matrix.msc3881.device_id", device);
    }
    pusher
}

#[derive(Deserialize)]
struct Setting {
    app_id: Option<String>,
    pushkey: Option<String>,
    app_display_name: Option<String>,
    device_display_name: Option<String>,
    profile_tag: Option<String>,
    lang: Option<String>,
    data: Option<Map<String, Value>>,
    #[serde(default)]
    append: bool,
    #[serde(rename = "org.matrix.msc3881.enabled", alias = "enabled")]
    enabled: Option<bool>,
}

async fn set(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Map<String, Value> = request.json()?;
    let kind = body.get("kind").cloned();
    let kind = kind.ok_or_else(|| ApiError::missing_param("`kind` is missing"))?;
    let setting: Setting = serde_json::from_value(body.into())
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    let (app_id, pushkey) = (
        needed("app_id", setting.app_id)?,
        needed("pushkey", setting.pushkey)?,
    );
    if app_id.chars().count() > APP_ID_CHARS_MAX {
        let message = format!("`app_id` has at most {APP_ID_CHARS_MAX} characters");
        return Err(ApiError::invalid_param(message));
    }
    if pushkey.len() > PUSHKEY_BYTES_MAX {
        let message = format!("`pushkey` has at most {PUSHKEY_BYTES_MAX} bytes");
        return Err(ApiError::invalid_param(message));
    }
    match kind.as_str() {
        None if kind.is_null() => {
            let key = PusherKey {
                user: caller.user,
                app_id,
                pushkey,
            };
            pushers::delete(&app, &key).await?;
            return Ok(json!({}));
        }
        Some("http") => {}
        _ => {
            return Err(ApiError::invalid_param(
                "only pushers of kind `http` are served",
            ));
        }
    }
    let data = setting
        .data
        .ok_or_else(|| ApiError::missing_param("`data` is missing"))?;
    check_data(&app, &data)?;
    let row = PusherRow {
        app_id,
        pushkey,
        app_display_name: text("app_display_name", setting.app_display_name)?,
        device_display_name: text("device_display_name", setting.device_display_name)?,
        profile_tag: match setting.profile_tag {
            Some(tag) => Some(text("profile_tag", Some(tag))?),
            None => None,
        },
        lang: text("lang", setting.lang)?,
        data,
        enabled: setting.enabled.unwrap_or(true),
        device: caller.device.clone(),
        set_ms: app.clock.now_ms(),
        told: 0,
    };
    pushers::set(&app, caller.user, row, setting.append).await?;
    Ok(json!({}))
}

fn needed(name: &str, value: Option<String>) -> ApiResult<String> {
    value.ok_or_else(|| ApiError::missing_param(format!("`{name}` is missing")))
}

fn text(name: &str, value: Option<String>) -> ApiResult<String> {
    let value = needed(name, value)?;
    if value.len() > TEXT_BYTES_MAX {
        let message = format!("`{name}` has at most {TEXT_BYTES_MAX} bytes");
        return Err(ApiError::invalid_param(message));
    }
    Ok(value)
}

/// That the gateway is one: HTTPS, with the path that gateways have, at a public address.
fn check_data(app: &App, data: &Map<String, Value>) -> ApiResult<()> {
    let length = serde_json::to_string(data).map_or(usize::MAX, |json| json.len());
    if length > DATA_BYTES_MAX {
        let message = format!("`data` has at most {DATA_BYTES_MAX} bytes");
        return Err(ApiError::invalid_param(message));
    }
    let url = data
        .get("url")
        .ok_or_else(|| ApiError::missing_param("`data.url` is missing"))?;
    let url = url.as_str().unwrap_or_default();
    let rest = match url.split_once("://") {
        Some(("https", rest)) => rest,
        // A gateway in a test rig has no certificate.
        Some(("http", rest)) if app.config.testing.allow_private_addresses => rest,
        _ => return Err(ApiError::invalid_param("`data.url` must be an HTTPS URL")),
    };
    let path = rest.find('/').and_then(|slash| rest.get(slash..));
    let path = path.unwrap_or_default().split(['?', '#']).next();
    if path != Some(GATEWAY_PATH) {
        let message = format!("the path of `data.url` must be `{GATEWAY_PATH}`");
        return Err(ApiError::invalid_param(message));
    }
    app.media
        .outward
        .request(Method::POST, url)
        .map(drop)
        .map_err(|refusal| ApiError::invalid_param(format!("`data.url`: {refusal}")))
}

async fn notifications(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let from = request.query("from");
    let from = from.map(|from| Token::parse(&app, &from)).transpose()?;
    let limit = match request.query("limit") {
        Some(limit) => limit
            .parse()
            .map_err(|_| ApiError::invalid_param("`limit` is no number"))?,
        None => NOTIFICATIONS_DEFAULT,
    };
    let only = request.query("only");
    let highlight = only.is_some_and(|only| only == "highlight");
    let limit = limit.clamp(1, NOTIFICATIONS_MAX);
    // A token is the point behind an order; a page begins before it.
    let from = from.map(|from| from.order.saturating_add(1));
    let page = history::page(&app, &caller, from, limit, highlight)?;
    let mut answer = json!({ "notifications": page.notifications });
    if let (Some(next), Some(answer)) = (page.next, answer.as_object_mut()) {
        let token = Token::before(next).to_string();
        answer.insert("next_token".to_owned(), token.into());
    }
    Ok(answer)
}
