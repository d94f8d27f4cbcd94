//! What a client asks of sliding sync, in either of the two forms that it is written in.
//!
//! The form that clients speak is the unstable one; the accepted proposal moved and renamed things.
//! Both become a [`Request`]. Spec: MSC4186, "Request Body".

use std::{collections::BTreeMap, time::Duration};

use ruma::{OwnedRoomId, UserId};
use serde::Deserialize;

use crate::error::{ApiError, ApiResult};

/// How many lists a request has at most. Spec: MSC4186.
const LISTS_MAX: usize = 100;

/// How many rooms a request subscribes to at most. Spec: MSC4186.
const SUBSCRIPTIONS_MAX: usize = 100;

/// The same in the unstable form, which names no limit.
const SUBSCRIPTIONS_UNSTABLE_MAX: usize = 1_000;

/// How many ranges a list has at most.
const RANGES_MAX: usize = 100;

/// How many pieces of state a rule names at most, and how many values a filter or an extension.
const ELEMENTS_MAX: usize = 1_000;

/// How long the names of connections, lists and transactions are at most, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// How many events of a room's timeline a client gets at most.
const TIMELINE_MAX: u64 = 100;

/// Which form a request is written in, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `org.matrix.simplified_msc3575`.
    Unstable,
    /// As the proposal was accepted.
    Accepted,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// The form.
    pub form: Form,
    /// Which of the device's connections; empty for the one without a name.
    pub conn_id: String,
    /// What the client calls this request.
    pub txn_id: Option<String>,
    /// Where the client is; it begins anew without.
    pub pos: Option<String>,
    /// How long it waits for something to happen.
    pub timeout: Duration,
    /// Which rooms it wants.
    pub rules: Rules,
    /// What else it wants.
    pub extensions: Extensions,
}

/// Which rooms a client wants, and what of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Windows into the sequence of the user's rooms.
    pub lists: BTreeMap<String, List>,
    /// Rooms by ID.
    pub subscriptions: BTreeMap<OwnedRoomId, RoomConfig>,
}

/// A window into the sequence of the user's rooms.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Which places of the filtered sequence, both ends included; all of them without.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// Which rooms are in the sequence.
    pub filters: Filters,
    /// What of them is wanted.
    pub config: RoomConfig,
}

/// What of a room is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoomConfig {
    /// How many events at most.
    pub timeline_limit: usize,
    /// Which state.
    pub required_state: RequiredState,
}

/// Which state is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequiredState {
    /// What is wanted.
    pub include: Vec<Element>,
    /// What of it is not.
    pub exclude: Vec<Element>,
    /// Whether members are only told where they matter.
    pub lazy_members: bool,
}

/// Some pieces of state; what is not said stands for anything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Element {
    /// Of which type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// With which state key.
    pub state_key: Option<String>,
}

/// Which rooms are in a list. All conditions that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// Whether the room is a direct chat.
    pub is_dm: Option<bool>,
    /// Whether the room is encrypted.
    pub is_encrypted: Option<bool>,
    /// Whether the user is invited.
    #[serde(alias = "is_invite")]
    pub is_invited: Option<bool>,
    /// In one of these spaces.
    pub spaces: Option<Vec<OwnedRoomId>>,
    /// Of one of these types.
    pub room_types: Option<Vec<Option<String>>>,
    /// Of none of these types.
    pub not_room_types: Option<Vec<Option<String>>>,
    /// With one of these tags.
    pub tags: Option<Vec<String>>,
    /// With none of these tags.
    pub not_tags: Option<Vec<String>>,
}

/// What a client wants besides rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Extensions {
    /// Account data.
    pub account_data: Extension,
    /// Receipts.
    pub receipts: Extension,
    /// Who types.
    pub typing: Extension,
    /// Messages to the device.
    pub to_device: ToDevice,
    /// Keys and devices.
    pub e2ee: Extension,
    /// Which threads the user wants to hear of.
    #[serde(rename = "io.element.msc4308.thread_subscriptions")]
    pub threads: ThreadSubscriptions,
}

/// The extension for thread subscriptions. Spec: MSC4308.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ThreadSubscriptions {
    /// Whether they are wanted.
    pub enabled: Option<bool>,
    /// How many changes at most; what is older is told by an endpoint of its own.
    pub limit: Option<u64>,
}

/// The extension for messages to the device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ToDevice {
    /// Whether it is wanted.
    pub enabled: Option<bool>,
    /// Up to where the device has its messages; it has none without.
    pub since: Option<String>,
}

