//! What a client may see of a room: visibility, and events as clients get them.
//!
//! Spec: client-server API, "Room history visibility", "Room event format", "Aggregations of child
//! events".

use std::{borrow::Cow, sync::Arc};

use federation::{
    event::Pdu,
    room::{
        StateMap,
        visibility::{Viewpoint, Visible, entitled, look},
    },
};
use ruma::{
    DeviceId, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId,
    events::{
        TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use store::{
    Store, StoreError,
    keys::{RoomNum, StateId, UserNum},
    rooms::{Membership, MembershipRow, RoomView, TimelineEvent},
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// An event that a certain user may see, with the membership that the user had at it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The event.
    pub event: Visible<Arc<TimelineEvent>>,
    /// The viewer's membership at the event. Spec: `unsigned.membership`.
    pub membership: Membership,
}

/// A user looking at a room.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user; `None` for one who was never seen here.
    pub user: UserNum,
    /// In full.
    pub user_id: ruma::OwnedUserId,
    /// Their relation to the room.
    pub row: Option<MembershipRow>,
}

/// A room and a user looking at it.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The room.
    pub view: Arc<RoomView>,
    /// Who looks.
    pub viewer: Viewer,
}

impl Sight {
    /// A user looking at a room.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the room is not known here: whether it exists is not told.
    pub fn of(app: &App, room_id: &RoomId, user: UserNum, user_id: &UserId) -> ApiResult<Self> {
        let unknown = || ApiError::forbidden("you are not in this room, or it does not exist");
        let room = app.store.find_room(room_id)?.ok_or_else(unknown)?;
        let view = app.store.room(room)?.ok_or_else(unknown)?;
        Self::on(app, view, user, user_id)
    }

