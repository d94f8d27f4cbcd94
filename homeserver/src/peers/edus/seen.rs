//! Which messages to devices came already.
//!
//! Their IDs are kept by week, for this week and the one before: a server that could not tell whether a message
//! came tries again within hours, and gives up long before.

use ruma::ServerName;
use sha2::{Digest as _, Sha256};
use store::{
    Commit,
    keys::{Keyspace, Packed, Unpack},
    kv::Direction,
};

use crate::{error::ApiResult, server::App};

/// A week, in milliseconds.
const WEEK_MS: u64 = 7 * 86_400_000;

/// How many IDs of weeks that are over are deleted with each new one.
const DELETED_MAX: usize = 4;

fn key(week: u64, origin: &ServerName, id: &str) -> Packed {
    Packed::key(Keyspace::MESSAGE_SEEN)
        .u64(week)
        .text(origin.as_str())
        .raw(&Sha256::digest(id))
}

/// Notes the ID of a message; `false` when it came already.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn note(
    app: &App,
    commit: &mut Commit,
    origin: &ServerName,
    id: &str,
) -> ApiResult<bool> {
    let week = app.clock.now_ms() / WEEK_MS;
    for week in [week, week.saturating_sub(1)] {
        if app.store.get_raw(key(week, origin, id))?.is_some() {
            return Ok(false);
        }
    }
    commit.put_raw(key(week, origin, id), Packed::new());
    let mut deleted = 0;
    let all = Packed::key(Keyspace::MESSAGE_SEEN);
    app.store.visit(&all, Direction::Ascending, |key, _| {
        let over = Unpack::key(key).u64().is_some_and(|of| of + 1 < week);
        if over {
            commit.delete(Packed::new().raw(key));
            deleted += 1;
        }
        Ok(over && deleted < DELETED_MAX)
    })?;
    Ok(true)
}
