//! Who makes a request: the `Authorization: X-Matrix` header.
//!
//! Spec: server-server API, "Request Authentication".

use http::request::Parts;

use crate::{
    error::{ApiError, ApiResult},
    http::Origin,
    server::App,
};

/// The server that says to make a request.
///
/// # Errors
/// `M_UNAUTHORIZED`.
pub fn parse(_app: &App, _parts: &Parts) -> ApiResult<Origin> {
    Err(ApiError::unauthorized("not yet"))
}

/// That it really does: the signature over method, target and body.
///
/// # Errors
/// `M_UNAUTHORIZED`.
pub async fn verify(_app: &App, _origin: &Origin, _parts: &Parts, _body: &[u8]) -> ApiResult<()> {
    Err(ApiError::unauthorized("not yet"))
}
