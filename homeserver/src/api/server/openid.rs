//! Whose an `OpenID` token is: asked by third parties to whom a user gave one.
//!
//! Spec: server-server API, `OpenID`.

use http::Method;
use serde_json::{Value, json};

use crate::{
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, limits::Doing},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_matrix/federation/v1/openid/userinfo";
    routes.raw(Method::GET, path, userinfo);
}

async fn userinfo(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Value> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let token = request
        .query("access_token")
        .ok_or_else(|| ApiError::missing_token("`access_token` is missing"))?;
    let user_id = app.accounts.openid_user(&token, app.clock.now_ms())?;
    let user_id = user_id.ok_or_else(|| {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "M_UNKNOWN_TOKEN",
            "the token is not known, or has expired",
        )
    })?;
    Ok(json!({ "sub": user_id }))
}
