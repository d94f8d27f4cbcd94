//! For those who run the server: whether it works, and how much it does.
//!
//! Which listener offers which is decided in `http/listen.rs`.

use std::time::Duration;

use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use store::{
    Commit,
    keys::{Keyspace, Packed},
};

use crate::{
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, bytes_reply},
    metrics,
    server::App,
};

/// How long the store may take to write before the server counts as not working.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a finding holds, in milliseconds: asking more often costs no more writes.
const FINDING_HOLDS_MS: u64 = 1_000;

/// What was last found, so that whoever asks cannot make the disk work.
#[derive(Debug, Default)]
pub struct Health {
    /// When, in milliseconds since the epoch, and whether the store could write.
    found: tokio::sync::Mutex<Option<(u64, bool)>>,
}

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(Method::GET, "/health", health);
    routes.route(
        Method::GET,
        "/metrics",
        |app: App, _: Public, _: RawRequest| async move { Ok(metrics(&app).await) },
    );
}

async fn metrics(app: &App) -> Response {
    let text = metrics::render(app).await;
    bytes_reply(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text,
    )
}

/// The server works if it can still store something.
async fn health(app: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    let mut found = app.health.found.lock().await;
    let now_ms = app.clock.now_ms();
    let writes = match *found {
        Some((at_ms, writes)) if now_ms.saturating_sub(at_ms) < FINDING_HOLDS_MS => writes,
        _ => writes(&app, now_ms).await,
    };
    *found = Some((now_ms, writes));
    if writes {
        return Ok(json!({ "status": "ok" }));
    }
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "M_UNKNOWN",
        "the store cannot write",
    ))
}

async fn writes(app: &App, now_ms: u64) -> bool {
    let mut commit = Commit::new();
    let key = Packed::key(Keyspace::META).text("health");
    commit.put_raw(key, Packed::new().u64(now_ms));
    let written = tokio::time::timeout(WRITE_TIMEOUT, app.store.commit(commit)).await;
    matches!(written, Ok(Ok(_)))
}
