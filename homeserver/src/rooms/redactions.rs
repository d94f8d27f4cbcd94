//! Redactions: what they empty, also where they come before what they are about.
//!
//! Spec: room versions 3 and later, "Handling redactions".

use std::sync::Arc;

use federation::event::Pdu;
use ruma::{EventId, OwnedEventId};
use store::{
    Commit,
    keys::{Keyspace, Packed, RoomNum},
    kv::Direction,
    rooms::{AsideEvent, Rewrite, Standing},
};

use super::Turn;
use crate::error::{ApiError, ApiResult};

/// Where it is noted which redactions came before their target.
fn waiting(room: RoomNum, target: &EventId) -> Packed {
    Packed::key(Keyspace::REDACTED).room(room).event(target)
}

impl Turn {
    /// What an event empties, if it is a redaction: an event of this room whose sender, or someone with the
    /// power to redact, asked for it. Where that has no place in the timeline, it is noted for when it gets one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn empty(
        &self,
        commit: &mut Commit,
        redaction: &Pdu,
    ) -> ApiResult<Option<Rewrite>> {
        let Some(id) = redaction.redacts() else {
            return Ok(None);
        };
        // Another server sends an event and its redaction in one breath.
        self.settled(id).await;
        let Some(target) = self.app.store.event(id)? else {
            self.empty_elsewhere(commit, redaction, id)?;
            return Ok(None);
        };
        if target.room != self.room
            || target.redacted_by.is_some()
            || !self.may_redact(redaction, &target.pdu)?
        {
            return Ok(None);
        }
        Ok(Some(Rewrite {
            pdu: self.left_of(&target.pdu)?,
            because: redaction.event_id().to_owned(),
            target,
        }))
    }

    /// Empties what is kept outside the timeline, or is not known yet.
    fn empty_elsewhere(
        &self,
        commit: &mut Commit,
        redaction: &Pdu,
        target: &EventId,
    ) -> ApiResult<()> {
        let key = waiting(self.room, target).event(redaction.event_id());
        commit.put_raw(key, Packed::new().raw(redaction.event_id().as_bytes()));
        let Some(target) = self.app.store.aside(target)? else {
            return Ok(());
        };
        let is_state = target.room == self.room && target.standing == Standing::Outlier;
        if is_state && self.may_redact(redaction, &target.pdu)? {
            let event = AsideEvent {
                room: target.room,
                pdu: self.left_of(&target.pdu)?,
                standing: target.standing,
                state_before: target.state_before,
                state_after: target.state_after,
            };
            commit.put_aside(event, &self.head.version);
        }
        Ok(())
    }

    /// An event as it is to be written, and the redaction that came before it, if one did.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn emptied_before(
        &self,
        pdu: &Arc<Pdu>,
    ) -> ApiResult<(Option<OwnedEventId>, Arc<Pdu>)> {
        let mut ids = Vec::new();
        let prefix = waiting(self.room, pdu.event_id());
        let store = &self.app.store;
        store.visit(&prefix, Direction::Ascending, |_, id| {
            let id = std::str::from_utf8(id).ok();
            ids.extend(id.and_then(|id| OwnedEventId::try_from(id).ok()));
            Ok(true)
        })?;
        for id in ids {
            let redaction = self.pdu(&id)?.filter(|redaction| !redaction.is_rejected());
            if let Some(redaction) = redaction
                && self.may_redact(&redaction, pdu)?
            {
                return Ok((Some(id), self.left_of(pdu)?));
            }
        }
        Ok((None, pdu.clone()))
    }

    /// What is left of an event that is placed in the same turn as its redaction; `None` if that may not empty it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn emptied_by(&self, redaction: &Pdu, target: &Pdu) -> ApiResult<Option<Arc<Pdu>>> {
        let may = self.may_redact(redaction, target)?;
        may.then(|| self.left_of(target)).transpose()
    }

    fn may_redact(&self, redaction: &Pdu, target: &Pdu) -> ApiResult<bool> {
        let same_server = target.sender().server_name() == redaction.sender().server_name();
        Ok(same_server || self.powers()?.can_redact(redaction.sender()))
    }

    fn left_of(&self, pdu: &Pdu) -> ApiResult<Arc<Pdu>> {
        let left = pdu.redacted(self.rules);
        left.map(Arc::new)
            .map_err(|error| ApiError::internal(&error))
    }
}
