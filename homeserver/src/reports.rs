//! What users reported to the admins of this server: events, rooms and users.
//!
//! Spec: client-server API, "Reporting Content".

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Keyspace, Table, Unpack},
    kv::Direction,
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

const REPORTS: Table<ReportRow> = Table::new(Keyspace::REPORT);

/// How many reports are kept; the oldest go first.
const REPORTS_MAX: u64 = 100_000;

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 4_096;

/// A report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportRow {
    /// Who reported.
    pub reporter: OwnedUserId,
    /// What.
    pub target: Target,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How bad it is, from -100 to 0; from old clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// When, in milliseconds since the epoch.
    pub received_ms: u64,
}

/// What was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Target {
    /// An event.
    Event {
        /// Its room.
        room_id: OwnedRoomId,
        /// Its ID.
        event_id: OwnedEventId,
        /// Who sent it.
        sender: OwnedUserId,
    },
    /// A room.
    Room {
        /// Its ID.
        room_id: OwnedRoomId,
    },
    /// A user.
    User {
        /// Their ID.
        user_id: OwnedUserId,
    },
}

/// Held while a report gets its number.
#[derive(Debug, Default)]
pub struct Reports(tokio::sync::Mutex<()>);

/// Keeps a report, and returns its number.
///
/// # Errors
/// `M_TOO_LARGE` for a reason longer than [`REASON_BYTES_MAX`].
pub async fn add(app: &App, row: &ReportRow) -> ApiResult<u64> {
    if row
        .reason
        .as_ref()
        .is_some_and(|reason| reason.len() > REASON_BYTES_MAX)
    {
        return Err(ApiError::too_large(format!(
            "a reason has at most {REASON_BYTES_MAX} bytes"
        )));
    }
    let _numbering = app.reports.0.lock().await;
    let mut last = 0;
    app.store
        .visit(&REPORTS.key(), Direction::Descending, |key, _| {
            last = Unpack::key(key).u64().unwrap_or(0);
            Ok(false)
        })?;
    let number = last + 1;
    let mut commit = Commit::new();
    commit.put(REPORTS, REPORTS.key().u64(number), row);
    if let Some(oldest) = number.checked_sub(REPORTS_MAX) {
        commit.delete(REPORTS.key().u64(oldest));
    }
    app.store.commit(commit).await?;
    Ok(number)
}

/// One report.
///
/// # Errors
/// When the store cannot be read.
pub fn one(app: &App, number: u64) -> ApiResult<Option<ReportRow>> {
    Ok(app.store.get(REPORTS, REPORTS.key().u64(number))?)
}

/// Every report, oldest first, with its number.
///
/// # Errors
/// When the store cannot be read.
pub fn all(app: &App) -> ApiResult<Vec<(u64, ReportRow)>> {
    let most = usize::try_from(REPORTS_MAX).unwrap_or(usize::MAX);
    let rows = app.store.rows(REPORTS, &REPORTS.key(), most)?;
    let rows = rows.into_iter();
    Ok(rows
        .filter_map(|(key, row)| Some((Unpack(&key).u64()?, row)))
        .collect())
}

/// Forgets a report. `false`: there is none of this number.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn delete(app: &App, number: u64) -> ApiResult<bool> {
    let _numbering = app.reports.0.lock().await;
    if one(app, number)?.is_none() {
        return Ok(false);
    }
    let mut commit = Commit::new();
    commit.delete(REPORTS.key().u64(number));
    app.store.commit(commit).await?;
    Ok(true)
}
