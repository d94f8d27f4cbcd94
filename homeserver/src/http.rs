//! HTTP, below the API: routes, requests, replies, limits, listening.
//!
//! A handler is `async fn(App, Auth, Request) -> ApiResult<Response>`; the types say the path, the
//! method and who may call it. See [`routes::Routes`].

pub mod auth;
pub mod limits;
pub mod listen;
pub mod routes;

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;

pub use self::{
    auth::{Caller, Client, Guest, MaybeCaller, Origin, Public, Service},
    routes::{RawRequest, Routes},
};

/// The first value of a query parameter; only its own is decoded.
pub fn query(parts: &Parts, name: &str) -> Option<String> {
    let is_other = |pair: &str| {
        let key = pair.split('=').next().unwrap_or_default();
        key != name && !key.contains(['%', '+'])
    };
    let mut pairs = parts.uri.query()?.split('&').filter(|pair| !is_other(pair));
    pairs.find_map(|pair| {
        let pair: Vec<(String, String)> = serde_html_form::from_str(pair).ok()?;
        pair.into_iter()
            .find_map(|(key, value)| (key == name).then_some(value))
    })
}

/// Every value of a query parameter.
pub fn queries(parts: &Parts, name: &str) -> Vec<String> {
    let query = parts.uri.query().unwrap_or_default();
    let pairs: Result<Vec<(String, String)>, _> = serde_html_form::from_str(query);
    let pairs = pairs.unwrap_or_default().into_iter();
    pairs
        .filter_map(|(key, value)| (key == name).then_some(value))
        .collect()
}

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

#[cfg(test)]
mod tests {
    use http::Request;

    #[test]
    fn a_query_parameter_is_found_and_decoded() {
        let uri = "/sync?filter=%7B%22a%22%3A+1%7D&bad=%FF&%74imeout=5&since=&since=b&flag";
        let (parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        let query = |name| super::query(&parts, name);
        assert_eq!(query("filter").as_deref(), Some(r#"{"a": 1}"#));
        assert_eq!(query("timeout").as_deref(), Some("5"));
        assert_eq!(query("since").as_deref(), Some(""));
        assert_eq!(query("flag").as_deref(), Some(""));
        assert_eq!(query("bad").as_deref(), Some("\u{fffd}"));
        assert_eq!(query("ilter"), None);
    }
}
