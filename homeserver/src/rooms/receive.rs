//! Events arrive from another server.
//!
//! What is checked, in order (server-server API, "Checks performed on receipt of a PDU"): format, signatures
//! and content hash in [`foreign`], without the room's turn; then [`Turn::accept`](super::Turn::accept) with it. What an event
//! needs and is not known is fetched in [`gap`], without the turn again.

use std::{collections::BTreeMap, sync::Arc};

use federation::event::Pdu;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName,
    events::room::member::MembershipState, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{
    Commit, Pending,
    keys::RoomNum,
    rooms::{Membership, RoomView},
};

use super::{
    accept::{Missing, Outcome, StatesAfter},
    acl, foreign, gap,
    later::Tries,
    members::MemberContent,
    outside, policy,
    turn::rules_of,
};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// In how many rooms events of one transaction are received at once.
const ROOMS_AT_ONCE: usize = 8;

#[derive(Deserialize)]
struct OfRoom {
    room_id: OwnedRoomId,
}

/// What became of each event of a transaction: an error is told, a rejection is not one.
pub type Results = BTreeMap<OwnedEventId, Result<(), String>>;

/// Receives the events of a transaction, those of a room in order.
///
/// An event of a room that this server is not in is passed over.
pub async fn receive(app: &App, origin: &ServerName, raw: Vec<Box<RawValue>>) -> Results {
    let mut by_room: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
    for raw in raw {
        match serde_json::from_str::<OfRoom>(raw.get()) {
            Ok(OfRoom { room_id }) => by_room.entry(room_id).or_default().push(raw),
            Err(error) => tracing::info!(%origin, %error, "an event is dropped: it names no room"),
        }
    }
    let rooms = by_room.into_iter().map(|(room_id, raw)| async move {
        in_room(app, origin, &room_id, &raw, Tries::default()).await
    });
    let results = stream::iter(rooms).buffer_unordered(ROOMS_AT_ONCE);
    results
        .fold(Results::new(), async |mut all, results| {
            all.extend(results);
            all
        })
        .await
}

/// Receives an event once more that could not be placed before.
pub async fn again(
    app: &App,
    origin: &ServerName,
    room_id: &RoomId,
    raw: Box<RawValue>,
    tries: Tries,
) {
    in_room(app, origin, room_id, &[raw], tries).await;
}

/// Whether a user of this server is joined.
///
/// # Errors
/// When the store cannot be read.
pub fn is_resident(app: &App, view: &RoomView) -> ApiResult<bool> {
    let residents = &app.rooms.residents;
    let known = residents.get(&view.room);
    if known.is_some_and(|user| view.head.membership(user) == Membership::Join) {
        return Ok(true);
    }
    for (user, membership) in &view.head.members {
        if *membership == Membership::Join && app.is_local(&app.store.user_id(*user)?) {
            residents.insert(view.room, *user);
            return Ok(true);
        }
    }
    Ok(false)
}

async fn in_room(
    app: &App,
    origin: &ServerName,
    room_id: &RoomId,
    raw: &[Box<RawValue>],
    tries: Tries,
) -> Results {
    match received(app, origin, room_id, raw, tries).await {
        Ok(results) => results,
        Err(error) => {
            tracing::warn!(%origin, %room_id, reason = %error.message, "events were not received");
            Results::new()
        }
    }
}

async fn received(
    app: &App,
    origin: &ServerName,
    room_id: &RoomId,
    raw: &[Box<RawValue>],
    tries: Tries,
) -> ApiResult<Results> {
    let mut results = Results::new();
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(results);
    };
    // One after the other: two that fill the same gap would fetch everything twice. And who is being let in
    // right now waits for that.
    let _receiving = app.rooms.receiving(room).await;
    let view = app.store.room(room)?;
    let resident = view.as_ref().map(|view| is_resident(app, view));
    let Some(view) = view.filter(|_| matches!(resident, Some(Ok(true)))) else {
        take_back(app, room, room_id, raw).await?;
        return Ok(results);
    };
    let checked = foreign::each_checked(app, room_id, view.rules, raw).await;
    let mut receiving = Receiving::new(app, origin, room, room_id, view.rules);
    receiving.tries = tries;
    for (raw, checked) in raw.iter().zip(checked) {
        let id = checked.as_ref().ok().map(|pdu| pdu.event_id().to_owned());
        let taken = match checked {
            Ok(_) if !acl::allows(app, room, origin)? => Err(ApiError::forbidden(
                "the room's server ACL shuts this server out",
            )),
            Ok(pdu) => receiving.take(&pdu).await,
            Err(error) => Err(error),
        };
        let result = taken.map_err(|error| {
            if error.status == StatusCode::BAD_GATEWAY {
                app.rooms.later.wait(app, room_id, origin, raw, tries);
            }
            error.message.into_owned()
        });
        if let (Some(id), Err(reason)) = (&id, &result) {
            tracing::info!(%origin, event = %id, reason, "an event is dropped");
        }
        results.extend(id.map(|id| (id, result)));
    }
    receiving.flushed().await?;
    app.rooms.later.look();
    Ok(results)
}