    /// A user looking at a room whose view is at hand.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn on(app: &App, view: Arc<RoomView>, user: UserNum, user_id: &UserId) -> ApiResult<Self> {
        let row = app.store.user_room(user, view.room)?;
        Ok(Self {
            view,
            viewer: Viewer {
                user,
                user_id: user_id.to_owned(),
                row,
            },
        })
    }

    /// The viewer's membership now.
    pub fn membership(&self) -> Membership {
        self.viewer
            .row
            .as_ref()
            .map_or(Membership::Leave, |row| row.membership)
    }

    /// That the viewer is joined.
    ///
    /// # Errors
    /// `M_FORBIDDEN`.
    pub fn must_be_joined(&self) -> ApiResult<()> {
        if self.membership() == Membership::Join {
            return Ok(());
        }
        Err(ApiError::forbidden("you are not joined to this room"))
    }

    /// That the viewer may look at the room at all: is or was joined, or anyone may.
    ///
    /// # Errors
    /// `M_FORBIDDEN`.
    pub fn must_see_something(&self, app: &App) -> ApiResult<()> {
        let row = self.viewer.row.as_ref();
        let forgotten = row.is_some_and(|row| row.forgotten);
        let was_there =
            row.is_some_and(|row| row.membership == Membership::Join || row.left_at > 0);
        if (was_there && !forgotten)
            || history_visibility(app, &self.view.head.state)? == HistoryVisibility::WorldReadable
        {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "you are not in this room, or it does not exist",
        ))
    }

    /// The state that the viewer sees as the room's: the current one, or, after leaving, the one at
    /// that moment.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the viewer sees nothing of the room.
    pub fn state(&self, app: &App) -> ApiResult<StateMap> {
        self.must_see_something(app)?;
        let left = self
            .viewer
            .row
            .as_ref()
            .filter(|row| !matches!(row.membership, Membership::Join) && row.left_at > 0);
        match left {
            Some(row)
                if history_visibility(app, &self.view.head.state)?
                    != HistoryVisibility::WorldReadable =>
            {
                let order = i64::try_from(row.left_at).unwrap_or(i64::MAX);
                let event = app.store.event_at(self.view.room, order)?;
                let id = event.map_or(self.view.head.state_id, |event| event.state_after);
                Ok(self.state_at(&app.store, id)?)
            }
            _ => Ok(self.view.head.state.clone()),
        }
    }

    /// The state with a number, from the view where possible.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn state_at(&self, store: &Store, id: StateId) -> Result<StateMap, StoreError> {
        if id == self.view.head.state_id {
            return Ok(self.view.head.state.clone());
        }
        store.state(self.view.room, id)
    }

    /// The event, if the viewer may see it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn look(&self, app: &App, event: Arc<TimelineEvent>) -> ApiResult<Option<Seen>> {
        let row = self.viewer.row.as_ref();
        // Joined without a break since before the event: no state need be read.
        let joined_throughout = row.is_some_and(|row| {
            row.membership == Membership::Join
                && row.joined_at > 0
                && row.joined_at < event.position()
        });
        if joined_throughout {
            return Ok(Some(Seen {
                event: entitled(event),
                membership: Membership::Join,
            }));
        }
        let joined_later = row
            .is_some_and(|row| row.membership == Membership::Join || row.left_at > event.place());
        let before = self.viewpoint(app, event.state_before, joined_later)?;
        let after = if event.changes_state() {
            self.viewpoint(app, event.state_after, joined_later)?
        } else {
            before.clone()
        };
        let membership = Membership::of(&after.membership_at_event);
        let pdu = event.pdu.clone();
        let event = if membership != Membership::Join && is_erased(app, pdu.sender())? {
            self.without_content(&event)?
        } else {
            event
        };
        Ok(look(event, &pdu, &self.viewer.user_id, &before, &after)
            .map(|event| Seen { event, membership }))
    }

    /// What is shown of the event of a user who asked to be forgotten: what a redaction would leave.
    fn without_content(&self, event: &TimelineEvent) -> ApiResult<Arc<TimelineEvent>> {
        let pdu = event
            .pdu
            .redacted(self.view.rules)
            .map_err(|error| ApiError::internal(&error))?;
        Ok(Arc::new(TimelineEvent {
            room: event.room,
            order: event.order,
            pdu: Arc::new(pdu),
            state_before: event.state_before,
            state_after: event.state_after,
            replaces: event.replaces.clone(),
            redacted_by: event.redacted_by.clone(),
            txn: None,
        }))
    }

    fn viewpoint(&self, app: &App, id: StateId, joined_later: bool) -> ApiResult<Viewpoint> {
        let state = self.state_at(&app.store, id)?;
        Ok(Viewpoint {
            at_event: history_visibility(app, &state)?,
            membership_at_event: membership_in(app, &state, &self.viewer.user_id)?,
            joined_later,
        })
    }

    /// An event of this room by ID, if the viewer may see it.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is no such event in the room or the viewer may not see it.
    pub fn event(&self, app: &App, event_id: &EventId) -> ApiResult<Seen> {
        let not_found =
            || ApiError::not_found("there is no such event in this room, or you may not see it");
        let event = app
            .store
            .event(event_id)?
            .filter(|event| event.room == self.view.room);
        self.look(app, event.ok_or_else(not_found)?)?
            .ok_or_else(not_found)
    }
}

/// Whether a user deactivated their account and asked that what they said be forgotten: those who
/// were not in the room then are not shown it. Spec: client-server API, "Account deactivation".
pub(super) fn is_erased(app: &App, sender: &UserId) -> ApiResult<bool> {
    if !app.is_local(sender) {
        return Ok(false);
    }
    let Some(user) = app.store.find_user(sender)? else {
        return Ok(false);
    };
    let account = app.accounts.user(user)?;
    Ok(account.is_some_and(|account| account.erased))
}

#[derive(Deserialize)]
struct VisibilityContent {
    history_visibility: HistoryVisibility,
}

/// The history visibility in a state; `shared` where the room says nothing it should.
///
/// # Errors
/// When the store cannot be read.
pub fn history_visibility(app: &App, state: &StateMap) -> ApiResult<HistoryVisibility> {
    let content: Option<VisibilityContent> =
        state_content(&app.store, state, "m.room.history_visibility", "")?;
    Ok(content.map_or(HistoryVisibility::Shared, |content| {
        content.history_visibility
    }))
}

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
}

/// A user's membership in a state.
///
/// # Errors
/// When the store cannot be read.
pub fn membership_in(app: &App, state: &StateMap, user_id: &UserId) -> ApiResult<MembershipState> {
    let content: Option<MemberContent> =
        state_content(&app.store, state, "m.room.member", user_id.as_str())?;
    Ok(content.map_or(MembershipState::Leave, |content| content.membership))
}

