//! Thread subscriptions. The threads of a room are in [`relations`](super::relations).
//!
//! Spec: MSC4306; MSC4308, "Companion endpoint".

use http::Method;
use ruma::{EventId, OwnedEventId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::members::number;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    rooms::read::{Seen, Sight},
    server::App,
    sync::Token,
    threads::{self, PAGE_DEFAULT, PAGE_MAX, Page},
};

pub(super) fn routes(routes: &mut Routes) {
    let base = "/_matrix/client/unstable/io.element";
    let one = format!("{base}.msc4306/rooms/{{room_id}}/thread/{{event_id}}/subscription");
    routes.raw(Method::GET, &one, get);
    routes.raw(Method::PUT, &one, put);
    routes.raw(Method::DELETE, &one, delete);
    let all = format!("{base}.msc4308/thread_subscriptions");
    routes.raw(Method::GET, &all, changes);
}

/// The caller's sight of the room, and the event there that the path names: the root of a thread.
///
/// # Errors
/// `M_NOT_FOUND` when there is no such room or event that the caller may see.
fn root(app: &App, caller: &Caller, request: &RawRequest) -> ApiResult<(Sight, Seen)> {
    let room_id = RoomId::parse(request.arg(0))
        .map_err(|_| ApiError::invalid_param("the path names no room ID"))?;
    let root = EventId::parse(request.arg(1))
        .map_err(|_| ApiError::invalid_param("the path names no event ID"))?;
    // Of a room that is not known here no event is, either.
    let sight = Sight::of(app, &room_id, caller.user, &caller.user_id).map_err(|error| {
        if error.errcode == "M_FORBIDDEN" {
            return ApiError::not_found("there is no such event in this room");
        }
        error
    })?;
    let root = sight.event(app, &root)?;
    Ok((sight, root))
}

async fn get(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let (_, root) = root(&app, &caller, &request)?;
    let (room, root) = (root.event.room, root.event.pdu.event_id());
    let wish = threads::get(&app.store, caller.user, room, root)?;
    let automatic = wish
        .and_then(|(_, wish)| wish.automatic())
        .ok_or_else(|| ApiError::not_found("you are not subscribed to this thread"))?;
    Ok(json!({ "automatic": automatic }))
}

#[derive(Deserialize)]
struct Subscription {
    /// The event because of which the client subscribes; the user wants it themselves without.
    automatic: Option<OwnedEventId>,
}

async fn put(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Subscription = request.json()?;
    let (sight, root) = root(&app, &caller, &request)?;
    let cause = body.automatic;
    let cause = cause.map(|cause| sight.event(&app, &cause)).transpose()?;
    threads::subscribe(&app, caller.user, &root, cause.as_ref()).await?;
    Ok(json!({}))
}

async fn delete(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let (_, root) = root(&app, &caller, &request)?;
    threads::unsubscribe(&app, caller.user, &root).await?;
    Ok(json!({}))
}

#[derive(Serialize)]
struct Changes {
    #[serde(flatten)]
    page: Page,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
}

/// The changes behind the token `to` and up to the token `from`, newest first.
async fn changes(app: App, caller: Caller, request: RawRequest) -> ApiResult<Changes> {
    match request.query("dir").as_deref() {
        Some("b") => {}
        Some(_) => return Err(ApiError::invalid_param("`dir` is always b")),
        None => return Err(ApiError::missing_param("`dir` is missing")),
    }
    let token = |name: &str| {
        let text = request.query(name);
        let token = text.map(|text| Token::parse(&app, &text)).transpose()?;
        Ok::<_, ApiError>(token.map(Token::position))
    };
    let until = token("from")?.unwrap_or_else(|| app.store.published());
    let since = token("to")?.unwrap_or(0);
    let limit = number(&request, "limit")?.unwrap_or(PAGE_DEFAULT);
    if limit == 0 {
        return Err(ApiError::invalid_param("`limit` is at least 1"));
    }
    let limit = usize::try_from(limit.min(PAGE_MAX)).unwrap_or(1);
    let page = Page::read(&app, caller.user, since, until, limit)?;
    let end = page.more.map(|more| more.to_string());
    Ok(Changes { page, end })
}
