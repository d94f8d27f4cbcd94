//! Room aliases and the published room directory.
//!
//! Those of other servers are asked for there. Spec: client-server API, "Room aliases", "Published room directory".
//! The lists of application services' networks are not here.

use std::time::Duration;

use http::Method;
use ruma::{
    OwnedRoomId, RoomAliasId, ServerName,
    api::{
        client::{
            alias::{create_alias, delete_alias, get_alias},
            directory::{
                get_public_rooms, get_public_rooms_filtered, get_room_visibility,
                set_room_visibility,
            },
            room::{Visibility, aliases as get_aliases},
        },
        federation::{directory as federation_directory, query::get_room_information},
    },
    directory::{Filter, RoomNetwork},
};
use serde_json::{Map, Value, json};
use store::Commit;

use super::membership::room_meant_or_made;
use crate::{
    asked,
    error::{ApiError, ApiResult},
    http::{Caller, Client, Guest, MaybeCaller, Public, RawRequest, Routes, limits::Doing, routes},
    rooms::{
        aliases,
        directory::{self, PAGE_ROOMS_MAX, Place, Wanted},
        read::{self, Sight, known_room},
        served,
    },
    server::App,
};

/// How many bytes a search term may have.
const TERM_BYTES_MAX: usize = 1_024;

/// How long another server may take to tell where an alias leads, or a page of its directory.
const WAIT: Duration = Duration::from_secs(20);

pub(super) fn routes(routes: &mut Routes) {
    routes.add(alias);
    routes.add(put_alias);
    routes.add(remove_alias);
    routes.add(aliases_of_room);
    routes.add(visibility);
    routes.add(set_visibility);
    for prefix in super::PREFIXES {
        let path = format!("{prefix}/publicRooms");
        routes.raw(Method::GET, &path, list);
        routes.raw(Method::POST, &path, search);
    }
}

/// Where an alias of this server leads; an application service may make it now.
///
/// # Errors
/// `M_NOT_FOUND` when it leads nowhere.
pub(crate) async fn own_alias(app: &App, alias: &RoomAliasId) -> ApiResult<OwnedRoomId> {
    room_meant_or_made(app, alias.as_str()).await
}

/// Where an alias leads, as its server says, and which servers can help to join.
async fn alias(
    app: App,
    Public(client): Public,
    request: get_alias::v3::Request,
) -> ApiResult<get_alias::v3::Response> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let alias = request.room_alias;
    if alias.server_name() != app.server_name() {
        let server = alias.server_name().to_owned();
        let request = get_room_information::v1::Request::new(alias);
        let answer = asked::ask(&app, &server, request, WAIT).await;
        let answer = answer.map_err(|error| asked::relayed(&error))?;
        return Ok(get_alias::v3::Response::new(answer.room_id, answer.servers));
    }
    let room_id = own_alias(&app, &alias).await?;
    let (_, view) = known_room(&app, &room_id)?;
    let mut servers = served::residents(&app, &view)?;
    if !servers.iter().any(|server| server == app.server_name()) {
        // The server that knows an alias can say who is in the room.
        servers.push(app.server_name().to_owned());
    }
    Ok(get_alias::v3::Response::new(room_id, servers))
}

async fn put_alias(
    app: App,
    caller: Caller,
    request: create_alias::v3::Request,
) -> ApiResult<create_alias::v3::Response> {
    caller.limit(&app, Doing::Message)?;
    caller.must_not_be_suspended()?;
    aliases::create(&app, &caller, &request.room_alias, &request.room_id).await?;
    Ok(create_alias::v3::Response::new())
}

async fn remove_alias(
    app: App,
    caller: Caller,
    request: delete_alias::v3::Request,
) -> ApiResult<delete_alias::v3::Response> {
    caller.limit(&app, Doing::Message)?;
    aliases::delete(&app, &caller, &request.room_alias).await?;
    Ok(delete_alias::v3::Response::new())
}

/// The aliases that this server has of a room, for its members, for anybody where the room is
/// world readable, and for admins of this server.
async fn aliases_of_room(
    app: App,
    Guest(caller): Guest,
    request: get_aliases::v3::Request,
) -> ApiResult<get_aliases::v3::Response> {
    let sight = Sight::of(&app, &request.room_id, caller.user, &caller.user_id)?;
    let readable = read::history_visibility(&app, &sight.view.head.state)?
        == ruma::events::room::history_visibility::HistoryVisibility::WorldReadable;
    if !readable && !caller.account.admin {
        sight.must_be_joined()?;
    }
    let aliases = aliases::of_room(&app.store, sight.view.room)?;
    Ok(get_aliases::v3::Response::new(aliases))
}

