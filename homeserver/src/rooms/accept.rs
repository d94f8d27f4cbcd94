//! An event of another server takes its place in a room: checks 4 to 7, with the room's turn.
//!
//! Nothing here asks the network. What is missing is named, to be fetched without the turn.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use federation::{
    event::Pdu,
    room::{
        StateMap,
        auth::{AuthRejection, Verdict, judge},
    },
};
use ruma::{EventId, OwnedEventId, events::TimelineEventType};
use store::{
    Commit,
    rooms::{GapRow, Standing, TxnRef},
};

use super::{
    policy::{self, Policy},
    steps::{Place, state_after},
    turn::Turn,
};
use crate::error::{ApiError, ApiResult};

/// How many `prev_events` a live event has at most. Spec: room version 1, "Event format".
const PREV_EVENTS_MAX: usize = 20;

/// How many `auth_events` a live event has at most. Spec: room version 1, "Event format".
const AUTH_EVENTS_MAX: usize = 10;

/// The states after events that have no place here, as another server tells them.
pub type StatesAfter = BTreeMap<OwnedEventId, StateMap>;

/// What became of an event.
#[derive(Debug)]
pub enum Outcome {
    /// It has its place now.
    Placed(Verdict),
    /// It had one before.
    Known,
    /// These must be known first: what it is built upon, or what allows it.
    Missing(Missing),
    /// The room's policy server has not signed it, and is to be asked.
    Unsigned(Policy),
}

/// What an event needs that is not known.
#[derive(Debug, Default)]
pub struct Missing {
    /// Of its `prev_events`: those without a known state after them.
    pub prev_events: BTreeSet<OwnedEventId>,
    /// Of its `auth_events`.
    pub auth_events: BTreeSet<OwnedEventId>,
}

impl Turn {
    /// Gives an event its place, with checks 1 to 3 behind it.
    ///
    /// The state before it follows from its `prev_events`; of those that have no place here, from `fetched`.
    /// `refused`: the room's policy server was asked, and did not sign.
    ///
    /// # Errors
    /// When the store cannot be read, or a state cannot be resolved.
    pub async fn accept(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        fetched: &StatesAfter,
        refused: bool,
    ) -> ApiResult<Outcome> {
        if pdu.prev_events().len() > PREV_EVENTS_MAX || pdu.auth_events().len() > AUTH_EVENTS_MAX {
            return Err(ApiError::invalid_param(
                "the event names more others than an event may",
            ));
        }
        // The event that made the room has no place in the timeline of who joined later, and needs none.
        let made_room = self.head.state.get("m.room.create", "");
        if made_room.is_some_and(|id| id == pdu.event_id()) {
            return Ok(Outcome::Known);
        }
        if let Some(known) = self.placed(pdu.event_id())?
            && known.standing != Some(Standing::Outlier)
        {
            return Ok(Outcome::Known);
        }
        let mut missing = Missing::default();
        for id in pdu.auth_events() {
            if self.pdu(id)?.is_none() {
                missing.auth_events.insert(id.clone());
            }
        }
        let before = self.state_before(pdu, fetched, &mut missing)?;
        let (Some(before), true) = (before, missing.auth_events.is_empty()) else {
            return Ok(Outcome::Missing(missing));
        };
        let mut verdict = self.judge(pdu, &before);
        if matches!(verdict, Verdict::Accepted)
            && let Some(policy) = self.policy_for(pdu)?
            && !policy::has_signed(&policy, pdu, self.rules)
        {
            if !refused {
                return Ok(Outcome::Unsigned(policy));
            }
            let rule = "the room's policy server has not signed it".to_owned();
            verdict = Verdict::SoftFailed(AuthRejection { rule });
        }
        match &verdict {
            Verdict::Accepted => {
                commit.delete_aside(pdu.event_id());
                let place = Place {
                    before,
                    alone: false,
                    gap: self.gap_before(pdu, fetched)?,
                };
                self.add(commit, pdu, None, Some(place)).await?;
            }
            Verdict::SoftFailed(reason) => {
                tracing::info!(event = %pdu.event_id(), %reason, "an event is soft-failed");
                self.put_aside(commit, pdu, Standing::SoftFailed, Some(before));
            }
            Verdict::Rejected(reason) => {
                tracing::info!(event = %pdu.event_id(), %reason, "an event is rejected");
                let pdu = Arc::new(pdu.as_rejected());
                self.put_aside(commit, &pdu, Standing::Rejected, Some(before));
            }
        }
        Ok(Outcome::Placed(verdict))
    }

