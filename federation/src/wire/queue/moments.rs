//! What is true only for a while: the latest of each, until it is sent or lost.

use std::collections::{BTreeMap, btree_map::Entry};

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::federation::transactions::edu::{
        PresenceContent, PresenceUpdate, ReceiptContent, ReceiptData, ReceiptMap, TypingContent,
    },
};
use serde_json::value::RawValue;

use crate::wire::edu::{PRESENCE_USERS_MAX, write};

/// How many of them wait for one destination; more are lost.
pub const MOMENTS_MAX: usize = 1_000;

/// How many EDUs of them go into one transaction: half the place, the other half is for what is kept.
pub const EDUS_OF_MOMENTS_MAX: usize = 50;

/// Something that is true for a while. A later one takes the place of an earlier one of the same user.
#[derive(Clone, Debug)]
pub enum Moment {
    /// Somebody types, or stopped.
    Typing {
        /// Where.
        room: OwnedRoomId,
        /// Who.
        user: OwnedUserId,
        /// Whether they type.
        typing: bool,
    },
    /// Somebody has read up to an event.
    Receipt {
        /// Where.
        room: OwnedRoomId,
        /// Who.
        user: OwnedUserId,
        /// How far; its thread is part of it.
        data: ReceiptData,
    },
    /// Somebody is there, or is not.
    Presence(PresenceUpdate),
}

/// The latest of each.
#[derive(Debug, Default)]
pub(super) struct Moments {
    typing: BTreeMap<(OwnedRoomId, OwnedUserId), bool>,
    /// By room, user and thread.
    receipts: BTreeMap<(OwnedRoomId, OwnedUserId, Option<String>), ReceiptData>,
    presence: BTreeMap<OwnedUserId, PresenceUpdate>,
}

impl Moments {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.typing.len() + self.receipts.len() + self.presence.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn add(&mut self, moment: Moment) {
        let full = self.len() >= MOMENTS_MAX;
        match moment {
            Moment::Typing { room, user, typing } => {
                let key = (room, user);
                if !full || self.typing.contains_key(&key) {
                    self.typing.insert(key, typing);
                }
            }
            Moment::Receipt { room, user, data } => {
                let thread = data.data.thread.as_str().map(ToOwned::to_owned);
                let key = (room, user, thread);
                if !full || self.receipts.contains_key(&key) {
                    self.receipts.insert(key, data);
                }
            }
            Moment::Presence(update) => {
                if !full || self.presence.contains_key(&update.user_id) {
                    self.presence.insert(update.user_id.clone(), update);
                }
            }
        }
    }

    /// Takes what fits into one transaction, as EDUs.
    pub(super) fn take(&mut self) -> Vec<Box<RawValue>> {
        let mut edus = Vec::new();
        while edus.len() < EDUS_OF_MOMENTS_MAX
            && let Some(((room, user), typing)) = self.typing.pop_first()
        {
            edus.push(write("m.typing", &TypingContent::new(room, user, typing)));
        }
        while edus.len() < EDUS_OF_MOMENTS_MAX && !self.receipts.is_empty() {
            edus.push(write("m.receipt", &self.take_receipts()));
        }
        while edus.len() < EDUS_OF_MOMENTS_MAX && !self.presence.is_empty() {
            let mut push = Vec::new();
            while push.len() < PRESENCE_USERS_MAX
                && let Some((_, update)) = self.presence.pop_first()
            {
                push.push(update);
            }
            edus.push(write("m.presence", &PresenceContent::new(push)));
        }
        edus
    }

    /// One EDU of receipts: it has place for one of each user in each room, so those of further threads stay.
    fn take_receipts(&mut self) -> ReceiptContent {
        let mut content = ReceiptContent::new(BTreeMap::new());
        let mut left = BTreeMap::new();
        for ((room, user, thread), data) in std::mem::take(&mut self.receipts) {
            let in_room = content.receipts.entry(room.clone());
            let in_room = in_room.or_insert_with(|| ReceiptMap::new(BTreeMap::new()));
            match in_room.read.entry(user) {
                Entry::Vacant(place) => {
                    place.insert(data);
                }
                Entry::Occupied(place) => {
                    left.insert((room, place.key().clone(), thread), data);
                }
            }
        }
        self.receipts = left;
        content
    }
}