/// An extension, and for which of the wanted rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Extension {
    /// Whether it is wanted.
    pub enabled: Option<bool>,
    /// For the rooms in these lists; in all of them without.
    pub lists: Option<Vec<String>>,
    /// For these of the rooms that are subscribed to; for all of them without.
    pub rooms: Option<Vec<String>>,
}

impl Extension {
    /// Whether it is wanted.
    pub fn is_on(&self) -> bool {
        self.enabled == Some(true)
    }

    /// Whether it is wanted for a room that is matched by these rules.
    pub fn wants(&self, room_id: &ruma::RoomId, lists: &[String], subscribed: bool) -> bool {
        let names = |list: &Option<Vec<String>>, name: &str| {
            list.as_ref()
                .is_none_or(|list| list.iter().any(|one| one == "*" || one == name))
        };
        lists.iter().any(|name| names(&self.lists, name))
            || (subscribed && names(&self.rooms, room_id.as_str()))
    }
}

#[derive(Deserialize)]
struct UnstableBody {
    conn_id: Option<String>,
    txn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<u64>,
    #[serde(default)]
    lists: BTreeMap<String, UnstableList>,
    #[serde(default)]
    room_subscriptions: BTreeMap<OwnedRoomId, UnstableConfig>,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Deserialize)]
struct UnstableList {
    ranges: Option<Vec<(u64, u64)>>,
    filters: Option<Filters>,
    #[serde(default)]
    required_state: Vec<(String, String)>,
    timeline_limit: u64,
}

#[derive(Deserialize)]
struct UnstableConfig {
    #[serde(default)]
    required_state: Vec<(String, String)>,
    timeline_limit: u64,
}

#[derive(Deserialize)]
struct AcceptedBody {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<u64>,
    #[serde(default)]
    lists: BTreeMap<String, AcceptedList>,
    #[serde(default)]
    room_subscriptions: BTreeMap<OwnedRoomId, AcceptedConfig>,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Deserialize)]
struct AcceptedList {
    range: Option<(u64, u64)>,
    filters: Option<Filters>,
    required_state: AcceptedState,
    timeline_limit: u64,
}