    /// Adds an event of this server that was built some time ago: the room may have gone on since.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the room does not allow it, or no longer.
    pub async fn append_late(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        txn: Option<TxnRef>,
    ) -> ApiResult<()> {
        if self.head.extremities == pdu.prev_events() {
            self.check(pdu)?;
            return self.add(commit, pdu, txn, None).await;
        }
        let before = self.before(pdu)?;
        match self.judge(pdu, &before) {
            Verdict::Accepted => {
                let place = Place {
                    before,
                    alone: false,
                    gap: None,
                };
                self.add(commit, pdu, txn, Some(place)).await
            }
            Verdict::SoftFailed(reason) | Verdict::Rejected(reason) => {
                Err(ApiError::forbidden(reason.to_string()))
            }
        }
    }

    /// The state before an event whose `prev_events` are all known.
    ///
    /// # Errors
    /// When the store cannot be read, or one of them is not known.
    pub fn before(&self, pdu: &Pdu) -> ApiResult<StateMap> {
        let before = self.state_before(pdu, &StatesAfter::new(), &mut Missing::default())?;
        before.ok_or_else(|| ApiError::unknown("the event is built upon what is not known"))
    }

    /// The state before an event, from the states after its `prev_events`.
    ///
    /// # Errors
    /// When the store cannot be read, or a state cannot be resolved.
    pub(super) fn state_before(
        &self,
        pdu: &Pdu,
        fetched: &StatesAfter,
        missing: &mut Missing,
    ) -> ApiResult<Option<StateMap>> {
        let mut states = Vec::new();
        for id in pdu.prev_events() {
            let own = self.placed(id)?.and_then(|placed| placed.after);
            match own.or_else(|| fetched.get(id).cloned()) {
                Some(after) => states.push(after),
                None => {
                    missing.prev_events.insert(id.clone());
                }
            }
        }
        if missing.prev_events.is_empty() {
            self.resolve(&states, None).map(Some)
        } else {
            Ok(None)
        }
    }

    /// What an event is built upon that has no place and is not older than this server's time in the room.
    fn gap_before(&self, pdu: &Pdu, fetched: &StatesAfter) -> ApiResult<Option<GapRow>> {
        let mut wants = Vec::new();
        let floor = self.head.entered_depth;
        for id in pdu
            .prev_events()
            .iter()
            .filter(|id| fetched.contains_key(*id))
        {
            let unplaced = self.placed(id)?.is_none_or(|placed| placed.after.is_none());
            if unplaced && self.pdu(id)?.is_none_or(|pdu| pdu.depth() >= floor) {
                wants.push(id.clone());
            }
        }
        Ok((!wants.is_empty()).then(|| GapRow::new(wants, floor)))
    }

    /// The state after an event that gets no place, from that before it, which is also that after it where the event
    /// is not allowed.
    ///
    /// # Errors
    /// When the store cannot be read, or the event is not kept.
    pub fn after_unplaced(&self, id: &EventId, before: StateMap) -> ApiResult<StateMap> {
        let pdu = self.pdu(id)?;
        let pdu = pdu.ok_or_else(|| ApiError::unknown("what allows the event is not known"))?;
        match self.judge_upon(&pdu, &before, &before) {
            Verdict::Accepted if !pdu.is_rejected() => Ok(state_after(&before, &pdu)),
            _ => Ok(before),
        }
    }

    /// Checks 4 to 6.
    fn judge(&self, pdu: &Pdu, before: &StateMap) -> Verdict {
        if *pdu.kind() == TimelineEventType::RoomCreate || pdu.prev_events().is_empty() {
            let rule = "an event of a room that exists is built upon others".to_owned();
            return Verdict::Rejected(AuthRejection { rule });
        }
        self.judge_upon(pdu, before, &self.head.state)
    }

    /// Whether the rules allow an event upon its auth events, upon the state before it, and upon another: the
    /// current one, or once more that before it for what is history.
    pub(super) fn judge_upon(&self, pdu: &Pdu, before: &StateMap, current: &StateMap) -> Verdict {
        judge(pdu, &self.rules.authorization, before, current, |id| {
            // An event that cannot be read does not allow.
            self.pdu(id).ok().flatten()
        })
    }
}
