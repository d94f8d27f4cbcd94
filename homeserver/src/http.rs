//! HTTP, below the API: routes, requests, replies, limits, listening.
//!
//! A handler is `async fn(App, Auth, Request) -> ApiResult<Response>`; the types say the path, the
//! method and who may call it. See [`routes::Routes`].

pub mod auth;
pub mod limits;
pub mod listen;
pub mod routes;

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

pub use self::{
    auth::{Caller, Client, Guest, MaybeCaller, Public, Service},
    routes::{RawRequest, Routes},
};

/// A JSON reply.
pub fn json_reply(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => bytes_reply(status, "application/json", bytes),
        Err(error) => {
            tracing::error!(%error, "a reply could not be serialised");
            bytes_reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                "application/json",
                br#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#.to_vec(),
            )
        }
    }
}

/// A reply of any content type.
pub fn bytes_reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