#[derive(Deserialize)]
struct AcceptedConfig {
    required_state: AcceptedState,
    timeline_limit: u64,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct AcceptedState {
    include: Vec<Element>,
    exclude: Vec<Element>,
    lazy_members: bool,
}

/// The body of a request in the unstable form. `pos` and `timeout` may stand in the query as well.
///
/// # Errors
/// When it has another shape, or more of something than there may be.
pub fn unstable(
    body: serde_json::Value,
    pos: Option<String>,
    timeout_ms: Option<u64>,
    me: &UserId,
) -> ApiResult<Request> {
    let body: UnstableBody = parse(body)?;
    let config = |required_state: Vec<(String, String)>, timeline_limit| RoomConfig {
        timeline_limit: limit(timeline_limit),
        required_state: unstable_state(required_state, me),
    };
    let list = |list: UnstableList| List {
        ranges: list.ranges,
        filters: list.filters.unwrap_or_default(),
        config: config(list.required_state, list.timeline_limit),
    };
    let lists = body.lists.into_iter().map(|(name, it)| (name, list(it)));
    let subscriptions = body
        .room_subscriptions
        .into_iter()
        .map(|(room, it)| (room, config(it.required_state, it.timeline_limit)));
    checked(Request {
        form: Form::Unstable,
        conn_id: body.conn_id.unwrap_or_default(),
        txn_id: body.txn_id,
        pos: pos.or(body.pos).filter(|pos| !pos.is_empty()),
        timeout: Duration::from_millis(timeout_ms.or(body.timeout).unwrap_or(0)),
        rules: Rules {
            lists: lists.collect(),
            subscriptions: subscriptions.collect(),
        },
        extensions: body.extensions,
    })
}

/// The body of a request in the accepted form.
///
/// # Errors
/// When it has another shape, or more of something than there may be.
pub fn accepted(body: serde_json::Value) -> ApiResult<Request> {
    let body: AcceptedBody = parse(body)?;
    let config = |state: AcceptedState, timeline_limit| RoomConfig {
        timeline_limit: limit(timeline_limit),
        required_state: RequiredState {
            include: state.include,
            exclude: state.exclude,
            lazy_members: state.lazy_members,
        },
    };
    let list = |list: AcceptedList| List {
        ranges: list.range.map(|range| vec![range]),
        filters: list.filters.unwrap_or_default(),
        config: config(list.required_state, list.timeline_limit),
    };
    let lists = body.lists.into_iter().map(|(name, it)| (name, list(it)));
    let subscriptions = body
        .room_subscriptions
        .into_iter()
        .map(|(room, it)| (room, config(it.required_state, it.timeline_limit)));
    checked(Request {
        form: Form::Accepted,
        conn_id: body.conn_id.unwrap_or_default(),
        txn_id: None,
        pos: body.pos.filter(|pos| !pos.is_empty()),
        timeout: Duration::from_millis(body.timeout.unwrap_or(0)),
        rules: Rules {
            lists: lists.collect(),
            subscriptions: subscriptions.collect(),
        },
        extensions: body.extensions,
    })
}

fn parse<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> ApiResult<T> {
    serde_json::from_value(body).map_err(|error| ApiError::bad_json(error.to_string()))
}

fn limit(asked: u64) -> usize {
    usize::try_from(asked.min(TIMELINE_MAX)).unwrap_or(0)
}

/// Pairs of type and state key, where `*` is anything, `$ME` the user, and `$LAZY` the members who
/// matter.
fn unstable_state(pairs: Vec<(String, String)>, me: &UserId) -> RequiredState {
    let mut state = RequiredState::default();
    for (kind, state_key) in pairs {
        let state_key = match &*state_key {
            "$LAZY" if kind == "m.room.member" => {
                state.lazy_members = true;
                continue;
            }
            "$ME" => Some(me.to_string()),
            "*" => None,
            _ => Some(state_key),
        };
        let kind = (kind != "*").then_some(kind);
        state.include.push(Element { kind, state_key });
    }
    state
}

fn checked(request: Request) -> ApiResult<Request> {
    let most = |what: &str, count: usize, max: usize| {
        if count <= max {
            return Ok(());
        }
        Err(ApiError::invalid_param(format!(
            "there are {count} {what}, at most {max} may be asked for"
        )))
    };
    if request.extensions.threads.limit == Some(0) {
        return Err(ApiError::invalid_param(
            "the limit of thread subscriptions is at least 1",
        ));
    }
    let rules = &request.rules;
    most("lists", rules.lists.len(), LISTS_MAX)?;
    let subscriptions_max = match request.form {
        Form::Unstable => SUBSCRIPTIONS_UNSTABLE_MAX,
        Form::Accepted => SUBSCRIPTIONS_MAX,
    };
    most(
        "room subscriptions",
        rules.subscriptions.len(),
        subscriptions_max,
    )?;
    let names = rules
        .lists
        .keys()
        .chain([&request.conn_id])
        .chain(&request.txn_id);
    for name in names {
        most("bytes in a name", name.len(), NAME_BYTES_MAX)?;
    }
    let configs = rules.lists.values().map(|list| &list.config);
    for config in configs.chain(rules.subscriptions.values()) {
        let state = &config.required_state;
        most(
            "pieces of state",
            state.include.len() + state.exclude.len(),
            ELEMENTS_MAX,
        )?;
    }
    for list in rules.lists.values() {
        most(
            "ranges",
            list.ranges.as_ref().map_or(0, Vec::len),
            RANGES_MAX,
        )?;
        if list
            .ranges
            .iter()
            .flatten()
            .any(|(first, last)| first > last)
        {
            return Err(ApiError::invalid_param("a range ends before it begins"));
        }
        let filters = &list.filters;
        let counts = [
            filters.spaces.as_ref().map_or(0, Vec::len),
            filters.room_types.as_ref().map_or(0, Vec::len),
            filters.not_room_types.as_ref().map_or(0, Vec::len),
            filters.tags.as_ref().map_or(0, Vec::len),
            filters.not_tags.as_ref().map_or(0, Vec::len),
        ];
        for count in counts {
            most("values in a filter", count, ELEMENTS_MAX)?;
        }
    }
    Ok(request)
}

impl Element {
    fn matches(&self, kind: &str, state_key: &str) -> bool {
        self.kind.as_ref().is_none_or(|one| one == kind)
            && self.state_key.as_ref().is_none_or(|one| one == state_key)
    }
}

impl RequiredState {
    /// Whether a piece of state is wanted, other than as a member who matters.
    pub fn wants(&self, kind: &str, state_key: &str) -> bool {
        let lazy = self.lazy_members && kind == "m.room.member";
        self.include.iter().any(|element| {
            element.matches(kind, state_key) && (!lazy || element.state_key.is_some())
        }) && !self
            .exclude
            .iter()
            .any(|element| element.matches(kind, state_key))
    }
}
