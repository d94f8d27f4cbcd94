//! Routes from types: a handler's request type says which method and paths it answers.
//!
//! The list of what was added is kept, so that a test can compare it with `spec/coverage.md` and try
//! every route without credentials.

use std::{
    collections::BTreeMap, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request},
    response::{IntoResponse, Response},
    routing::{MethodFilter, on},
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, StatusCode, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruma::api::{
    IncomingRequest, Metadata, OutgoingResponse, OutgoingResponseExt as _,
    error::{DeserializationError, FromHttpRequestError},
    path_builder::PathBuilder as _,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{auth::Auth, json_reply, queries, query};
use crate::{
    error::{ApiError, ApiResult},
    metrics::Measured,
    server::App,
};

/// One route, as it was added.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The method.
    pub method: String,
    /// The path, with `{name}` for each argument.
    pub path: String,
    /// Whether it answers without an access token.
    pub public: bool,
}

/// Collects handlers, and becomes a router.
#[derive(Debug)]
pub struct Routes {
    app: App,
    router: Router,
    list: Vec<Route>,
    measured: Vec<Arc<Measured>>,
    /// Paths by their shape: two spellings of an argument's name are one path.
    shapes: BTreeMap<String, String>,
}

/// When the head of a request had arrived.
#[derive(Clone, Copy, Debug)]
struct Began(tokio::time::Instant);

/// A request without a type of its own: what an endpoint beyond the specification gets.
#[derive(Debug)]
pub struct RawRequest {
    /// Method, URI, headers.
    pub parts: Parts,
    /// The arguments in the path, decoded, in order.
    pub path: Vec<String>,
    /// The body, at most `limits.request_body_mb`.
    pub body: Bytes,
}

impl RawRequest {
    /// How long ago the head of the request had arrived.
    pub fn age(&self, app: &App) -> Duration {
        let began = self.parts.extensions.get::<Began>();
        began.map_or(Duration::ZERO, |Began(began)| app.clock.instant() - *began)
    }

    /// One argument of the path; empty if there is none at `index`.
    pub fn arg(&self, index: usize) -> &str {
        self.path.get(index).map_or("", String::as_str)
    }

    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<String> {
        query(&self.parts, name)
    }

    /// Every value of a query parameter.
    pub fn queries(&self, name: &str) -> Vec<String> {
        queries(&self.parts, name)
    }

    /// The body as JSON; an empty body is an empty object.
    ///
    /// # Errors
    /// `M_NOT_JSON` or `M_BAD_JSON`.
    pub fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        let body: &[u8] = if self.body.is_empty() {
            b"{}"
        } else {
            &self.body
        };
        serde_json::from_slice(body).map_err(|error| json_error(&error))
    }
}

impl Routes {
    /// No routes yet.
    pub fn new(app: App) -> Self {
        Self {
            app,
            router: Router::new(),
            list: Vec::new(),
            measured: Vec::new(),
            shapes: BTreeMap::new(),
        }
    }

    /// Adds the handler of a typed endpoint at every path that the endpoint ever had.
    pub fn add<A, R, F, Fut>(&mut self, handler: F)
    where
        A: Auth,
        R: IncomingRequest + Metadata + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(App, A, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<R::OutgoingResponse>> + Send + 'static,
    {
        let typed = move |app: App, auth: A, request: RawRequest| {
            let handler = handler.clone();
            async move {
                let typed = parse::<R>(&request)?;
                let response = handler(app, auth, typed).await?;
                reply(response)
            }
        };
        for path in R::PATH_BUILDER.all_paths() {
            // Old paths end in `/` where an argument may be empty.
            self.route(R::METHOD, path, typed.clone());
        }
    }

    /// Adds a handler at a path that has no type.
    pub fn raw<A, T, F, Fut>(&mut self, method: Method, path: &str, handler: F)
    where
        A: Auth,
        T: Serialize,
        F: Fn(App, A, RawRequest) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<T>> + Send + 'static,
    {
        self.route(method, path, move |app, auth, request| {
            let handler = handler.clone();
            async move {
                Ok(json_reply(
                    StatusCode::OK,
                    &handler(app, auth, request).await?,
                ))
            }
        });
    }

    /// Adds a handler that makes the whole response itself, from a request whose body is read.
    pub fn route<A, F, Fut>(&mut self, method: Method, path: &str, handler: F)
    where
        A: Auth,
        F: Fn(App, A, RawRequest) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        self.serve(method, path, move |app, auth, parts, path, body| {
            let handler = handler.clone();
            async move {
                let body = read_body(&app, &parts, body).await?;
                // serde_json passes over strings that nobody reads, whatever bytes they hold.
                std::str::from_utf8(&body)
                    .map_err(|_| ApiError::not_json("the body is not UTF-8"))?;
                A::authenticate_body(&auth, &app, &parts, &body).await?;
                handler(app, auth, RawRequest { parts, path, body }).await
            }
        });
    }

