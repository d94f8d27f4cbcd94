//! Spaces and what a room looks like from outside. Of rooms that this server is not in, other servers tell.
//!
//! Spec: client-server API, "Spaces", "Room summary" (MSC3266 by its older names).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use http::Method;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, api::federation::query::get_room_information,
};
use serde_json::{Map, Value, json};
use store::{keys::UserNum, rooms::RoomView};

use super::{events::room_id, members::number, membership::room_meant_or_made};
use crate::{
    asked,
    error::{ApiError, ApiResult},
    http::{Client, Guest, MaybeCaller, RawRequest, Routes, limits::Doing},
    rooms::{
        outline::Outline,
        receive::is_resident,
        spaces::{self, Child},
    },
    server::App,
};

/// How many rooms a page of a hierarchy has at most.
const PAGE_ROOMS_MAX: u64 = 50;

/// How many rooms of a hierarchy are looked at for one page.
const WALK_ROOMS_MAX: usize = 5_000;

/// How long other servers are asked about the rooms of a hierarchy, for one page. What they told is remembered, so
/// that asking again gets further.
const ASKING_MAX: Duration = Duration::from_secs(30);

/// How long the server of an alias may take to say where it leads.
const ALIAS_WAIT: Duration = Duration::from_secs(10);

/// How many servers a client may name that are asked about a room.
const VIA_MAX: usize = 10;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in [
        "/_matrix/client/v1",
        "/_matrix/client/unstable/org.matrix.msc2946",
    ] {
        routes.raw(
            Method::GET,
            &format!("{prefix}/rooms/{{room_id}}/hierarchy"),
            hierarchy,
        );
    }
    for path in [
        "/_matrix/client/v1/room_summary/{room_id_or_alias}",
        "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
        "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
        "/_matrix/client/unstable/im.nheko.summary/room_summary/{room_id_or_alias}",
    ] {
        routes.raw(Method::GET, path, summary);
    }
}

/// `suggested_only` of a request.
///
/// # Errors
/// `M_INVALID_PARAM`.
pub(crate) fn suggested_only(request: &RawRequest) -> ApiResult<bool> {
    match request.query("suggested_only").as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::invalid_param("`suggested_only` is true or false")),
    }
}

/// The servers that a client says are in a room, and the one that made it.
fn servers(request: &RawRequest, room_id: &RoomId) -> Vec<OwnedServerName> {
    let named = request.queries("via").into_iter().take(VIA_MAX);
    let mut servers: Vec<OwnedServerName> = named.filter_map(|name| name.try_into().ok()).collect();
    let maker = room_id.server_name().map(ToOwned::to_owned);
    servers.extend(maker.filter(|maker| !servers.contains(maker)));
    servers
}

fn unknown_room() -> ApiError {
    ApiError::not_found("there is no such room, or you may not know of it")
}

async fn summary(
    app: App,
    MaybeCaller(caller): MaybeCaller,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    let user = caller.as_ref().map(|caller| caller.user);
    if caller.is_none() {
        let Client(address) = Client::of(&request.parts);
        app.limits.address(&app, Doing::Anonymous, address)?;
    }
    let (room_id, via) = meant(&app, &request).await?;
    let waiting = Waiting {
        via,
        ..Waiting::new(room_id.clone())
    };
    let seen = look(&app, &waiting, user, true).await?;
    let seen = seen.ok_or_else(unknown_room)?;
    let mut fields = seen.fields;
    if let Some(user) = user {
        let membership = spaces::membership(&app, user, &room_id)?.state();
        fields.insert("membership".to_owned(), membership.to_string().into());
    }
    Ok(fields)
}

/// The room that an ID or an alias of any server means, and servers that may tell of it.
async fn meant(app: &App, request: &RawRequest) -> ApiResult<(OwnedRoomId, Vec<OwnedServerName>)> {
    let text = request.arg(0);
    if let Ok(alias) = RoomAliasId::parse(text)
        && alias.server_name() != app.server_name()
    {
        let server = alias.server_name().to_owned();
        let asking = get_room_information::v1::Request::new(alias);
        let answer = asked::ask(app, &server, asking, ALIAS_WAIT).await;
        let answer = answer.map_err(|error| asked::relayed(&error))?;
        let mut via = servers(request, &answer.room_id);
        let known = via.clone();
        via.extend(
            answer
                .servers
                .into_iter()
                .filter(|server| !known.contains(server)),
        );
        return Ok((answer.room_id, via));
    }
    let room_id = room_meant_or_made(app, text).await?;
    let via = servers(request, &room_id);
    Ok((room_id, via))
}

/// A room of a hierarchy that is to be looked at.
struct Waiting {
    room_id: OwnedRoomId,
    depth: u64,
    /// Servers that may tell of it.
    via: Vec<OwnedServerName>,
    /// What a server told of it beside the space that it is in.
    summary: Option<Map<String, Value>>,
}

impl Waiting {
    fn new(room_id: OwnedRoomId) -> Self {
        Self {
            room_id,
            depth: 0,
            via: Vec::new(),
            summary: None,
        }
    }
}

