//! matrix-sdk and matrix-sdk-ui 0.18 against a homeserver, as Element X uses them: `cargo run -- BASE_URL`.
//!
//! Everything goes through `SyncService` and `RoomListService`, that is through simplified sliding sync; stores are
//! `SQLite`, so that a restart can be tried. Prints one line a check and `matrix-sdk: N passed, N failed`.

// The SDK's futures are nested more deeply than rustc allows by itself.
#![recursion_limit = "512"]

mod check;
mod checks;
mod conversation;
mod devices;
mod phone;
mod room_list;

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let base_url = std::env::args()
        .nth(1)
        .context("usage: guildhall-client-tests-matrix-sdk BASE_URL")?;
    let folder = tempfile::tempdir()?;
    let run = format!(
        "{:x}",
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis()
    );
    let mut suite = check::Suite::new("matrix-sdk");
    checks::checks(&mut suite, &base_url, folder.path(), &run).await;
    Ok(if suite.close() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
