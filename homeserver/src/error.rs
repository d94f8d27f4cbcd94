//! What a client is told when something went wrong: the only file that picks a status and an errcode.
//!
//! `message` is for the client; causes are for the log, where they are written once.
//! Spec: client-server API, "Standard error response".

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use federation::{
    event::{DraftError, Malformed},
    room::auth::AuthRejection,
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};
use store::StoreError;

/// An error as a client sees it.
#[derive(Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The `errcode`.
    pub errcode: Cow<'static, str>,
    /// The `error`: for people, may change.
    pub message: Cow<'static, str>,
    /// Further keys of the body, such as `soft_logout`.
    pub extra: Map<String, Value>,
}

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

macro_rules! constructors {
    ($($(#[doc = $doc:literal])+ $name:ident => $status:ident, $errcode:literal;)+) => {
        impl ApiError {
            $($(#[doc = $doc])+
            pub fn $name(message: impl Into<Cow<'static, str>>) -> Self {
                Self::new(StatusCode::$status, $errcode, message)
            })+
        }
    };
}

constructors! {
    /// The caller may not do this.
    forbidden => FORBIDDEN, "M_FORBIDDEN";
    /// There is no such thing, or the caller may not know of it.
    not_found => NOT_FOUND, "M_NOT_FOUND";
    /// Valid JSON of another shape.
    bad_json => BAD_REQUEST, "M_BAD_JSON";
    /// Not JSON at all.
    not_json => BAD_REQUEST, "M_NOT_JSON";
    /// A parameter that cannot be right.
    invalid_param => BAD_REQUEST, "M_INVALID_PARAM";
    /// A parameter that must be there.
    missing_param => BAD_REQUEST, "M_MISSING_PARAM";
    /// No access token.
    missing_token => UNAUTHORIZED, "M_MISSING_TOKEN";
    /// Another server's request that is not signed as it must be.
    unauthorized => UNAUTHORIZED, "M_UNAUTHORIZED";
    /// Nothing is served here.
    unrecognized => NOT_FOUND, "M_UNRECOGNIZED";
    /// The path is served, the method is not.
    wrong_method => METHOD_NOT_ALLOWED, "M_UNRECOGNIZED";
    /// Something is larger than its limit.
    too_large => PAYLOAD_TOO_LARGE, "M_TOO_LARGE";
    /// The request makes no sense in the present state of things.
    bad_state => BAD_REQUEST, "M_BAD_STATE";
    /// Anything else the client did wrong.
    unknown => BAD_REQUEST, "M_UNKNOWN";
    /// A user name that cannot be.
    invalid_username => BAD_REQUEST, "M_INVALID_USERNAME";
    /// A user name that is taken.
    user_in_use => BAD_REQUEST, "M_USER_IN_USE";
    /// A user name or alias that belongs to an application service.
    exclusive => BAD_REQUEST, "M_EXCLUSIVE";
    /// A room alias that is taken.
    room_in_use => CONFLICT, "M_ROOM_IN_USE";
    /// The state that was asked for cannot be made.
    invalid_room_state => BAD_REQUEST, "M_INVALID_ROOM_STATE";
    /// A room version that is not served.
    unsupported_room_version => BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION";
    /// An alias that is malformed or leads elsewhere.
    bad_alias => BAD_REQUEST, "M_BAD_ALIAS";
    /// The account was deactivated.
    user_deactivated => FORBIDDEN, "M_USER_DEACTIVATED";
    /// An e-mail address or phone number that this server does not take.
    threepid_denied => FORBIDDEN, "M_THREEPID_DENIED";
    /// An e-mail address or phone number of no account.
    threepid_not_found => BAD_REQUEST, "M_THREEPID_NOT_FOUND";
    /// Guests may not do this.
    guest_forbidden => FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN";
    /// A password that is too weak.
    weak_password => BAD_REQUEST, "M_WEAK_PASSWORD";
    /// A sliding sync `pos` that is not known here.
    unknown_pos => BAD_REQUEST, "M_UNKNOWN_POS";
    /// The user takes no invites, or none of this sender.
    invite_blocked => FORBIDDEN, "M_INVITE_BLOCKED";
    /// An event that is not in the thread it should be in (MSC4306).
    not_in_thread => BAD_REQUEST, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
    /// A subscription of a client's own that its user has overruled (MSC4306).
    conflicting_unsubscription => CONFLICT, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";
    /// The client should have been faster.
    timed_out => REQUEST_TIMEOUT, "M_UNKNOWN";
    /// Another server did not do its part.
    bad_gateway => BAD_GATEWAY, "M_UNKNOWN";
}

impl ApiError {
    /// An error with any status and errcode.
    pub fn new(
        status: StatusCode,
        errcode: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            errcode: errcode.into(),
            message: message.into(),
            extra: Map::new(),
        }
    }

    /// With one more key in its body.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// With another status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// A token that is not, or no longer, known. After a soft logout the client may log in again
    /// without losing its encryption keys.
    pub fn unknown_token(soft_logout: bool) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "M_UNKNOWN_TOKEN",
            "the access token is not known",
        )
        .with("soft_logout", soft_logout)
    }

    /// Too many requests.
    pub fn limit_exceeded(retry_after_ms: u64) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "M_LIMIT_EXCEEDED",
            "too many requests",
        )
        .with("retry_after_ms", retry_after_ms)
    }

    /// The 401 of user-interactive authentication, which names no errcode while nothing failed.
    pub fn challenge() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "", "")
    }

    /// A fault of this server. The cause goes to the log, the client learns nothing of it.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = cause.to_string();
        let mut source = cause.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(error = %chain, "a request failed for a reason of our own");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "M_UNKNOWN",
            "Internal server error",
        )
    }

    /// The body: `errcode`, `error` and what else there is.
    pub fn body(&self) -> Map<String, Value> {
        let mut body = self.extra.clone();
        if !self.errcode.is_empty() {
            body.insert("errcode".to_owned(), self.errcode.clone().into());
            body.insert("error".to_owned(), self.message.clone().into());
        }
        body
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = crate::http::json_reply(self.status, &self.body());
        if let Some(ms) = self.extra.get("retry_after_ms").and_then(Value::as_u64) {
            let seconds = HeaderValue::from(ms.div_ceil(1_000));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::TooLarge { .. }) {
            return Self::too_large(error.to_string());
        }
        Self::internal(&error)
    }
}

impl From<AuthRejection> for ApiError {
    fn from(rejection: AuthRejection) -> Self {
        Self::forbidden(rejection.to_string())
    }
}

impl From<DraftError> for ApiError {
    fn from(error: DraftError) -> Self {
        match error {
            DraftError::Malformed(Malformed::TooLarge { .. } | Malformed::FieldTooLong { .. }) => {
                Self::too_large(error.to_string())
            }
            DraftError::Malformed(_) | DraftError::Content(_) | DraftError::TooDeep => {
                Self::bad_json(error.to_string())
            }
        }
    }
}
