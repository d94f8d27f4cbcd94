//! Which events relate to which: the index behind threads, reactions and edits.
//!
//! Spec: client-server API, "Forming relationships between events".

use std::sync::{Arc, LazyLock};

use federation::event::Pdu;
use memchr::memmem::Finder;
use ruma::{EventId, OwnedEventId, OwnedUserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{
    Commit, EntryIndex, Store, StoreError,
    keys::{Keyspace, Packed, RoomNum, Table, Unpack, event_hash},
    kv::Direction,
    rooms::TimelineEvent,
};

use super::read::{Format, Seen, Sight, client_event, client_event_alone};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    server::App,
};

const RELATIONS: Table<RelationRow> = Table::new(Keyspace::RELATION);

/// What an event says it relates to.
#[derive(Clone, Debug)]
pub struct Relation {
    /// The event related to.
    pub target: OwnedEventId,
    /// How.
    pub rel_type: String,
    /// For annotations: with what.
    pub key: Option<String>,
}

/// An event that relates to another, in the index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelationRow {
    /// The relating event.
    pub event_id: OwnedEventId,
    /// How it relates.
    pub rel_type: String,
    /// Its type.
    pub kind: String,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// For annotations: with what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "m.relates_to")]
    relates_to: RelatesTo,
}

#[derive(Deserialize)]
struct RelatesTo {
    rel_type: String,
    event_id: OwnedEventId,
    key: Option<String>,
}

/// Finds what has no relation without parsing it.
static RELATES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("m.relates_to"));

impl Relation {
    /// The relation of an event, if it has one with a `rel_type`.
    pub fn of(pdu: &Pdu) -> Option<Self> {
        Self::in_content(pdu.content())
    }

    /// The relation that the content of an event names.
    pub fn in_content(content: &RawValue) -> Option<Self> {
        RELATES.find(content.get().as_bytes())?;
        let Content { relates_to } = serde_json::from_str(content.get()).ok()?;
        Some(Self {
            target: relates_to.event_id,
            rel_type: relates_to.rel_type,
            key: relates_to.key,
        })
    }

    pub(super) fn put(self, commit: &mut Commit, entry: EntryIndex, room: RoomNum, pdu: &Pdu) {
        let row = RelationRow {
            event_id: pdu.event_id().to_owned(),
            rel_type: self.rel_type,
            kind: pdu.kind().to_string(),
            sender: pdu.sender().to_owned(),
            key: self.key,
        };
        let key = RELATIONS
            .key()
            .room(room)
            .raw(&event_hash(&self.target))
            .position();
        if row.rel_type == "m.thread" {
            let key = Packed::key(Keyspace::THREAD).room(room).position();
            commit.put_raw_at(entry, key, Packed::new().raw(self.target.as_bytes()));
        }
        commit.put_at(RELATIONS, entry, key, &row);
    }
}

/// Visits the replies in threads of a room up to `until`, newest first: their order, their thread's
/// root.
///
/// # Errors
/// When the store cannot be read.
pub fn visit_threads(
    store: &Store,
    room: RoomNum,
    until: i64,
    mut visit: impl FnMut(i64, OwnedEventId) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let prefix = Packed::key(Keyspace::THREAD).room(room);
    let (from, to) = (
        prefix.clone().into_bytes(),
        prefix.i64(until.saturating_add(1)).into_bytes(),
    );
    store.visit_range(&from, &to, Direction::Descending, |key, value| {
        let mut parts = Unpack::key(key);
        let order = parts.room().and_then(|_| parts.i64());
        let root = std::str::from_utf8(value)
            .ok()
            .and_then(|root| OwnedEventId::try_from(root).ok());
        match order.zip(root) {
            Some((order, root)) => visit(order, root),
            None => Ok(true),
        }
    })
}

/// Visits the events that relate to `target`, by their order, until `visit` returns `false`.
///
/// # Errors
/// When the store cannot be read.
pub fn visit_relations(
    store: &Store,
    room: RoomNum,
    target: &EventId,
    direction: Direction,
    mut visit: impl FnMut(i64, RelationRow) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let prefix = Packed::key(Keyspace::RELATION).room(room).event(target);
    store.visit(&prefix, direction, |key, value| {
        let mut parts = Unpack::key(key);
        let order = parts
            .room()
            .and_then(|_| parts.hash())
            .and_then(|_| parts.i64());
        match order.zip(serde_json::from_slice(value).ok()) {
            Some((order, row)) => visit(order, row),
            None => Ok(true),
        }
    })
}

