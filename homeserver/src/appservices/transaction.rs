//! What one transaction holds, and how it is written for an application service.
//!
//! Spec: application service API, "Pushing events"; MSC4203, MSC3202.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedDeviceId, OwnedUserId};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};
use store::keys::{Position, RoomNum, UserNum};

use super::Registration;
use crate::{
    error::{ApiError, ApiResult},
    keys, receipts,
    server::App,
    sync::v3::receipts_event,
};

/// How many events, and how many messages to devices, one transaction holds.
const EVENTS_MAX: usize = 100;

/// How many receipts, and how many typing rooms and presences, one transaction holds.
pub(super) const EPHEMERAL_MAX: usize = 500;

/// How many bytes of events and messages fill a transaction; the one that reaches this still goes along.
const FULL_BYTES: usize = 2 << 20;

/// What a service is told together.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) events: Vec<Box<RawValue>>,
    /// Of events and messages, about.
    pub(super) bytes: usize,
    pub(super) receipts: BTreeMap<RoomNum, Vec<receipts::Receipt>>,
    pub(super) receipts_count: usize,
    pub(super) to_device: Vec<Map<String, Value>>,
    pub(super) delivered: Vec<(UserNum, OwnedDeviceId, Position)>,
    pub(super) key_counts: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, keys::Counts>>,
    pub(super) changed: BTreeSet<OwnedUserId>,
    pub(super) left: BTreeSet<OwnedUserId>,
    /// Typing and presence.
    pub(super) ephemeral: Vec<Value>,
}

impl Transaction {
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= EVENTS_MAX
            || self.to_device.len() >= EVENTS_MAX
            || self.receipts_count >= EPHEMERAL_MAX
            || self.bytes >= FULL_BYTES
    }

    /// Whether it holds more than what is true for a moment.
    pub(super) fn lasts(&self) -> bool {
        !(self.events.is_empty()
            && self.receipts.is_empty()
            && self.to_device.is_empty()
            && self.key_counts.is_empty()
            && self.changed.is_empty()
            && self.left.is_empty())
    }

    /// The body, with the names that bridges read: those of proposals where these were never renamed.
    pub(super) fn body(&mut self, app: &App, service: &Registration) -> ApiResult<Box<RawValue>> {
        let mut body = Map::new();
        let mut ephemeral = std::mem::take(&mut self.ephemeral);
        for (room, receipts) in std::mem::take(&mut self.receipts) {
            let Some(room_id) = app.store.room_id(room)? else {
                continue;
            };
            let event = receipts_event(app, &receipts)?;
            let mut event: Map<String, Value> =
                serde_json::from_str(event.get()).unwrap_or_default();
            event.insert("room_id".to_owned(), room_id.as_str().into());
            ephemeral.push(event.into());
        }
        if !ephemeral.is_empty() {
            if service.push_ephemeral {
                body.insert("de.sorunome.msc2409.ephemeral".to_owned(), json!(ephemeral));
            }
            if service.receive_ephemeral {
                body.insert("ephemeral".to_owned(), ephemeral.into());
            }
        }
        if !self.to_device.is_empty() {
            let messages = json!(self.to_device);
            body.insert("de.sorunome.msc2409.to_device".to_owned(), messages);
        }
        if !self.key_counts.is_empty() {
            let told = |what: fn(&keys::Counts) -> Value| -> Value {
                let users = self.key_counts.iter().map(|(user_id, devices)| {
                    let devices: Map<String, Value> = devices
                        .iter()
                        .map(|(device, counts)| (device.to_string(), what(counts)))
                        .collect();
                    (user_id.to_string(), devices.into())
                });
                users.collect::<Map<String, Value>>().into()
            };
            let one_time = told(|counts| json!(counts.one_time));
            let fallback = told(|counts| json!(counts.unused_fallback));
            for (key, value) in [
                // The first name is that of an early draft, which some still read.
                (
                    "org.matrix.msc3202.device_one_time_key_counts",
                    one_time.clone(),
                ),
                ("org.matrix.msc3202.device_one_time_keys_count", one_time),
                (
                    "org.matrix.msc3202.device_unused_fallback_key_types",
                    fallback,
                ),
            ] {
                body.insert(key.to_owned(), value);
            }
        }
        if !(self.changed.is_empty() && self.left.is_empty()) {
            let lists = json!({ "changed": self.changed, "left": self.left });
            body.insert("org.matrix.msc3202.device_lists".to_owned(), lists);
        }
        let body = Body {
            events: &self.events,
            rest: body,
        };
        serde_json::value::to_raw_value(&body).map_err(|error| ApiError::internal(&error))
    }
}

/// A body as it is written.
#[derive(Serialize)]
struct Body<'a> {
    events: &'a [Box<RawValue>],
    #[serde(flatten)]
    rest: Map<String, Value>,
}