/// Events of a room that this server is not in: all that they can do is to take back an invite. Whoever sent it
/// may; who else has the power is not known here.
async fn take_back(
    app: &App,
    room: RoomNum,
    room_id: &RoomId,
    raw: &[Box<RawValue>],
) -> ApiResult<()> {
    #[derive(Deserialize)]
    struct ToUser {
        state_key: Option<OwnedUserId>,
    }
    for raw in raw {
        let to = serde_json::from_str::<ToUser>(raw.get()).ok();
        let target = to.and_then(|to| to.state_key).filter(|id| app.is_local(id));
        let user = target.as_ref().map(|id| app.store.find_user(id));
        let Some(user) = user.transpose()?.flatten() else {
            continue;
        };
        let Some(told) = outside::of(&app.store, user, room)? else {
            continue;
        };
        let rules = rules_of(&told.version)?;
        let row = app.store.user_room(user, room)?;
        let row = row.filter(|row| row.membership == Membership::Invite);
        let invite = row.map(|row| app.store.pdu(&row.event_id)).transpose()?;
        let pdu = foreign::checked(app, room_id, rules, std::slice::from_ref(raw)).await;
        let (Some(Some(invite)), Some(pdu)) = (invite, pdu.first()) else {
            continue;
        };
        let content: Option<MemberContent> = pdu.content_as();
        let leaves = content.is_some_and(|content| content.membership == MembershipState::Leave);
        let of_invite = pdu.auth_events().iter().any(|id| id == invite.event_id());
        if leaves && of_invite && pdu.sender() == invite.sender() {
            let mut commit = Commit::new();
            outside::leave(&app.store, &mut commit, (user, room), pdu, &told.version)?;
            app.store.commit(commit).await?;
        }
    }
    Ok(())
}

/// Events of one room, coming from one server.
pub struct Receiving<'a> {
    pub(super) app: &'a App,
    /// Who is asked for what is missing.
    pub(super) origin: OwnedServerName,
    pub(super) room: RoomNum,
    pub(super) room_id: &'a RoomId,
    pub(super) rules: &'static RoomVersionRules,
    /// How often they were tried before.
    pub(super) tries: Tries,
    /// Whether others than the origin were asked for what is missing.
    pub(super) asked_others: bool,
    pending: Vec<Pending>,
}

impl<'a> Receiving<'a> {
    /// Nothing received yet.
    pub fn new(
        app: &'a App,
        origin: &ServerName,
        room: RoomNum,
        room_id: &'a RoomId,
        rules: &'static RoomVersionRules,
    ) -> Self {
        Self {
            app,
            origin: origin.to_owned(),
            room,
            room_id,
            rules,
            tries: Tries::default(),
            asked_others: false,
            pending: Vec::new(),
        }
    }

    /// Receives an event that passed checks 1 to 3, and what it needs.
    ///
    /// # Errors
    /// 502 when what it needs cannot be had: it is dropped then.
    pub async fn take(&mut self, pdu: &Arc<Pdu>) -> ApiResult<()> {
        match self.place(pdu, &StatesAfter::new()).await? {
            None => Ok(()),
            Some(missing) => gap::fill(self, pdu, missing).await,
        }
    }

    /// Gives an event its place; what it needs first, if it cannot have one yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn place(
        &mut self,
        pdu: &Arc<Pdu>,
        fetched: &StatesAfter,
    ) -> ApiResult<Option<Missing>> {
        let mut pdu = pdu.clone();
        let (mut asked, mut refused) = (false, false);
        loop {
            let mut turn = self.app.rooms.turn(self.app, self.room_id).await?;
            let mut commit = Commit::new();
            match turn.accept(&mut commit, &pdu, fetched, refused).await? {
                Outcome::Known => return Ok(None),
                Outcome::Missing(missing) => return Ok(Some(missing)),
                Outcome::Placed(_) => {
                    self.pending.push(turn.finish(commit).await?);
                    return Ok(None);
                }
                // The room has another policy server than a moment ago.
                Outcome::Unsigned(_) if asked => refused = true,
                Outcome::Unsigned(policy) => {
                    drop(turn);
                    asked = true;
                    match policy::ask(self.app, &policy, &pdu, self.rules).await {
                        Ok(signed) => pdu = Arc::new(signed),
                        Err(error) => {
                            tracing::info!(event = %pdu.event_id(), reason = %error.message, "not signed");
                            refused = true;
                        }
                    }
                }
            }
        }
    }

    /// Keeps events whose place is not known.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn keep(&mut self, events: Vec<Arc<Pdu>>) -> ApiResult<()> {
        let mut turn = self.app.rooms.turn(self.app, self.room_id).await?;
        let mut commit = Commit::new();
        turn.keep_outliers(&mut commit, events)?;
        self.pending.push(turn.finish(commit).await?);
        Ok(())
    }

    /// Waits until everything that was received survives kill -9.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn flushed(&mut self) -> ApiResult<()> {
        for pending in self.pending.drain(..) {
            pending.flushed().await?;
        }
        Ok(())
    }
}
