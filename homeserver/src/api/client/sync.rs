//! `/sync` and filters.
//!
//! Spec: client-server API, "Syncing", "Filtering".

use std::time::Duration;

use http::Method;
use ruma::UserId;
use serde_json::{Value, json};
use store::{
    Commit,
    keys::{Keyspace, Table, Unpack},
    kv::Direction,
};

use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes},
    presence::State,
    server::App,
    sync::{
        Token,
        filter::Filter,
        v3::{SyncRequest, SyncResponse, sync},
    },
};

const FILTERS: Table<Filter> = Table::new(Keyspace::FILTER);

/// How many filters a user may have.
const FILTERS_MAX: u64 = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/r0", "/_matrix/client/v3"] {
        routes.raw(Method::GET, &format!("{prefix}/sync"), get_sync);
        routes.raw(
            Method::POST,
            &format!("{prefix}/user/{{user_id}}/filter"),
            put_filter,
        );
        routes.raw(
            Method::GET,
            &format!("{prefix}/user/{{user_id}}/filter/{{filter_id}}"),
            get_filter,
        );
    }
}

async fn get_sync(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<SyncResponse> {
    let flag = |name: &str| request.query(name).as_deref() == Some("true");
    let timeout = match request.query("timeout") {
        Some(text) => text
            .parse()
            .map_err(|_| ApiError::invalid_param("`timeout` is not a number of milliseconds"))?,
        None => 0,
    };
    note_presence(&app, &caller, request.query("set_presence").as_deref())?;
    let since = request.query("since").filter(|since| !since.is_empty());
    let filter = match request.query("filter") {
        Some(text) if text.starts_with('{') => {
            serde_json::from_str(&text).map_err(|error| ApiError::bad_json(error.to_string()))?
        }
        Some(id) => stored_filter(&app, &caller, &id)?,
        None => Filter::default(),
    };
    let sync_request = SyncRequest {
        since: since.map(|since| Token::parse(&app, &since)).transpose()?,
        filter,
        full_state: flag("full_state"),
        state_after: flag("use_state_after") || flag("org.matrix.msc4222.use_state_after"),
        timeout: Duration::from_millis(timeout),
    };
    sync(&app, &caller, &sync_request).await
}

/// Syncing says that its user is there, unless the client says otherwise. An application service has to say
/// so: its users are not there because it is.
fn note_presence(app: &App, caller: &Caller, said: Option<&str>) -> ApiResult<()> {
    let unsaid = if caller.service.is_some() {
        "offline"
    } else {
        "online"
    };
    let state = State::named(said.unwrap_or(unsaid))
        .ok_or_else(|| ApiError::invalid_param("`set_presence` is not a state of presence"))?;
    if !app.config.presence.enabled || state == State::Offline {
        return Ok(());
    }
    let who = (
        caller.user,
        caller.device.clone().unwrap_or_else(|| "".into()),
    );
    let now_ms = app.clock.now_ms();
    if app.presence.say(&app.moments, who, state, None, now_ms) {
        app.wakeups.wake_contacts(app, caller.user);
    }
    Ok(())
}

fn stored_filter(app: &App, caller: &Caller, id: &str) -> ApiResult<Filter> {
    let number = id
        .parse()
        .map_err(|_| ApiError::invalid_param("there is no such filter"))?;
    app.store
        .get(FILTERS, FILTERS.key().user(caller.user).u64(number))?
        .ok_or_else(|| ApiError::not_found("there is no such filter"))
}

async fn put_filter(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    caller.must_be(&user_id)?;
    let filter: Filter = request.json()?;
    let prefix = FILTERS.key().user(caller.user);
    let mut last = None;
    app.store.visit(&prefix, Direction::Descending, |key, _| {
        let mut parts = Unpack::key(key);
        last = parts.user().and_then(|_| parts.u64());
        Ok(false)
    })?;
    let number = last.map_or(0, |last| last + 1);
    if number >= FILTERS_MAX {
        return Err(ApiError::unknown(format!(
            "a user has at most {FILTERS_MAX} filters"
        )));
    }
    let mut commit = Commit::new();
    commit.put(FILTERS, prefix.u64(number), &filter);
    app.store.commit(commit).await?;
    Ok(json!({ "filter_id": number.to_string() }))
}

async fn get_filter(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Filter> {
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    caller.must_be(&user_id)?;
    stored_filter(&app, &caller, request.arg(1))
}
