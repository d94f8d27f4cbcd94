//! Asking another server: signing the request, bounding the answer, telling errors apart.
//!
//! Does not try again: what can wait has a queue of its own, and who cannot wait is told at once.

use std::time::Duration;

use bytes::Bytes;
use federation::wire::request::Request;
use http::{HeaderValue, Method, StatusCode, header};
use ruma::{
    ServerName,
    api::{IncomingResponse as _, OutgoingBody as _, OutgoingRequest, path_builder::SinglePath},
};
use serde_json::{Map, Value};

use super::PeerError;
use crate::{
    seams::{Lost, Outgoing},
    server::App,
};

/// The longest server name that is spoken to, in bytes: user IDs of longer ones cannot be.
pub(super) const SERVER_NAME_BYTES_MAX: usize = 255;

/// How much of an answer with an error is kept, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// How long an answer may take that nothing is said about.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long an answer with the state of a room may take: the other side has to collect it.
const TIMEOUT_STATE: Duration = Duration::from_mins(5);

/// The largest answer that nothing is said about, in bytes (10 MiB).
const BYTES_MAX: usize = 10 * 1024 * 1024;

/// The largest answer with the state of a room, in bytes (256 MiB): a room with 100,000 members has that.
const BYTES_MAX_STATE: usize = 256 * 1024 * 1024;

/// Endpoints that answer with the state of a room.
const STATE_PATHS: [&str; 4] = [
    "/_matrix/federation/v2/send_join/",
    "/_matrix/federation/v1/state/",
    "/_matrix/federation/v1/state_ids/",
    "/_matrix/federation/v1/event_auth/",
];

/// How much an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first lookup to the last byte.
    pub timeout: Duration,
    /// The largest body, in bytes.
    pub bytes_max: usize,
}

impl Limits {
    /// What is usual for a request to `target`: 60 s and 10 MiB, or 5 min and 256 MiB for the state of a room.
    pub fn usual(target: &str) -> Self {
        let state = STATE_PATHS.iter().any(|path| target.starts_with(path));
        Self {
            timeout: if state { TIMEOUT_STATE } else { TIMEOUT },
            bytes_max: if state { BYTES_MAX_STATE } else { BYTES_MAX },
        }
    }
}

/// Asks another server something, signed, within the usual limits.
///
/// # Errors
/// See [`PeerError`].
pub async fn ask<R>(
    app: &App,
    server: &ServerName,
    request: R,
) -> Result<R::IncomingResponse, PeerError>
where
    R: OutgoingRequest<PathBuilder = SinglePath> + Send,
{
    ask_within(app, server, request, None).await
}

/// As [`ask`], within limits of its own.
///
/// # Errors
/// See [`PeerError`].
pub async fn ask_within<R>(
    app: &App,
    server: &ServerName,
    request: R,
    limits: impl Into<Option<Limits>>,
) -> Result<R::IncomingResponse, PeerError>
where
    R: OutgoingRequest<PathBuilder = SinglePath> + Send,
{
    let limits = limits.into();
    let request = into_bytes(server, request)?;
    let response = send(app, server, request, limits, true).await?;
    let (parts, body) = response.into_parts();
    let response = http::Response::from_parts(parts, &*body);
    R::IncomingResponse::try_from_http_response_inner(response)
        .map_err(|error| unreachable(server, format!("an answer that cannot be read: {error}")))
}

/// The request as it goes over the wire, but for who signs it.
fn into_bytes<R: OutgoingRequest<PathBuilder = SinglePath>>(
    server: &ServerName,
    request: R,
) -> Result<http::Request<Bytes>, PeerError> {
    // ruma makes whole URLs; only the path and the query of this one are used.
    let request = request
        .try_into_http_request_inner("https://localhost", ())
        .map_err(|error| unreachable(server, error.to_string()))?;
    let (mut parts, body) = request.into_parts();
    if let Some(content_type) = body.content_type() {
        let entry = parts.headers.entry(header::CONTENT_TYPE);
        entry.or_insert(content_type);
    }
    let body: Vec<u8> = body.try_into_buf().map_err(|error| {
        let error: ruma::api::error::IntoHttpError = error.into();
        unreachable(server, error.to_string())
    })?;
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target
        .map(http::Uri::from)
        .ok_or_else(|| unreachable(server, "a request without a path".to_owned()))?;
    Ok(http::Request::from_parts(parts, body.into()))
}

