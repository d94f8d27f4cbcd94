//! Ephemeral data of other servers.

use ruma::{ServerName, serde::Raw};
use serde_json::Value;

use crate::server::App;

/// Takes one EDU; a bad one changes nothing.
pub async fn take(_app: &App, origin: &ServerName, _edu: Raw<Value>) {
    tracing::debug!(%origin, "ephemeral data is passed over");
}