/// The content of a state event as `T`; `None` when there is none, or it has another shape.
///
/// # Errors
/// When the store cannot be read.
pub fn state_content<T: serde::de::DeserializeOwned>(
    store: &Store,
    state: &StateMap,
    kind: &str,
    state_key: &str,
) -> Result<Option<T>, StoreError> {
    let Some(event_id) = state.get(kind, state_key) else {
        return Ok(None);
    };
    // Of a room that was joined by way of another server, most of the state has no place in the timeline.
    Ok(store.pdu(event_id)?.and_then(|pdu| pdu.content_as()))
}

/// How events are to be written for a client.
#[derive(Clone, Copy, Debug)]
pub struct Format<'a> {
    /// Whether each names its room: not where the room is said beside it.
    pub with_room_id: bool,
    /// Who reads: only they see their transaction IDs.
    pub reader: (UserNum, Option<&'a DeviceId>),
    /// Milliseconds since the epoch, for `age`.
    pub now_ms: u64,
}

#[derive(Serialize)]
struct ClientEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    content: &'a RawValue,
    sender: &'a UserId,
    event_id: &'a EventId,
    origin_server_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    unsigned: Unsigned<'a>,
}

#[derive(Serialize)]
struct Unsigned<'a> {
    age: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_sender: Option<ruma::OwnedUserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<OwnedEventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<Box<RawValue>>,
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    relations: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_room_state: Option<Vec<Box<RawValue>>>,
}

/// An event as a client gets it.
///
/// # Errors
/// When the store cannot be read.
pub fn client_event(
    app: &App,
    sight: &Sight,
    seen: &Seen,
    format: &Format<'_>,
) -> ApiResult<Box<RawValue>> {
    write_event(
        app,
        seen,
        format,
        Beside {
            membership: Some(seen.membership),
            relations: super::relations::bundle(app, sight, seen, format)?,
            invite_room_state: None,
        },
    )
}

/// An event as a client gets it, without what relates to it.
///
/// # Errors
/// When the store cannot be read.
pub fn client_event_alone(app: &App, seen: &Seen, format: &Format<'_>) -> ApiResult<Box<RawValue>> {
    let beside = Beside {
        membership: Some(seen.membership),
        ..Beside::default()
    };
    write_event(app, seen, format, beside)
}

/// An event as an application service gets it, which reads whole rooms and not for one user. With the
/// invite of `invited`, the state that they are told of the room.
///
/// # Errors
/// When the store cannot be read.
pub fn service_event(
    app: &App,
    event: &Arc<TimelineEvent>,
    invited: Option<&UserId>,
    now_ms: u64,
) -> ApiResult<Box<RawValue>> {
    let invite_room_state = match invited {
        Some(invited) => {
            let state = app.store.state(event.room, event.state_after)?;
            Some(stripped_state(app, &state, invited)?)
        }
        None => None,
    };
    let seen = Seen {
        event: entitled(event.clone()),
        membership: Membership::Leave,
    };
    let format = Format {
        with_room_id: true,
        // No user has the number 0.
        reader: (UserNum(0), None),
        now_ms,
    };
    let beside = Beside {
        invite_room_state,
        ..Beside::default()
    };
    write_event(app, &seen, &format, beside)
}

/// What is written of an event that is not in it.
#[derive(Default)]
struct Beside {
    membership: Option<Membership>,
    relations: Option<Box<RawValue>>,
    invite_room_state: Option<Vec<Box<RawValue>>>,
}

