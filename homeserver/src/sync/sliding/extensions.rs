//! What sliding sync tells besides rooms: account data, receipts, who types, thread subscriptions.
//!
//! An extension tells of a room in full when it first has to do with it, and of changes afterwards.
//! Spec: MSC4186, "Extensions"; MSC3959, MSC3960, MSC3961, MSC4308.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{DeviceId, OwnedRoomId, UserId};
use serde::Serialize;
use serde_json::{json, value::RawValue};
use store::{
    keys::{RoomNum, UserNum},
    rooms::Membership,
};

use super::{
    connection::{Heard, Told},
    encryption::{self, Encryption},
    request::{self, Extension},
    room::{Look, Room},
    rules::{Matched, Windows},
};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    push::rules::{self, PUSH_RULES},
    receipts,
    sync::{Token, touched::Touched, v3::receipts_event},
    threads::{self, Page},
};

/// How many receipts of a room are looked at when the room is new to the client.
const RECEIPTS_MAX: usize = 500;

/// The extensions of an answer.
#[derive(Debug, Default, Serialize)]
pub(super) struct Extensions {
    #[serde(skip_serializing_if = "Option::is_none")]
    account_data: Option<AccountData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<Rooms<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typing: Option<Rooms<Box<RawValue>>>,
    #[serde(
        rename = "io.element.msc4308.thread_subscriptions",
        skip_serializing_if = "Option::is_none"
    )]
    threads: Option<Threads>,
    #[serde(flatten)]
    encryption: Encryption,
}

#[derive(Debug, Default, Serialize)]
struct AccountData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    global: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}

#[derive(Debug, Serialize)]
struct Threads {
    #[serde(flatten)]
    page: Page,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
}

#[derive(Debug, Serialize)]
struct Rooms<T> {
    rooms: BTreeMap<OwnedRoomId, T>,
}

impl Extensions {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.account_data.is_none()
            && self.receipts.is_none()
            && self.typing.is_none()
            && self.threads.is_none()
            && self.encryption.is_empty()
    }
}

/// What the extensions look at.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) look: &'a Look<'a>,
    pub(super) user: UserNum,
    pub(super) user_id: &'a UserId,
    pub(super) device: Option<&'a DeviceId>,
    /// Where the connection was; nowhere in its first answer.
    pub(super) since: Option<Token>,
    pub(super) windows: &'a Windows,
    pub(super) touched: &'a Touched,
    /// The rooms of the answer.
    pub(super) rooms: &'a BTreeMap<OwnedRoomId, Room>,
}

