//! Spaces: the links to their rooms, and what other servers tell of spaces that this one is not in.
//!
//! Spec: client-server API, "Spaces"; server-server API, `GET /hierarchy`.

use std::{sync::Arc, time::Duration};

use http::Method;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName,
    api::{
        EmptyBody, IncomingResponse, Metadata, OutgoingRequest,
        auth_scheme::NoAuthentication,
        error::{DeserializationError, IntoHttpError},
        path_builder::SinglePath,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    keys::UserNum,
    rooms::{Membership, RoomView},
};

use super::{members::is_joined, outline::Outline};
use crate::{
    asked::{self, Told},
    error::ApiResult,
    peers::PeerError,
    server::App,
};

/// How long the `order` of a child may be. Spec: "Ordering of children within a space".
const ORDER_CHARACTERS_MAX: usize = 50;

/// How many servers that a link names are asked about a room.
const VIA_MAX: usize = 3;

/// How many children another server may tell of; more are left out.
const CHILDREN_TOLD_MAX: usize = 2_000;

/// For how long what a server told of a space is gone by, in milliseconds: five minutes.
const REMEMBERED_MS: u64 = 5 * 60 * 1_000;

/// How long a server may take to tell of a space.
const WAIT: Duration = Duration::from_secs(10);

/// A valid link from a space to a room.
#[derive(Clone, Debug)]
pub struct Child {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Servers that are in it.
    pub via: Vec<OwnedServerName>,
    /// Whether the space recommends it.
    pub suggested: bool,
    /// The event, as clients get it here: stripped, with `origin_server_ts`.
    pub stripped: Value,
    order: Option<String>,
    origin_server_ts: u64,
}

#[derive(Deserialize)]
struct Stripped {
    state_key: OwnedRoomId,
    content: ChildContent,
    origin_server_ts: u64,
}

#[derive(Deserialize)]
struct ChildContent {
    via: Vec<Value>,
    order: Option<Value>,
    suggested: Option<Value>,
}

impl Child {
    /// From a stripped event; `None` if it is no link, or no longer one.
    fn new(stripped: Value) -> Option<Self> {
        let parsed = Stripped::deserialize(&stripped).ok()?;
        let servers = parsed.content.via.iter().filter_map(Value::as_str);
        let order = parsed.content.order;
        let order = order
            .and_then(|order| order.as_str().map(str::to_owned))
            .filter(|order| {
                order.len() <= ORDER_CHARACTERS_MAX
                    && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
            });
        Some(Self {
            room_id: parsed.state_key,
            via: servers
                .filter_map(|server| server.try_into().ok())
                .collect(),
            suggested: parsed.content.suggested == Some(Value::Bool(true)),
            stripped,
            order,
            origin_server_ts: parsed.origin_server_ts,
        })
    }
}

/// The links in the order clients show them.
fn sorted(mut children: Vec<Child>) -> Vec<Child> {
    children.sort_by_key(|child| {
        (
            child.order.is_none(),
            child.order.clone(),
            child.origin_server_ts,
            child.room_id.clone(),
        )
    });
    children
}

/// The links of a space here, in the order clients show them; a room that is no space has none.
///
/// # Errors
/// When the store cannot be read.
pub fn children(app: &App, view: &RoomView, outline: &Outline) -> ApiResult<Vec<Child>> {
    if !is_space(&outline.fields) {
        return Ok(Vec::new());
    }
    let mut children = Vec::new();
    for (key, event_id) in view.head.state.of_kind("m.space.child") {
        let Some(event) = app.store.state_event(event_id)? else {
            continue;
        };
        children.extend(Child::new(json!({
            "type": "m.space.child",
            "state_key": key,
            "content": event.pdu.content(),
            "sender": event.pdu.sender(),
            "origin_server_ts": event.pdu.origin_server_ts(),
        })));
    }
    Ok(sorted(children))
}

/// The links of a space as another server told of it, in the order clients show them.
pub fn children_told(told: &Told) -> Vec<Child> {
    if !is_space(&told.room) {
        return Vec::new();
    }
    let children = told.children_state.iter().cloned();
    sorted(children.filter_map(Child::new).collect())
}

/// Whether a summary is of a space.
pub fn is_space(summary: &Map<String, Value>) -> bool {
    summary.get("room_type").and_then(Value::as_str) == Some("m.space")
}

/// What the first server that knows says of a room and, if it is a space, of its rooms. `None`: none of them tells.
pub async fn ask(app: &App, room_id: &RoomId, via: &[OwnedServerName]) -> Option<Arc<Told>> {
    let others = via.iter().filter(|server| *server != app.server_name());
    for server in others.take(VIA_MAX) {
        match ask_one(app, room_id, server).await {
            Ok(Some(told)) => return Some(told),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, %room_id, "a server was asked about a room"),
        }
    }
    None
}