fn write_event(
    app: &App,
    seen: &Seen,
    format: &Format<'_>,
    beside: Beside,
) -> ApiResult<Box<RawValue>> {
    let event: &TimelineEvent = &seen.event;
    let pdu = &event.pdu;
    let replaced = event.replaces.as_ref();
    let replaced = replaced.map(|id| app.store.state_event(id)).transpose()?;
    let replaced = replaced.flatten();
    let redacted_because = match &event.redacted_by {
        Some(because) => match app.store.event(because)? {
            Some(because) => {
                let because = Seen {
                    event: entitled(because),
                    membership: seen.membership,
                };
                let beside = Beside {
                    membership: beside.membership,
                    ..Beside::default()
                };
                Some(write_event(app, &because, format, beside)?)
            }
            None => None,
        },
        None => None,
    };
    let transaction_id = event
        .txn
        .as_ref()
        .filter(|txn| format.reader.0 == txn.user && format.reader.1 == Some(&txn.device));
    let timestamp = u64::from(pdu.origin_server_ts().get());
    let kind = pdu.kind().to_string();
    let content = content_for_clients(pdu)?;
    let json = ClientEvent {
        kind: &kind,
        content: &content,
        sender: pdu.sender(),
        event_id: pdu.event_id(),
        origin_server_ts: timestamp,
        state_key: pdu.state_key(),
        room_id: format.with_room_id.then_some(pdu.room_id()),
        redacts: pdu.redacts(),
        unsigned: Unsigned {
            age: format.now_ms.saturating_sub(timestamp),
            membership: beside.membership,
            transaction_id: transaction_id.map(|txn| &*txn.txn_id),
            prev_content: replaced
                .as_ref()
                .map(|event| event.pdu.content().to_owned()),
            prev_sender: replaced.as_ref().map(|event| event.pdu.sender().to_owned()),
            replaces_state: replaced
                .as_ref()
                .map(|event| event.pdu.event_id().to_owned()),
            redacted_because,
            relations: beside.relations,
            invite_room_state: beside.invite_room_state,
        },
    };
    serde_json::value::to_raw_value(&json).map_err(|error| ApiError::internal(&error))
}

/// The content; of a redaction, with what it redacts in every room version.
///
/// Spec: room version 11, "Moving the `redacts` property of `m.room.redaction` events to a content
/// property".
fn content_for_clients(pdu: &Pdu) -> ApiResult<Cow<'_, RawValue>> {
    let Some(redacts) = pdu.redacts() else {
        return Ok(Cow::Borrowed(pdu.content()));
    };
    let content: Option<Map<String, Value>> = pdu.content_as();
    match content {
        Some(mut content) if !content.contains_key("redacts") => {
            content.insert("redacts".to_owned(), redacts.as_str().into());
            serde_json::value::to_raw_value(&content)
                .map(Cow::Owned)
                .map_err(|error| ApiError::internal(&error))
        }
        _ => Ok(Cow::Borrowed(pdu.content())),
    }
}

#[derive(Serialize)]
struct StrippedEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
}

/// The kinds of state that someone outside the room is told.
///
/// Spec: client-server API, "Stripped state".
pub const TOLD: [&str; 8] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.member",
];

/// The state that someone outside the room is told of it, with an invite or a knock.
///
/// Spec: client-server API, "Stripped state".
///
/// # Errors
/// When the store cannot be read.
pub fn stripped_state(
    app: &App,
    state: &StateMap,
    member: &UserId,
) -> ApiResult<Vec<Box<RawValue>>> {
    let mut told = Vec::new();
    let own = state.get("m.room.member", member.as_str());
    let own = own
        .map(|id| app.store.state_event(id))
        .transpose()?
        .flatten();
    let by = own
        .as_ref()
        .and_then(|own| state.get("m.room.member", own.pdu.sender().as_str()));
    let entries = TOLD.iter().filter_map(|kind| state.get(kind, "")).chain(by);
    let mut events = Vec::new();
    for event_id in entries {
        events.extend(app.store.state_event(event_id)?);
    }
    events.extend(own);
    for event in events {
        let creates = *event.pdu.kind() == TimelineEventType::RoomCreate;
        let stripped = StrippedEvent {
            kind: &event.pdu.kind().to_string(),
            content: event.pdu.content(),
            sender: event.pdu.sender(),
            state_key: event.pdu.state_key().unwrap_or_default(),
            // MSC4311: of the event that makes the room, clients are told when that was.
            origin_server_ts: creates.then(|| event.pdu.origin_server_ts()),
        };
        told.push(
            serde_json::value::to_raw_value(&stripped)
                .map_err(|error| ApiError::internal(&error))?,
        );
    }
    Ok(told)
}

/// The room's number and view, for somebody who need not be in it.
///
/// # Errors
/// `M_NOT_FOUND` when the room is not known here.
pub fn known_room(app: &App, room_id: &RoomId) -> ApiResult<(RoomNum, Arc<RoomView>)> {
    let unknown = || ApiError::not_found("the room is not known here");
    let room = app.store.find_room(room_id)?.ok_or_else(unknown)?;
    Ok((room, app.store.room(room)?.ok_or_else(unknown)?))
}