/// Whether anything is bundled with an event, as far as memory tells.
///
/// The ID of an event is a hash: what names an event of this server's is newer than it.
fn may_be_related_to(app: &App, sight: &Sight, event: &TimelineEvent) -> bool {
    if event.redacted_by.is_some() || event.pdu.state_key().is_some() {
        return false;
    }
    let tail = &sight.view.tail;
    let in_tail = tail.front().is_some_and(|first| first.order <= event.order);
    if !in_tail || !app.is_local(event.pdu.sender()) {
        return true;
    }
    tail.iter()
        .rev()
        .take_while(|newer| newer.order > event.order)
        .any(|newer| {
            Relation::of(&newer.pdu).is_some_and(|relation| relation.target == event.pdu.event_id())
        })
}

/// How many relating events are looked at to bundle them with their target.
const BUNDLE_ROWS_MAX: usize = 1_000;

/// What relates to an event, as clients get it in `unsigned`: its last edit, its thread, references.
///
/// Spec: client-server API, "Aggregations of child events".
///
/// # Errors
/// When the store cannot be read.
pub fn bundle(
    app: &App,
    sight: &Sight,
    seen: &Seen,
    format: &Format<'_>,
) -> ApiResult<Option<Box<RawValue>>> {
    let event = &seen.event;
    if !may_be_related_to(app, sight, event) {
        return Ok(None);
    }
    let mut edit: Option<Arc<TimelineEvent>> = None;
    let mut references = Vec::new();
    let mut thread: Option<Thread> = None;
    let mut rows = 0;
    let mut ignored = None;
    let mut failed = None;
    visit_relations(
        &app.store,
        event.room,
        event.pdu.event_id(),
        Direction::Ascending,
        |order, row| {
            rows += 1;
            let ignored = match &mut ignored {
                Some(ignored) => ignored,
                none => none.insert(account_data::ignored_by(&app.store, sight.viewer.user)?),
            };
            if ignored.contains(&row.sender) {
                return Ok(rows < BUNDLE_ROWS_MAX);
            }
            let Some(child) = app.store.event_at(event.room, order)? else {
                return Ok(rows < BUNDLE_ROWS_MAX);
            };
            if child.redacted_by.is_some() {
                return Ok(rows < BUNDLE_ROWS_MAX);
            }
            match &*row.rel_type {
                "m.replace" if edits(&event.pdu, &child.pdu) => {
                    let later = edit.as_ref().is_none_or(|edit| {
                        (edit.pdu.origin_server_ts(), edit.pdu.event_id())
                            < (child.pdu.origin_server_ts(), child.pdu.event_id())
                    });
                    if later {
                        edit = Some(child);
                    }
                }
                "m.reference" => references.push(serde_json::json!({ "event_id": row.event_id })),
                "m.thread" => match sight.look(app, child) {
                    Ok(Some(child)) => {
                        let thread = thread.get_or_insert_with(|| Thread {
                            latest: child.clone(),
                            count: 0,
                            participated: event.pdu.sender() == sight.viewer.user_id,
                        });
                        thread.count += 1;
                        thread.participated |= row.sender == sight.viewer.user_id;
                        thread.latest = child;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        failed = Some(error);
                        return Ok(false);
                    }
                },
                _ => {}
            }
            Ok(rows < BUNDLE_ROWS_MAX)
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut relations = serde_json::Map::new();
    if let Some(edit) = edit
        && let Some(edit) = sight.look(app, edit)?
    {
        relations.insert(
            "m.replace".to_owned(),
            value(&client_event_alone(app, &edit, format)?)?,
        );
    }
    if !references.is_empty() {
        relations.insert(
            "m.reference".to_owned(),
            serde_json::json!({ "chunk": references }),
        );
    }
    if let Some(thread) = thread {
        // The last answer comes with its own edit, but with no thread of its own.
        let latest = client_event(app, sight, &thread.latest, format)?;
        relations.insert(
            "m.thread".to_owned(),
            serde_json::json!({
                "latest_event": value(&latest)?,
                "count": thread.count,
                "current_user_participated": thread.participated,
            }),
        );
    }
    if relations.is_empty() {
        return Ok(None);
    }
    serde_json::value::to_raw_value(&relations)
        .map(Some)
        .map_err(|error| ApiError::internal(&error))
}

struct Thread {
    latest: Seen,
    count: u64,
    participated: bool,
}

fn value(raw: &RawValue) -> ApiResult<serde_json::Value> {
    serde_json::from_str(raw.get()).map_err(|error| ApiError::internal(&error))
}

/// Whether an edit counts. Spec: client-server API, "Validity of replacement events".
fn edits(target: &Pdu, edit: &Pdu) -> bool {
    target.sender() == edit.sender()
        && target.kind() == edit.kind()
        && edit.state_key().is_none()
        && Relation::of(target).is_none_or(|relation| relation.rel_type != "m.replace")
        && (edit.content().get().contains("\"m.new_content\"")
            || edit.content().get().contains("\"ciphertext\""))
}