/// A request without a type, to a path that has none.
pub(super) fn plain(method: Method, target: &str, body: Option<&Value>) -> http::Request<Bytes> {
    let mut request = http::Request::new(Bytes::new());
    *request.method_mut() = method;
    *request.uri_mut() = target
        .parse()
        .expect("the targets of this server's own are URIs");
    if let Some(body) = body {
        *request.body_mut() = body.to_string().into();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    request
}

/// Sends a request, and gives the answer if it is a good one.
///
/// # Errors
/// See [`PeerError`].
pub(super) async fn send(
    app: &App,
    server: &ServerName,
    mut request: http::Request<Bytes>,
    limits: Option<Limits>,
    signed: bool,
) -> Result<http::Response<Bytes>, PeerError> {
    if !app.config.federation.allows(server) {
        return Err(PeerError::Denied(server.to_owned()));
    }
    if server == app.server_name() || server.as_str().len() > SERVER_NAME_BYTES_MAX {
        return Err(unreachable(
            server,
            "it is this server, or no server".to_owned(),
        ));
    }
    let target = request.uri().to_string();
    let limits = limits.unwrap_or_else(|| Limits::usual(&target));
    if signed {
        let authorization = Request {
            method: request.method().as_str(),
            target: &target,
            origin: app.server_name(),
            destination: server,
            body: request.body(),
        };
        let authorization = authorization.sign(&app.key);
        let authorization = authorization
            .ok()
            .and_then(|header| HeaderValue::try_from(header).ok())
            .ok_or_else(|| unreachable(server, "the request cannot be signed".to_owned()))?;
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization);
    }
    let peers = &app.peers;
    if peers.was_unreachable(app, server) {
        return Err(unreachable(
            server,
            "it could not be reached a moment ago".to_owned(),
        ));
    }
    let place = peers.places.acquire().await;
    let outgoing = Outgoing {
        server: server.to_owned(),
        request,
        timeout: limits.timeout,
        bytes_max: limits.bytes_max,
    };
    let answer = peers.transport.send(outgoing).await;
    drop(place);
    let response = match answer {
        Ok(response) => response,
        Err(lost) => {
            tracing::debug!(%server, target, %lost, "a server was asked and did not answer");
            if matches!(lost, Lost::Unreachable(_)) {
                peers.unreachable(app, server);
            }
            return Err(unreachable(server, lost.to_string()));
        }
    };
    match response.status() {
        status if status.is_success() => Ok(response),
        status if status.is_client_error() || status.is_server_error() => {
            Err(refused(server, status, response.body()))
        }
        status => Err(unreachable(server, format!("it answers {status}"))),
    }
}

fn unreachable(server: &ServerName, cause: String) -> PeerError {
    PeerError::Unreachable {
        server: server.to_owned(),
        cause,
    }
}

fn refused(server: &ServerName, status: StatusCode, body: &[u8]) -> PeerError {
    let short = body.len() <= ERROR_BYTES_MAX;
    let body: Map<String, Value> = short
        .then(|| serde_json::from_slice(body).ok())
        .flatten()
        .unwrap_or_default();
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    PeerError::Refused {
        server: server.to_owned(),
        status,
        errcode: text("errcode").unwrap_or("M_UNKNOWN").to_owned(),
        message: text("error").unwrap_or_default().to_owned(),
        body,
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        api::federation::{discovery::get_server_version, query::get_profile_information},
        server_name, user_id,
    };

    use super::*;

    #[test]
    fn a_request_goes_out_with_its_path_and_query_as_ruma_encodes_them() {
        let request = get_profile_information::v1::Request::new(user_id!("@a/b:c").to_owned());
        let request = into_bytes(server_name!("c"), request).unwrap();
        assert_eq!(
            request.uri().to_string(),
            "/_matrix/federation/v1/query/profile?user_id=%40a%2Fb%3Ac"
        );
        assert!(request.body().is_empty());
        let request = get_server_version::v1::Request::new();
        let request = into_bytes(server_name!("c"), request).unwrap();
        assert_eq!(request.uri(), "/_matrix/federation/v1/version");
        assert_eq!(request.headers().get(header::CONTENT_TYPE), None);
    }

    #[test]
    fn an_error_is_told_with_its_status_errcode_and_whole_body() {
        let error =
            |body: &str| match refused(server_name!("c"), StatusCode::FORBIDDEN, body.as_bytes()) {
                PeerError::Refused {
                    errcode,
                    message,
                    body,
                    ..
                } => (errcode, message, body.len()),
                other => panic!("{other}"),
            };
        let (empty, unknown) = (String::new(), "M_UNKNOWN".to_owned());
        assert_eq!(
            error(r#"{"errcode":"M_FORBIDDEN","error":"no","x":1}"#),
            ("M_FORBIDDEN".to_owned(), "no".to_owned(), 3)
        );
        assert_eq!(
            error(r#"{"errcode":1}"#),
            (unknown.clone(), empty.clone(), 1)
        );
        for body in ["", "<html>", "[]", "{"] {
            assert_eq!(error(body), (unknown.clone(), empty.clone(), 0));
        }
        let long = format!(
            r#"{{"errcode":"M_X","error":"{}"}}"#,
            "x".repeat(ERROR_BYTES_MAX)
        );
        assert_eq!(error(&long), (unknown, empty, 0));
    }

    #[test]
    fn the_state_of_a_room_may_be_larger_and_slower_than_anything_else() {
        let usual = Limits::usual("/_matrix/federation/v1/version");
        let state = Limits::usual("/_matrix/federation/v2/send_join/%21a/%24b?omit_members=true");
        assert_eq!((usual.timeout, usual.bytes_max), (TIMEOUT, BYTES_MAX));
        assert_eq!(
            (state.timeout, state.bytes_max),
            (TIMEOUT_STATE, BYTES_MAX_STATE)
        );
    }
}