impl Asked<'_> {
    /// All that is wanted; `told` becomes what the client has been told then.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn answer(
        &self,
        wanted: &request::Extensions,
        told: &mut Told,
    ) -> ApiResult<Extensions> {
        let mut extensions = Extensions::default();
        if wanted.account_data.is_on() {
            extensions.account_data = self.account_data(&wanted.account_data, told)?;
        } else {
            told.account_data
                .miss(self.touched.rooms.as_ref(), |_| false);
        }
        if wanted.receipts.is_on() {
            let rooms = self.rooms_of(
                &wanted.receipts,
                &mut told.receipts,
                |room, matched, since| self.receipts(room, matched, since),
            )?;
            extensions.receipts = (!rooms.is_empty()).then_some(Rooms { rooms });
        } else {
            told.receipts.miss(self.touched.rooms.as_ref(), |_| false);
        }
        if wanted.typing.is_on() {
            let rooms = self.rooms_of(&wanted.typing, &mut told.typing, |room, _, since| {
                self.typing(room, since)
            })?;
            extensions.typing = (!rooms.is_empty()).then_some(Rooms { rooms });
        } else {
            told.typing.miss(self.touched.rooms.as_ref(), |_| false);
        }
        if wanted.threads.enabled == Some(true) {
            extensions.threads = self.threads(&wanted.threads, told)?;
        }
        extensions.encryption = encryption::answer(self, wanted, told)?;
        Ok(extensions)
    }

    /// What an extension tells of each room that it is wanted for.
    fn rooms_of<T>(
        &self,
        wanted: &Extension,
        heard: &mut Heard<()>,
        mut tell: impl FnMut(RoomNum, &Matched, Option<Token>) -> ApiResult<Option<T>>,
    ) -> ApiResult<BTreeMap<OwnedRoomId, T>> {
        let mut rooms = BTreeMap::new();
        let is_wanted =
            |matched: &Matched| wanted.wants(&matched.room_id, &matched.lists, matched.subscribed);
        let touched = self.touched.rooms.as_ref();
        heard.miss(touched, |room| {
            self.windows.rooms.get(&room).is_some_and(is_wanted)
        });
        for (room, matched) in &self.windows.rooms {
            let is_touched = touched.is_none_or(|touched| touched.contains(room));
            if !is_wanted(matched) || !heard.is_due(*room, is_touched) {
                continue;
            }
            let since = heard.of(*room).map(|(upto, ())| *upto);
            if let Some(told) = tell(*room, matched, since)? {
                rooms.insert(matched.room_id.clone(), told);
            }
            heard.tell(*room, self.look.until, ());
        }
        Ok(rooms)
    }

    fn account_data(&self, wanted: &Extension, told: &mut Told) -> ApiResult<Option<AccountData>> {
        let store = &self.look.app.store;
        let until = self.look.until.position();
        let mut changed = match told.global {
            Some(since) => account_data::changed(store, self.user, since, until)?,
            None => account_data::all(store, self.user)?,
        };
        changed.retain(|data| data.room.is_none());
        let mut global = Vec::new();
        // Who never changed a push rule has none stored, but has the server's.
        if told.global.is_none() && !changed.iter().any(|data| data.kind == PUSH_RULES) {
            let rules = rules::content(store, self.user, self.user_id)?;
            global.push(raw(&json!({ "type": PUSH_RULES, "content": rules }))?);
        }
        told.global = Some(until);
        for mut data in changed {
            if data.kind == PUSH_RULES {
                data.content = rules::content(store, self.user, self.user_id)?;
            }
            global.push(raw(&json!({ "type": data.kind, "content": data.content }))?);
        }
        let rooms = self.rooms_of(wanted, &mut told.account_data, |room, _, since| {
            let data = match since {
                Some(since) => {
                    let mut changed =
                        account_data::changed(store, self.user, since.position(), until)?;
                    changed.retain(|data| data.room == Some(room));
                    changed
                }
                None => account_data::of_room(store, self.user, room)?,
            };
            let events: ApiResult<Vec<_>> = data
                .into_iter()
                .map(|data| raw(&json!({ "type": data.kind, "content": data.content })))
                .collect();
            Ok(Some(events?).filter(|events| !events.is_empty()))
        })?;
        let nothing = global.is_empty() && rooms.is_empty();
        Ok((!nothing).then_some(AccountData { global, rooms }))
    }

    fn receipts(
        &self,
        room: RoomNum,
        matched: &Matched,
        since: Option<Token>,
    ) -> ApiResult<Option<Box<RawValue>>> {
        if !self.is_joined(room)? {
            return Ok(None);
        }
        let (app, until) = (self.look.app, self.look.until.position());
        let receipts = match since {
            Some(since) => receipts::changed(&app.store, room, self.user, since.position(), until)?,
            None => {
                // The user's own, and those on the events that are told.
                let told = self.rooms.get(&matched.room_id);
                let told: BTreeSet<_> = told.into_iter().flat_map(|room| &room.event_ids).collect();
                let mut all = receipts::all(&app.store, room, self.user, RECEIPTS_MAX)?;
                all.retain(|receipt| {
                    receipt.user != self.user && told.contains(&receipt.row.event_id)
                });
                all.extend(receipts::of_user(&app.store, room, self.user)?);
                all
            }
        };
        if receipts.is_empty() {
            return Ok(None);
        }
        receipts_event(app, &receipts).map(Some)
    }

    fn typing(&self, room: RoomNum, since: Option<Token>) -> ApiResult<Option<Box<RawValue>>> {
        if !self.is_joined(room)? {
            return Ok(None);
        }
        let app = self.look.app;
        let moment = since.map_or(0, |since| since.moment);
        let typing = app.typing.changed_since(room, moment);
        // To whom the room is new, nobody typing is no news.
        let Some(users) = typing.filter(|users| since.is_some() || !users.is_empty()) else {
            return Ok(None);
        };
        let users: Result<Vec<_>, _> = users
            .into_iter()
            .map(|user| app.store.user_id(user))
            .collect();
        raw(&json!({ "type": "m.typing", "content": { "user_ids": users? } })).map(Some)
    }

    fn threads(
        &self,
        wanted: &request::ThreadSubscriptions,
        told: &mut Told,
    ) -> ApiResult<Option<Threads>> {
        let (app, until) = (self.look.app, self.look.until.position());
        let limit = wanted.limit.unwrap_or(threads::PAGE_DEFAULT);
        let limit = usize::try_from(limit.min(threads::PAGE_MAX)).unwrap_or(1);
        let since = told.threads.replace(until).unwrap_or(0);
        let page = Page::read(app, self.user, since, until, limit)?;
        let prev_batch = page.more.map(|more| more.to_string());
        Ok((!page.is_empty()).then_some(Threads { page, prev_batch }))
    }

    fn is_joined(&self, room: RoomNum) -> ApiResult<bool> {
        let row = self.look.app.store.user_room(self.user, room)?;
        Ok(row.is_some_and(|row| row.membership == Membership::Join))
    }
}

fn raw(value: &impl Serialize) -> ApiResult<Box<RawValue>> {
    serde_json::value::to_raw_value(value).map_err(|error| ApiError::internal(&error))
}