/// A room that a user may know of.
struct Seen {
    fields: Map<String, Value>,
    children: Vec<Child>,
    /// What was told of the children, if another server told of the room.
    summaries: BTreeMap<OwnedRoomId, Map<String, Value>>,
    /// The children of which no server tells.
    inaccessible: BTreeSet<OwnedRoomId>,
}

impl Seen {
    fn here(fields: Map<String, Value>, children: Vec<Child>) -> Self {
        Self {
            fields,
            children,
            summaries: BTreeMap::new(),
            inaccessible: BTreeSet::new(),
        }
    }
}

/// Looks at a room: here if this server is in it; else other servers are asked, if they `may_be_asked`; and if none of
/// them tells, what was known here once is better than nothing.
async fn look(
    app: &App,
    waiting: &Waiting,
    user: Option<UserNum>,
    may_be_asked: bool,
) -> ApiResult<Option<Seen>> {
    let room_id = &waiting.room_id;
    let room = app.store.find_room(room_id)?;
    let view = room.map(|room| app.store.room(room)).transpose()?.flatten();
    if let Some(view) = &view
        && is_resident(app, view)?
    {
        return look_here(app, view, user);
    }
    let leaf = waiting.summary.as_ref();
    let leaf = leaf.filter(|summary| !may_be_asked || !spaces::is_space(summary));
    if let Some(summary) = leaf {
        let told = spaces::may_be_told(app, summary, room_id, user)?;
        return Ok(told.then(|| Seen::here(summary.clone(), Vec::new())));
    }
    if may_be_asked && let Some(told) = spaces::ask(app, room_id, &waiting.via).await {
        if !spaces::may_be_told(app, &told.room, room_id, user)? {
            return Ok(None);
        }
        let summaries = told.children.iter().filter_map(|child| {
            let room_id = child.get("room_id")?.as_str()?;
            Some((room_id.try_into().ok()?, child.clone()))
        });
        return Ok(Some(Seen {
            fields: told.room.clone(),
            children: spaces::children_told(&told),
            summaries: summaries.collect(),
            inaccessible: told.inaccessible.iter().cloned().collect(),
        }));
    }
    match view {
        Some(view) => look_here(app, &view, user),
        None => Ok(None),
    }
}

fn look_here(app: &App, view: &Arc<RoomView>, user: Option<UserNum>) -> ApiResult<Option<Seen>> {
    let outline = Outline::of(app, view)?;
    if !outline.may_be_told(app, view, user)? {
        return Ok(None);
    }
    let children = spaces::children(app, view, &outline)?;
    Ok(Some(Seen::here(outline.fields, children)))
}

/// The rooms of a space, depth first.
async fn hierarchy(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let suggested_only = suggested_only(&request)?;
    let limit = number(&request, "limit")?.unwrap_or(PAGE_ROOMS_MAX);
    if limit == 0 {
        return Err(ApiError::invalid_param("`limit` is at least 1"));
    }
    let limit = usize::try_from(limit.min(PAGE_ROOMS_MAX)).unwrap_or(1);
    let depth_max = number(&request, "max_depth")?.unwrap_or(u64::MAX);
    let skip = match request.query("from") {
        None => 0,
        Some(from) => from
            .strip_prefix('h')
            .and_then(|text| text.parse::<usize>().ok())
            .ok_or_else(|| ApiError::invalid_param("`from` is not of this server"))?,
    };
    let root = room_id(&request)?;
    let asking_until = app.clock.instant() + ASKING_MAX;
    let mut rooms = Vec::new();
    let mut next = None;
    let mut found = 0;
    let mut walked = BTreeSet::new();
    let mut waiting = vec![Waiting {
        via: servers(&request, &root),
        ..Waiting::new(root.clone())
    }];
    while let Some(room) = waiting.pop() {
        if walked.len() == WALK_ROOMS_MAX || !walked.insert(room.room_id.clone()) {
            continue;
        }
        let may_be_asked = app.clock.instant() < asking_until;
        let Some(mut seen) = look(&app, &room, Some(caller.user), may_be_asked).await? else {
            if room.room_id == root {
                return Err(ApiError::forbidden(
                    "you may not see this room, or it does not exist",
                ));
            }
            continue;
        };
        seen.children
            .retain(|child| child.suggested || !suggested_only);
        if room.depth < depth_max {
            for child in seen.children.iter().rev() {
                if !seen.inaccessible.contains(&child.room_id) {
                    waiting.push(Waiting {
                        room_id: child.room_id.clone(),
                        depth: room.depth + 1,
                        via: child.via.clone(),
                        summary: seen.summaries.remove(&child.room_id),
                    });
                }
            }
        }
        found += 1;
        if found <= skip {
            continue;
        }
        if rooms.len() == limit {
            next = Some(format!("h{}", skip + limit));
            break;
        }
        let state: Vec<Value> = seen
            .children
            .into_iter()
            .map(|child| child.stripped)
            .collect();
        let mut fields = seen.fields;
        fields.insert("children_state".to_owned(), state.into());
        rooms.push(fields);
    }
    let mut reply = json!({ "rooms": rooms });
    if let Some(reply) = reply.as_object_mut() {
        reply.extend(next.map(|next| ("next_batch".to_owned(), next.into())));
    }
    Ok(reply)
}