async fn ask_one(
    app: &App,
    room_id: &RoomId,
    server: &ServerName,
) -> Result<Option<Arc<Told>>, PeerError> {
    let ask = async {
        let request = Hierarchy(room_id.to_owned());
        match asked::ask(app, server, request, WAIT).await {
            Ok(HierarchyTold(told)) if is_of(&told.room, room_id) => Ok(Some(Arc::new(told))),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let question = format!("{server} {room_id}");
    let spaces = &app.asked.spaces;
    let told = spaces.get(app.clock.now_ms(), &question, REMEMBERED_MS, ask);
    match told.await {
        // Not remembered: who joins the space may be told a moment later.
        Err(PeerError::Refused { status, .. }) if status.is_client_error() => Ok(None),
        told => told,
    }
}

/// Whether a summary is of this room.
pub fn is_of(summary: &Map<String, Value>, room_id: &RoomId) -> bool {
    summary.get("room_id").and_then(Value::as_str) == Some(room_id.as_str())
}

/// Whether a user, or somebody unknown, may know of a room that another server told of: its rule lets anybody in or ask
/// to be, anybody may read it, they are in a room that lets them in, or they are invited.
///
/// # Errors
/// When the store cannot be read.
pub fn may_be_told(
    app: &App,
    summary: &Map<String, Value>,
    room_id: &RoomId,
    user: Option<UserNum>,
) -> ApiResult<bool> {
    let rule = summary.get("join_rule").and_then(Value::as_str);
    let open = matches!(
        rule.unwrap_or("public"),
        "public" | "knock" | "knock_restricted"
    );
    if open || summary.get("world_readable") == Some(&Value::Bool(true)) {
        return Ok(true);
    }
    let Some(user) = user else {
        return Ok(false);
    };
    if matches!(
        membership(app, user, room_id)?,
        Membership::Join | Membership::Invite
    ) {
        return Ok(true);
    }
    let allowed = summary.get("allowed_room_ids").and_then(Value::as_array);
    for room_id in allowed.into_iter().flatten().filter_map(Value::as_str) {
        if let Ok(room_id) = RoomId::parse(room_id)
            && is_joined(app, user, &room_id)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A user's membership in a room, also in one that this server is not in.
///
/// # Errors
/// When the store cannot be read.
pub fn membership(app: &App, user: UserNum, room_id: &RoomId) -> ApiResult<Membership> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(Membership::Leave);
    };
    let row = app.store.user_room(user, room)?;
    Ok(row.map_or(Membership::Leave, |row| row.membership))
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`. ruma's own type drops a whole answer for one room with an unusual
/// join rule.
#[derive(Clone, Debug)]
struct Hierarchy(OwnedRoomId);

impl Metadata for Hierarchy {
    const METHOD: Method = Method::GET;
    const RATE_LIMITED: bool = false;
    // The request is signed where it is sent.
    type Authentication = NoAuthentication;
    type PathBuilder = SinglePath;
    const PATH_BUILDER: SinglePath = SinglePath::new("/_matrix/federation/v1/hierarchy/{room_id}");
}

impl OutgoingRequest for Hierarchy {
    type Body = EmptyBody;
    type EndpointError = ruma::api::error::Error;
    type IncomingResponse = HierarchyTold;

    fn try_into_http_request_inner(
        self,
        base_url: &str,
        (): (),
    ) -> Result<http::Request<EmptyBody>, IntoHttpError> {
        let url = Self::make_endpoint_url((), base_url, &[&self.0], "")?;
        Ok(http::Request::builder()
            .method(Self::METHOD)
            .uri(url)
            .body(EmptyBody)?)
    }
}

struct HierarchyTold(Told);

impl IncomingResponse for HierarchyTold {
    type EndpointError = ruma::api::error::Error;

    fn try_from_http_response_inner(
        response: http::Response<&[u8]>,
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Answer {
            room: Map<String, Value>,
            #[serde(default)]
            children: Vec<Value>,
            #[serde(default)]
            inaccessible_children: Vec<Value>,
        }
        let mut answer: Answer = serde_json::from_slice(response.body())?;
        let children_state = match answer.room.remove("children_state") {
            Some(Value::Array(state)) => state,
            _ => Vec::new(),
        };
        let children = answer.children.into_iter().filter_map(|child| match child {
            Value::Object(child) => Some(child),
            _ => None,
        });
        let inaccessible = answer.inaccessible_children.iter();
        let inaccessible = inaccessible.filter_map(|room_id| room_id.as_str()?.try_into().ok());
        Ok(Self(Told {
            room: answer.room,
            children_state: children_state.into_iter().take(CHILDREN_TOLD_MAX).collect(),
            children: children.take(CHILDREN_TOLD_MAX).collect(),
            inaccessible: inaccessible.take(CHILDREN_TOLD_MAX).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(room_id: &str, content: &Value) -> Value {
        json!({
            "type": "m.space.child",
            "state_key": room_id,
            "content": content,
            "sender": "@a:hs1",
            "origin_server_ts": 5,
        })
    }

    #[test]
    fn a_link_without_via_is_none() {
        let via = json!({ "via": ["hs2", "not a server", 5] });
        let child = Child::new(link("!a:hs2", &via)).unwrap();
        assert_eq!(child.via, ["hs2"]);
        assert!(Child::new(link("!a:hs2", &json!({}))).is_none());
        assert!(Child::new(link("!a:hs2", &json!({ "via": "hs2" }))).is_none());
        assert!(Child::new(link("a", &json!({ "via": [] }))).is_none());
    }

    #[test]
    fn an_answer_with_strange_rooms_in_it_is_read_as_far_as_it_goes() {
        let body = json!({
            "room": {
                "room_id": "!s:hs2",
                "room_type": "m.space",
                "join_rule": "com.example.rule",
                "children_state": [5, link("!a:hs2", &json!({ "via": ["hs2"] }))],
            },
            "children": ["no", { "room_id": "!a:hs2", "join_rule": 5 }],
            "inaccessible_children": ["!b:hs2", 5, "no"],
        });
        let body = body.to_string();
        let response = http::Response::new(body.as_bytes());
        let HierarchyTold(told) = HierarchyTold::try_from_http_response_inner(response).unwrap();
        assert!(!told.room.contains_key("children_state"));
        assert_eq!(children_told(&told).len(), 1);
        assert_eq!(told.children.len(), 1);
        assert_eq!(told.inaccessible, ["!b:hs2"]);
    }
}