    /// Adds a handler that reads the body itself, such as an upload.
    pub fn stream<A, F, Fut>(&mut self, method: Method, path: &str, handler: F)
    where
        A: Auth,
        F: Fn(App, A, Parts, Vec<String>, Body) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        const {
            assert!(
                !A::SIGNS_BODY,
                "the signature of a server is over the body, which must be read before it is believed"
            );
        }
        self.serve(method, path, handler);
    }

    fn serve<A, F, Fut>(&mut self, method: Method, path: &str, handler: F)
    where
        A: Auth,
        F: Fn(App, A, Parts, Vec<String>, Body) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response>> + Send + 'static,
    {
        self.list.push(Route {
            method: method.to_string(),
            path: path.to_owned(),
            public: A::PUBLIC,
        });
        let app = self.app.clone();
        let measured = Arc::new(Measured::new(method.to_string(), path.to_owned()));
        self.measured.push(measured.clone());
        let called = move |params: RawPathParams, request: Request| {
            let (app, handler, measured) = (app.clone(), handler.clone(), measured.clone());
            async move {
                let path = params.iter().map(|(_, value)| value.to_owned()).collect();
                let (mut parts, body) = request.into_parts();
                let began = app.clock.instant();
                parts.extensions.insert(Began(began));
                let work = async {
                    let auth = A::authenticate(&app, &mut parts).await?;
                    handler(app.clone(), auth, parts, path, body).await
                };
                let response = guarded(work).await;
                measured.answered(response.status().as_u16(), app.clock.instant() - began);
                response
            }
        };
        let filter = MethodFilter::try_from(method).expect("routes use the nine standard methods");
        let path = self.shape(path);
        let router = std::mem::take(&mut self.router);
        self.router = router.route(&path, on(filter, called));
    }

    /// The path with the names of arguments that were used for its shape before.
    fn shape(&mut self, path: &str) -> String {
        let mut count = 0;
        let plain: Vec<String> = path
            .split('/')
            .map(|segment| {
                if segment.starts_with('{') {
                    count += 1;
                    format!("{{arg{count}}}")
                } else {
                    segment.to_owned()
                }
            })
            .collect();
        let plain = plain.join("/");
        self.shapes.entry(plain.clone()).or_insert(plain).clone()
    }

    /// Where the requests of each route are counted.
    pub fn measured(&self) -> Vec<Arc<Measured>> {
        self.measured.clone()
    }

    /// What was added, sorted.
    pub fn list(&self) -> Vec<Route> {
        let mut list = self.list.clone();
        list.sort();
        list
    }

    /// The router: unknown paths are 404, known paths with another method 405.
    pub fn into_router(self) -> Router {
        self.router
            .fallback(|| async { ApiError::unrecognized("there is no such endpoint") })
            .method_not_allowed_fallback(|| async {
                ApiError::wrong_method("the endpoint has no such method")
            })
    }
}

/// A panic in a handler costs one request, not the process.
async fn guarded(work: impl Future<Output = ApiResult<Response>>) -> Response {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(_) => {
            tracing::error!("a handler panicked");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "M_UNKNOWN",
                "Internal server error",
            )
            .into_response()
        }
    }
}

async fn read_body(app: &App, parts: &Parts, body: Body) -> ApiResult<Bytes> {
    let announced = parts
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let limit = usize::try_from(app.config.limits.request_body_bytes()).unwrap_or(usize::MAX);
    let timeout = Duration::from_secs(app.config.limits.body_read_seconds_max);
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(body_too_large(limit));
    }
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect());
    match collected.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(body_too_large(limit)),
        Ok(Err(_)) => Err(ApiError::not_json("the body broke off")),
        Err(_) => Err(ApiError::timed_out("the body did not arrive in time")),
    }
}

fn body_too_large(limit: usize) -> ApiError {
    ApiError::too_large(format!("the body is larger than {limit} bytes"))
}

fn parse<R: IncomingRequest>(request: &RawRequest) -> ApiResult<R> {
    let mut typed = http::Request::new(&*request.body);
    *typed.method_mut() = request.parts.method.clone();
    *typed.uri_mut() = request.parts.uri.clone();
    *typed.headers_mut() = request.parts.headers.clone();
    if request.body.is_empty() && matches!(R::METHOD, Method::POST | Method::PUT) {
        // Clients leave the body out where every key is optional.
        *typed.body_mut() = b"{}";
    }
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    R::try_from_http_request_inner(typed, &path).map_err(|error| shape_error(&error, request))
}

/// What the request's types could not be read from: which errcode says so.
fn shape_error(error: &DeserializationError, request: &RawRequest) -> ApiError {
    match error {
        DeserializationError::Json(error) => json_error(error),
        DeserializationError::Utf8(_) => ApiError::not_json("the body is not UTF-8"),
        DeserializationError::Query(error) => ApiError::invalid_param(error.to_string()),
        DeserializationError::Ident(error) => ApiError::invalid_param(error.to_string()),
        other => {
            tracing::debug!(path = request.parts.uri.path(), %other, "a request could not be read");
            ApiError::invalid_param(other.to_string())
        }
    }
}

fn json_error(error: &serde_json::Error) -> ApiError {
    match error.classify() {
        serde_json::error::Category::Data => ApiError::bad_json(error.to_string()),
        _ => ApiError::not_json(error.to_string()),
    }
}

fn reply(response: impl OutgoingResponse) -> ApiResult<Response> {
    let response = response
        .try_into_http_response::<Vec<u8>>()
        .map_err(|error| ApiError::internal(&error))?;
    Ok(response.map(Body::from))
}

/// Shared by handlers that parse a typed request themselves.
///
/// # Errors
/// `M_NOT_JSON`, `M_BAD_JSON` or `M_INVALID_PARAM`.
pub fn parse_typed<R: IncomingRequest>(request: &RawRequest) -> ApiResult<R> {
    parse(request)
}

impl From<FromHttpRequestError> for ApiError {
    fn from(error: FromHttpRequestError) -> Self {
        Self::bad_json(error.to_string())
    }
}

/// The routes of a server, without their handlers.
pub type RouteList = Arc<Vec<Route>>;
