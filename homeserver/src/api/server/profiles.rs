//! Profiles of local users, for other servers.
//!
//! Spec: server-server API, `GET /query/profile`.

use http::Method;
use ruma::UserId;
use serde_json::{Map, Value};

use crate::{
    accounts::profiles,
    appservices,
    error::{ApiError, ApiResult},
    http::{Origin, RawRequest, Routes},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_matrix/federation/v1/query/profile";
    routes.raw(Method::GET, path, profile);
}

async fn profile(app: App, _: Origin, request: RawRequest) -> ApiResult<Map<String, Value>> {
    let user_id = request
        .query("user_id")
        .ok_or_else(|| ApiError::missing_param("`user_id` is missing"))?;
    let user_id = UserId::parse(user_id).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    if !app.is_local(&user_id) {
        return Err(ApiError::invalid_param(
            "the user is not one of this server",
        ));
    }
    appservices::ask::user(&app, &user_id).await?;
    let mut profile = profiles::of_local(&app, &user_id)?;
    if let Some(field) = request.query("field") {
        // "If the user does not have a particular field set", it is left out.
        profile.retain(|key, _| *key == field);
    }
    Ok(profile)
}
