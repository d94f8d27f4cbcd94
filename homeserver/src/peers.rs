//! Other servers: finding them, knowing their keys, asking them, being asked by them.

pub mod edus;
pub mod origin;
pub mod sender;

use ruma::{ServerName, api::OutgoingRequest};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// Why another server did not answer a request, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It may not be asked: the configuration says so.
    #[error("the server `{0}` is not federated with")]
    Denied(ruma::OwnedServerName),
    /// It was not reached, did not answer in time, or answered with something that is no answer.
    #[error("`{server}` could not be asked: {cause}")]
    Unreachable {
        /// Which server.
        server: ruma::OwnedServerName,
        /// What went wrong, in words.
        cause: String,
    },
    /// It answered with an error.
    #[error("`{server}` answers {status} {errcode}: {message}")]
    Refused {
        /// Which server.
        server: ruma::OwnedServerName,
        /// The status.
        status: http::StatusCode,
        /// The errcode, `M_UNKNOWN` if there is none.
        errcode: String,
        /// The text.
        message: String,
        /// The whole body, at most 64 KiB.
        body: serde_json::Map<String, serde_json::Value>,
    },
}

/// Asks another server something, signed.
///
/// # Errors
/// See [`PeerError`].
pub async fn ask<R>(
    _app: &App,
    server: &ServerName,
    _request: R,
) -> Result<R::IncomingResponse, PeerError>
where
    R: OutgoingRequest + Send,
{
    Err(PeerError::Unreachable {
        server: server.to_owned(),
        cause: "not yet".to_owned(),
    })
}

/// Verifies the signatures and the content hash of an event that another server gave.
///
/// # Errors
/// `M_INVALID_PARAM`, when it is not an event, or not signed by all who must sign it.
pub async fn verify_event(
    _app: &App,
    _object: &ruma::CanonicalJsonObject,
    _rules: &ruma::room_version_rules::RoomVersionRules,
) -> ApiResult<ruma::CanonicalJsonObject> {
    Err(ApiError::invalid_param("not yet"))
}
