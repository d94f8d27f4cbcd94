//! Sending: what a client says becomes an event in its room.
//!
//! Spec: client-server API, "Sending events to a room", "Redactions".

use std::sync::Arc;

use federation::event::{Draft, Pdu};
use http::StatusCode;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedEventId, RoomId, UserId};
use serde_json::value::RawValue;
use store::{
    Commit,
    rooms::{Membership, TxnRef},
};

use super::{Turn, policy, relations::Relation, turn::Append};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    metrics::Stage,
    server::App,
};

/// An event to be sent for a user.
#[derive(Debug)]
pub struct Outgoing {
    /// What.
    pub draft: Draft,
    /// The `txnId` of the request, for what is not state.
    pub txn_id: Option<String>,
    /// When it was sent, as only an application service may say.
    pub timestamp: Option<MilliSecondsSinceUnixEpoch>,
}

impl Outgoing {
    /// Now, without a transaction.
    pub fn now(draft: Draft) -> Self {
        Self {
            draft,
            txn_id: None,
            timestamp: None,
        }
    }
}

/// Sends an event and returns its ID once it is durable.
///
/// State that is as asked already is not sent again: the ID is the present event's.
///
/// # Errors
/// `M_FORBIDDEN` when the room does not allow it; `M_BAD_JSON`, `M_TOO_LARGE`, `M_DUPLICATE_ANNOTATION`
/// or what [`super::rules::check`] says when it cannot be sent; `M_NOT_FOUND` when the room is not known;
/// what the room's policy server says against it.
pub async fn send(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    outgoing: Outgoing,
) -> ApiResult<OwnedEventId> {
    let asked = app.clock.instant();
    let mut turn = app.rooms.turn(app, room_id).await.map_err(not_in_room)?;
    let began = app.clock.instant();
    app.metrics.stage(Stage::Turn, began - asked);
    let txn = outgoing
        .txn_id
        .zip(transaction_owner(caller))
        .map(|(txn_id, device)| TxnRef {
            user: caller.user,
            device,
            txn_id,
        });
    if let Some(txn) = &txn
        && let Some(event_id) = turn.sent_before(txn).await?
    {
        return Ok(event_id);
    }
    if turn.head.membership(caller.user) != Membership::Join {
        // A user may still answer an invite or take back a knock; that is membership, not sending.
        return Err(ApiError::forbidden("you are not joined to this room"));
    }
    super::rules::check(app, &turn, &outgoing.draft, None)?;
    if let Some(present) = same_state(&turn, &caller.user_id, &outgoing.draft)? {
        return Ok(present);
    }
    if let Some(target) = &outgoing.draft.redacts {
        check_redaction(app, &turn, caller, target)?;
    }
    let mut commit = Commit::new();
    let append = Append {
        sender: caller.user_id.clone(),
        draft: outgoing.draft,
        origin_server_ts: outgoing.timestamp.unwrap_or_else(|| app.clock.now()),
        txn: None,
    };
    let pdu = turn.build(append)?;
    check_annotation(app, &turn, &pdu)?;
    let policy = turn.policy_for(&pdu)?;
    let mut pdu = Arc::new(pdu);
    if let Some(policy) = policy {
        let rules = turn.rules;
        // The network is not waited for with the turn.
        drop(turn);
        pdu = Arc::new(policy::ask(app, &policy, &pdu, rules).await?);
        turn = app.rooms.turn(app, room_id).await?;
        if let Some(txn) = &txn
            && let Some(event_id) = turn.sent_before(txn).await?
        {
            return Ok(event_id);
        }
        turn.append_late(&mut commit, &pdu, txn).await?;
    } else {
        turn.add(&mut commit, &pdu, txn, None).await?;
    }
    let pending = turn.finish(commit).await?;
    let queued = app.clock.instant();
    app.metrics.stage(Stage::Decide, queued - began);
    pending.flushed().await?;
    let flushed = app.clock.instant();
    app.metrics.stage(Stage::Flush, flushed - queued);
    Ok(pdu.event_id().to_owned())
}

/// The device that transaction IDs belong to. An application service need not name one; then they are its
/// own, under a name that no client has.
fn transaction_owner(caller: &Caller) -> Option<OwnedDeviceId> {
    let service = caller.service.as_ref();
    let own = || service.map(|service| format!("application service {}", service.id).into());
    caller.device.clone().or_else(own)
}

/// A room that is not known is a room that one is not in.
fn not_in_room(error: ApiError) -> ApiError {
    if error.status == StatusCode::NOT_FOUND {
        return ApiError::forbidden("you are not in this room, or it does not exist");
    }
    error
}

/// The event that holds the state that a draft asks for, if `sender` sent it with the same content.
fn same_state(turn: &Turn, sender: &UserId, draft: &Draft) -> ApiResult<Option<OwnedEventId>> {
    let Some(state_key) = &draft.state_key else {
        return Ok(None);
    };
    let Some(present) = turn.state_event(&draft.kind, state_key)? else {
        return Ok(None);
    };
    let same = present.sender() == sender && same_json(present.content(), &draft.content);
    Ok(same.then(|| present.event_id().to_owned()))
}

fn same_json(one: &RawValue, other: &RawValue) -> bool {
    let parse = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
    one.get() == other.get() || (parse(one).is_some() && parse(one) == parse(other))
}

/// Everybody may redact what they sent; for what others sent it needs power.
///
/// Where there are other servers, one of them may know an event that has not come here.
fn check_redaction(app: &App, turn: &Turn, caller: &Caller, target: &EventId) -> ApiResult<()> {
    let event = turn.placed(target)?;
    if event.is_none() && (app.store.pdu(target)?.is_some() || is_alone(app, turn)) {
        return Err(ApiError::not_found("there is no such event in this room"));
    }
    let is_own = event.is_some_and(|event| event.pdu.sender() == caller.user_id);
    if is_own || turn.powers()?.can_redact(&caller.user_id) {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "redacting the events of others needs more power in this room",
    ))
}

/// Whether only this server has, or had, users in the room.
fn is_alone(app: &App, turn: &Turn) -> bool {
    let mut members = turn.head.state.of_kind("m.room.member");
    members.all(|(key, _)| UserId::parse(key).is_ok_and(|user_id| app.is_local(&user_id)))
}

/// A user annotates an event with the same key only once.
///
/// Spec: client-server API, "Annotations and reactions", "Avoiding duplicate annotations".
fn check_annotation(app: &App, turn: &Turn, pdu: &Pdu) -> ApiResult<()> {
    let Some(relation) = Relation::of(pdu).filter(|relation| relation.rel_type == "m.annotation")
    else {
        return Ok(());
    };
    let mut duplicate = false;
    super::relations::visit_relations(
        &app.store,
        turn.room,
        &relation.target,
        store::kv::Direction::Descending,
        |order, row| {
            let same = row.rel_type == relation.rel_type
                && row.key == relation.key
                && row.sender == pdu.sender()
                && row.kind == pdu.kind().to_string();
            let standing = same
                && app
                    .store
                    .event_at(turn.room, order)?
                    .is_some_and(|event| event.redacted_by.is_none());
            duplicate |= standing;
            Ok(!standing)
        },
    )?;
    if duplicate {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_DUPLICATE_ANNOTATION",
            "you have reacted with this already",
        ));
    }
    Ok(())
}
