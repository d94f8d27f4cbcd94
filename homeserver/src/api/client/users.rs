//! Finding other users: the user directory, and the rooms that one shares with somebody.
//!
//! The directory knows local users who share a room with the caller or are in a public one.
//! Spec: client-server API, "User Directory", "Mutual rooms"; MSC2666 for the unstable name.

use http::Method;
use ruma::UserId;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{keys::UserNum, rooms::Membership};

use super::PREFIXES;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes, limits::Doing},
    rooms::{aliases, members::share_a_room, read::state_content},
    server::App,
};

/// How many users one search answers with.
const RESULTS_MAX: usize = 50;

/// How many accounts one search looks at, and how many at a time.
const WALKED_MAX: usize = 20_000;
const BATCH_USERS: usize = 500;

/// How many rooms one answer names.
const ROOMS_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(
            Method::POST,
            &format!("{prefix}/user_directory/search"),
            search,
        );
    }
    for path in [
        "/_matrix/client/v1/mutual_rooms",
        "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    ] {
        routes.raw(Method::GET, path, mutual_rooms);
    }
}

#[derive(Deserialize)]
struct Search {
    search_term: String,
    limit: Option<usize>,
}

async fn search(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Search = request.json()?;
    caller.limit(&app, Doing::Search)?;
    let limit = body.limit.unwrap_or(10).min(RESULTS_MAX);
    let term = body.search_term.to_lowercase();
    let (mut results, mut limited) = (Vec::new(), false);
    let (mut after, mut walked) = (None, 0);
    'all: loop {
        let batch = app.accounts.users_after(after, BATCH_USERS)?;
        let Some((last, _)) = batch.last() else { break };
        after = Some(*last);
        walked += batch.len();
        for (user, account) in batch {
            if user == caller.user || account.deactivated {
                continue;
            }
            let user_id = app.store.user_id(user)?;
            let profile = app.accounts.profile(user)?;
            let name = profile.get("displayname").and_then(Value::as_str);
            let matches = user_id.as_str().to_lowercase().contains(&term)
                || name.is_some_and(|name| name.to_lowercase().contains(&term));
            if !matches || !(share_a_room(&app, caller.user, user)? || is_public(&app, user)?) {
                continue;
            }
            if results.len() == limit {
                limited = true;
                break 'all;
            }
            results.push(json!({
                "user_id": user_id,
                "display_name": name,
                "avatar_url": profile.get("avatar_url"),
            }));
        }
        if walked >= WALKED_MAX {
            limited = true;
            break;
        }
    }
    Ok(json!({ "results": results, "limited": limited }))
}

/// Whether a user is in a room that anybody may find or join.
fn is_public(app: &App, user: UserNum) -> ApiResult<bool> {
    #[derive(Deserialize)]
    struct Rule {
        join_rule: String,
    }
    for (room, row) in app.store.user_rooms(user)? {
        if row.membership != Membership::Join {
            continue;
        }
        if aliases::is_published(&app.store, room)? {
            return Ok(true);
        }
        if let Some(view) = app.store.room(room)? {
            let rule: Option<Rule> =
                state_content(&app.store, &view.head.state, "m.room.join_rules", "")?;
            if rule.is_some_and(|rule| rule.join_rule == "public") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn mutual_rooms(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let named = request
        .query("user_id")
        .ok_or_else(|| ApiError::missing_param("`user_id` is missing"))?;
    let Ok(user_id) = UserId::parse(&*named) else {
        return Ok(json!({ "joined": [], "count": 0 }));
    };
    if user_id == caller.user_id {
        return Err(ApiError::invalid_param(
            "you share all of your rooms with yourself",
        ));
    }
    let mut joined = Vec::new();
    let mut count = 0;
    if let Some(other) = app.store.find_user(&user_id)? {
        for (room, row) in app.store.user_rooms(caller.user)? {
            if row.membership == Membership::Join
                && let Some(view) = app.store.room(room)?
                && view.head.membership(other) == Membership::Join
            {
                count += 1;
                if joined.len() < ROOMS_MAX {
                    joined.push(view.room_id.clone());
                }
            }
        }
    }
    Ok(json!({ "joined": joined, "count": count }))
}
