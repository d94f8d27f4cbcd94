//! Registration by whoever knows the shared secret, as Synapse's admin API has it.
//!
//! Not in the specification: `GET` gives a nonce, `POST` makes an account with an HMAC-SHA1 over
//! nonce, name, password and whether it administers the server.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;

use super::login;
use crate::{
    accounts::registration::{self, NewAccount},
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, limits::Doing},
    server::App,
};

/// How many nonces are valid at a time; the oldest go first.
const NONCES_MAX: usize = 1_000;

/// How long a nonce is valid, in milliseconds.
const NONCE_MS: u64 = 60_000;

/// Nonces that were given out, and until when each is valid.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<BTreeMap<String, u64>>);

impl Nonces {
    fn give(&self, app: &App) -> String {
        let now_ms = app.clock.now_ms();
        let nonce = app.entropy.text(32);
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|_, until_ms| *until_ms > now_ms);
        while nonces.len() >= NONCES_MAX {
            nonces.pop_first();
        }
        nonces.insert(nonce.clone(), now_ms + NONCE_MS);
        nonce
    }

    fn take(&self, app: &App, nonce: &str) -> bool {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces
            .remove(nonce)
            .is_some_and(|until_ms| until_ms > app.clock.now_ms())
    }
}

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_synapse/admin/v1/register";
    routes.raw(Method::GET, path, nonce);
    routes.raw(Method::POST, path, register);
}

fn secret(app: &App) -> ApiResult<&str> {
    let secret = app.config.registration.shared_secret.as_ref();
    secret
        .map(crate::config::Secret::expose)
        .ok_or_else(|| ApiError::unknown("registration with a shared secret is not enabled"))
}

async fn nonce(app: App, Public(client): Public, _: RawRequest) -> ApiResult<Value> {
    secret(&app)?;
    app.limits.address(&app, Doing::Register, client.0)?;
    Ok(json!({ "nonce": app.nonces.give(&app) }))
}

#[derive(Deserialize)]
struct Body {
    nonce: String,
    username: String,
    password: String,
    mac: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
}

async fn register(app: App, _: Public, request: RawRequest) -> ApiResult<login::LoginReply> {
    let secret = secret(&app)?;
    let body: Body = request.json()?;
    if !app.nonces.take(&app, &body.nonce) {
        return Err(ApiError::unknown("the nonce is not known, or used"));
    }
    let mut mac =
        Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    let admin = if body.admin { "admin" } else { "notadmin" };
    let parts = [&*body.nonce, &*body.username, &*body.password, admin];
    mac.update(parts.join("\0").as_bytes());
    if let Some(kind) = &body.user_type {
        mac.update(b"\0");
        mac.update(kind.as_bytes());
    }
    let right = from_hex(&body.mac).is_some_and(|given| mac.verify_slice(&given).is_ok());
    if !right {
        return Err(ApiError::forbidden("the HMAC is wrong"));
    }
    let user_id = app.local_user_id(&body.username.to_lowercase())?;
    registration::check_name(&app, &user_id, None)?;
    registration::check_password(&app, &body.password)?;
    let new = NewAccount {
        password: Some(body.password),
        admin: body.admin,
        ..NewAccount::default()
    };
    let user = registration::register(&app, &user_id, new).await?;
    if body.inhibit_login {
        return Ok(login::LoginReply::without_session(&app, user_id));
    }
    login::start_session(&app, user, user_id, None, None, false).await
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        })
        .collect()
}