async fn visibility(
    app: App,
    Public(client): Public,
    request: get_room_visibility::v3::Request,
) -> ApiResult<get_room_visibility::v3::Response> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let (room, _) = known_room(&app, &request.room_id)?;
    let visibility = if aliases::is_published(&app.store, room)? {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

/// Publishes a room, or no longer: with the power to set its canonical alias, or as an admin of this
/// server.
async fn set_visibility(
    app: App,
    caller: Caller,
    request: set_room_visibility::v3::Request,
) -> ApiResult<set_room_visibility::v3::Response> {
    caller.limit(&app, Doing::Message)?;
    caller.must_not_be_suspended()?;
    // The turn keeps an upgrade of the room from moving its place meanwhile.
    let turn = app.rooms.turn(&app, &request.room_id).await?;
    if !app.config.testing.publish_any_room {
        if request.visibility == Visibility::Public {
            caller.must_be_among(app.config.rooms.publish, "publish rooms")?;
        }
        if !caller.account.admin && !aliases::may_list(&turn, &caller)? {
            return Err(ApiError::forbidden(
                "publishing a room needs the power to set its canonical alias",
            ));
        }
    }
    let mut commit = Commit::new();
    match request.visibility {
        Visibility::Public => aliases::publish(&mut commit, turn.room),
        Visibility::Private => aliases::unpublish(&mut commit, turn.room),
        _ => {
            return Err(ApiError::invalid_param("`visibility` is public or private"));
        }
    }
    turn.finish(commit).await?.flushed().await?;
    Ok(set_room_visibility::v3::Response::new())
}

async fn list(
    app: App,
    MaybeCaller(caller): MaybeCaller,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    if caller.is_none() {
        if app.config.public_list_needs_login() {
            return Err(ApiError::missing_token(
                "the directory of this server is read after logging in",
            ));
        }
        let Client(address) = Client::of(&request.parts);
        app.limits.address(&app, Doing::Anonymous, address)?;
    }
    let request = routes::parse_typed::<get_public_rooms::v3::Request>(&request)?;
    if let Some(server) = elsewhere(&app, request.server.as_deref()) {
        if caller.is_none() {
            return Err(ApiError::missing_token(
                "the directory of another server is read after logging in",
            ));
        }
        let mut asking = federation_directory::get_public_rooms::v1::Request::new();
        asking.limit = request.limit;
        asking.since = request.since;
        let answer = asked::ask(&app, server, asking, WAIT).await;
        let answer = answer.map_err(|error| asked::relayed(&error))?;
        let tokens = [
            ("next_batch", answer.next_batch),
            ("prev_batch", answer.prev_batch),
        ];
        return Ok(reply(
            json!(answer.chunk),
            answer.total_room_count_estimate.map(u64::from),
            tokens,
        ));
    }
    let limit = request.limit.map(u64::from);
    let wanted = Wanted::default();
    page(
        &app,
        &wanted,
        &RoomNetwork::Matrix,
        request.since.as_deref(),
        limit,
    )
}

async fn search(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    let request = routes::parse_typed::<get_public_rooms_filtered::v3::Request>(&request)?;
    let wanted = wanted(&request.filter)?;
    if wanted.term.is_some() {
        caller.limit(&app, Doing::Search)?;
    }
    if let Some(server) = elsewhere(&app, request.server.as_deref()) {
        let mut asking = federation_directory::get_public_rooms_filtered::v1::Request::new();
        asking.limit = request.limit;
        asking.since = request.since;
        asking.filter = request.filter;
        asking.room_network = request.room_network;
        let answer = asked::ask(&app, server, asking, WAIT).await;
        let answer = answer.map_err(|error| asked::relayed(&error))?;
        let tokens = [
            ("next_batch", answer.next_batch),
            ("prev_batch", answer.prev_batch),
        ];
        return Ok(reply(
            json!(answer.chunk),
            answer.total_room_count_estimate.map(u64::from),
            tokens,
        ));
    }
    let limit = request.limit.map(u64::from);
    let network = &request.room_network;
    page(&app, &wanted, network, request.since.as_deref(), limit)
}

/// What a filter of the directory asks for.
///
/// # Errors
/// `M_INVALID_PARAM` when the term is too long.
pub(crate) fn wanted(filter: &Filter) -> ApiResult<Wanted> {
    let term = filter.generic_search_term.clone();
    let term = term.filter(|term| !term.is_empty());
    if term
        .as_ref()
        .is_some_and(|term| term.len() > TERM_BYTES_MAX)
    {
        return Err(ApiError::invalid_param(format!(
            "a search term has at most {TERM_BYTES_MAX} bytes"
        )));
    }
    let types = filter.room_types.iter();
    let types = types.map(|kind| kind.as_str().map(str::to_owned));
    Ok(Wanted {
        term,
        types: types.collect(),
    })
}

/// The server whose directory is asked for, if it is another one.
fn elsewhere<'a>(app: &App, server: Option<&'a ServerName>) -> Option<&'a ServerName> {
    server.filter(|server| *server != app.server_name())
}

fn reply(
    chunk: Value,
    total: Option<u64>,
    tokens: [(&str, Option<String>); 2],
) -> Map<String, Value> {
    let mut reply = Map::new();
    reply.insert("chunk".to_owned(), chunk);
    reply.extend(total.map(|total| ("total_room_count_estimate".to_owned(), total.into())));
    let tokens = tokens.into_iter();
    reply.extend(tokens.filter_map(|(key, token)| Some((key.to_owned(), token?.into()))));
    reply
}

/// A page of this server's directory; a `limit` of 0 is none, as other homeservers take it.
///
/// # Errors
/// `M_INVALID_PARAM` for a `since` that is not of this server.
pub(crate) fn page(
    app: &App,
    wanted: &Wanted,
    network: &RoomNetwork,
    since: Option<&str>,
    limit: Option<u64>,
) -> ApiResult<Map<String, Value>> {
    if matches!(network, RoomNetwork::ThirdParty(_)) {
        // No application service has published a room of its network here.
        return Ok(reply(
            json!([]),
            Some(0),
            [("next_batch", None), ("prev_batch", None)],
        ));
    }
    let since = since.filter(|since| !since.is_empty());
    let since = since.map(Place::parse).transpose()?;
    let limit = limit
        .filter(|limit| *limit > 0)
        .and_then(|limit| usize::try_from(limit).ok())
        .map_or(PAGE_ROOMS_MAX, |limit| limit.min(PAGE_ROOMS_MAX));
    let page = directory::page(app, wanted, since.as_ref(), limit)?;
    let text = |place: Option<Place>| place.map(|place| place.to_string());
    let tokens = [
        ("next_batch", text(page.next)),
        ("prev_batch", text(page.previous)),
    ];
    Ok(reply(
        json!(page.rooms),
        u64::try_from(page.total).ok(),
        tokens,
    ))
}
