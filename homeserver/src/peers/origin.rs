//! Who makes a request: the `Authorization: X-Matrix` header.
//!
//! [`parse`] is done before the body is read, so that who may not ask anything costs nothing; [`verify`] after it,
//! because the signature is over the body, too.
//!
//! Spec: server-server API, "Request Authentication".

use federation::wire::request::{HEADER_BYTES_MAX, Request, XMatrix};
use http::{header, request::Parts};

use crate::{
    error::{ApiError, ApiResult},
    http::Origin,
    server::App,
};

/// The server that says to make a request.
///
/// # Errors
/// `M_FORBIDDEN`, if nothing is exchanged with it; `M_UNAUTHORIZED`, if it cannot be told, or the request is for another
/// server.
pub fn parse(app: &App, parts: &Parts) -> ApiResult<Origin> {
    if !app.config.federation.enabled {
        return Err(ApiError::forbidden("this server does not federate"));
    }
    let header = header(parts)?;
    if header
        .destination
        .as_deref()
        .is_some_and(|destination| destination != app.server_name())
    {
        return Err(ApiError::unauthorized("the request is for another server"));
    }
    if header.origin == app.server_name() {
        return Err(ApiError::unauthorized("this server does not ask itself"));
    }
    if !app.config.federation.allows(&header.origin) {
        return Err(ApiError::forbidden(
            "this server does not federate with yours",
        ));
    }
    Ok(Origin {
        name: header.origin,
    })
}

/// That it really does: the signature over method, target and body.
///
/// # Errors
/// `M_UNAUTHORIZED`.
pub async fn verify(app: &App, origin: &Origin, parts: &Parts, body: &[u8]) -> ApiResult<()> {
    let header = header(parts)?;
    let key = app.peers.keys.of_request(app, &origin.name, &header.key_id);
    let key = key.await.ok_or_else(|| {
        ApiError::unauthorized("the key that the request is signed with cannot be found")
    })?;
    // As it was sent: nothing on the way here has decoded it.
    let target = parts.uri.path_and_query();
    let request = Request {
        method: parts.method.as_str(),
        target: target.map_or("/", http::uri::PathAndQuery::as_str),
        origin: &origin.name,
        destination: app.server_name(),
        body,
    };
    header.verify(&request, &key).map_err(|error| {
        tracing::debug!(origin = %origin.name, %error, "a request is not signed as it says");
        ApiError::unauthorized("the signature of the request is wrong")
    })?;
    // Whoever asks can be asked.
    app.peers.reached(&origin.name);
    Ok(())
}

/// The first header of the scheme. Very old servers sent one for each of their keys.
fn header(parts: &Parts) -> ApiResult<XMatrix> {
    let mut problem = None;
    for value in parts.headers.get_all(header::AUTHORIZATION) {
        let bytes = value.as_bytes();
        let text = std::str::from_utf8(bytes.get(..HEADER_BYTES_MAX + 1).unwrap_or(bytes));
        match text.map(XMatrix::parse) {
            Ok(Ok(header)) => return Ok(header),
            Ok(Err(error)) => problem = Some(error.to_string()),
            Err(_) => problem = Some("the authorization is not UTF-8".to_owned()),
        }
    }
    let problem = problem.unwrap_or_else(|| "the request is not signed".to_owned());
    Err(ApiError::unauthorized(problem))
}
