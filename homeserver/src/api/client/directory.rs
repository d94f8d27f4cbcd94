//! Room aliases and the published room directory.
//!
//! Spec: client-server API, "Room aliases", "Published room directory". The lists of application
//! services' networks are not here.

use http::Method;
use ruma::{
    ServerName,
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{
            get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
        },
        room::{Visibility, aliases as get_aliases},
    },
    directory::RoomNetwork,
};
use serde_json::{Map, Value, json};
use store::Commit;

use super::membership::room_meant_or_made;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, Client, Guest, MaybeCaller, Public, RawRequest, Routes, limits::Doing, routes},
    rooms::{
        aliases,
        directory::{self, PAGE_ROOMS_MAX, Place, Wanted},
        read::{self, Sight, known_room},
    },
    server::App,
};

/// How many bytes a search term may have.
const TERM_BYTES_MAX: usize = 1_024;

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

/// Where an alias leads. The server that knows an alias is the server that can help to join.
async fn alias(
    app: App,
    Public(client): Public,
    request: get_alias::v3::Request,
) -> ApiResult<get_alias::v3::Response> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let room_id = room_meant_or_made(&app, request.room_alias.as_str()).await?;
    let servers = vec![app.server_name().to_owned()];
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
    must_be_here(&app, request.server.as_deref())?;
    let limit = request.limit.map(u64::from);
    page(&app, &Wanted::default(), request.since.as_deref(), limit)
}

async fn search(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    let request = routes::parse_typed::<get_public_rooms_filtered::v3::Request>(&request)?;
    must_be_here(&app, request.server.as_deref())?;
    let term = request.filter.generic_search_term;
    let term = term.filter(|term| !term.is_empty());
    if let Some(term) = &term {
        caller.limit(&app, Doing::Search)?;
        if term.len() > TERM_BYTES_MAX {
            return Err(ApiError::invalid_param(format!(
                "a search term has at most {TERM_BYTES_MAX} bytes"
            )));
        }
    }
    let types = request.filter.room_types.iter();
    let types = types.map(|kind| kind.as_str().map(str::to_owned));
    let wanted = Wanted {
        term,
        types: types.collect(),
    };
    if matches!(request.room_network, RoomNetwork::ThirdParty(_)) {
        // No application service has published a room of its network here.
        return Ok(Map::from_iter([
            ("chunk".to_owned(), json!([])),
            ("total_room_count_estimate".to_owned(), 0.into()),
        ]));
    }
    let limit = request.limit.map(u64::from);
    page(&app, &wanted, request.since.as_deref(), limit)
}

/// That the directory asked for is this server's.
fn must_be_here(app: &App, server: Option<&ServerName>) -> ApiResult<()> {
    match server {
        Some(server) if server != app.server_name() => Err(ApiError::not_found(format!(
            "the directory of {server} cannot be read from here: this server does not federate"
        ))),
        _ => Ok(()),
    }
}

/// A page; a `limit` of 0 is none, as other homeservers take it.
fn page(
    app: &App,
    wanted: &Wanted,
    since: Option<&str>,
    limit: Option<u64>,
) -> ApiResult<Map<String, Value>> {
    let since = since.filter(|since| !since.is_empty());
    let since = since.map(Place::parse).transpose()?;
    let limit = limit
        .filter(|limit| *limit > 0)
        .and_then(|limit| usize::try_from(limit).ok())
        .map_or(PAGE_ROOMS_MAX, |limit| limit.min(PAGE_ROOMS_MAX));
    let page = directory::page(app, wanted, since.as_ref(), limit)?;
    let mut reply = Map::new();
    reply.insert("chunk".to_owned(), json!(page.rooms));
    reply.insert("total_room_count_estimate".to_owned(), page.total.into());
    let tokens = [("next_batch", page.next), ("prev_batch", page.previous)];
    reply.extend(
        tokens
            .into_iter()
            .filter_map(|(key, place)| Some((key.to_owned(), place?.to_string().into()))),
    );
    Ok(reply)
}
