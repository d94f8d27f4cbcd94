//! Full-text search: an index of the words of every room, and hits in it, newest first.
//!
//! A reader of the log writes the index, so that sending does not wait for it. Words are runs of letters
//! and digits in lower case; in scripts without spaces each character is a word. There is no stemming
//! and no ranking here: a hit is an event that has all of the words. Encrypted events have none. What is
//! redacted leaves the index. Spec: client-server API, "Server Side Search".

use std::{
    collections::{BTreeSet, BinaryHeap},
    time::Duration,
};

use ruma::events::TimelineEventType;
use serde_json::{Map, Value};
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack},
    kv::Direction,
    log::LogEntry,
    rooms::TimelineEvent,
};
use tokio::sync::Notify;

use crate::{error::ApiResult, server::App};

/// How many different words of an event are indexed; further ones do not find it.
const EVENT_WORDS_MAX: usize = 256;

/// How many characters of a word count.
const WORD_CHARS_MAX: usize = 32;

/// How many words of a search term count.
pub const TERM_WORDS_MAX: usize = 16;

/// How many entries of the log are indexed in one commit.
const LOG_ENTRIES_MAX: usize = 64;

/// How long a search waits for what was said before it to be indexed.
const BEHIND_MAX: Duration = Duration::from_secs(2);

/// How long the index lets messages gather before it takes them in, unless somebody searches: an index entry for
/// each message by itself would cost one more flush each.
const GATHER: Duration = Duration::from_millis(500);

/// How long after a failure of the store the index is taken up again.
const RETRY: Duration = Duration::from_secs(5);

/// How many rows of the index one search reads.
const ROWS_MAX: usize = 100_000;

/// How far the index has come.
#[derive(Debug, Default)]
pub struct Search {
    indexed: std::sync::atomic::AtomicU64,
    grew: Notify,
    /// Somebody waits for the index.
    wanted: Notify,
}

/// The part of an event's content that is searched, and what it says. Spec: `keys` of a search.
pub fn searched(event: &TimelineEvent) -> Option<(&'static str, String)> {
    let (key, field) = match event.pdu.kind() {
        TimelineEventType::RoomMessage => ("content.body", "body"),
        TimelineEventType::RoomName => ("content.name", "name"),
        TimelineEventType::RoomTopic => ("content.topic", "topic"),
        _ => return None,
    };
    let mut content: Map<String, Value> = event.pdu.content_as()?;
    match content.remove(field)? {
        Value::String(text) => Some((key, text)),
        _ => None,
    }
}

/// The words of a text, in order, with repetitions.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text.chars().peekable();
    std::iter::from_fn(move || {
        while rest.next_if(|c| !c.is_alphanumeric()).is_some() {}
        let first = rest.next()?;
        let mut word: String = first.to_lowercase().collect();
        if is_word_alone(first) {
            return Some(word);
        }
        let mut count = 1;
        while let Some(c) = rest.next_if(|c| c.is_alphanumeric() && !is_word_alone(*c)) {
            count += 1;
            if count <= WORD_CHARS_MAX {
                word.extend(c.to_lowercase());
            }
        }
        Some(word)
    })
}

/// Whether a character is of a script that puts no spaces between words: Thai to Khmer, kana, Han.
fn is_word_alone(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

fn word_key(room: RoomNum, word: &str) -> Packed {
    Packed::key(Keyspace::WORD).room(room).text(word)
}

/// The row that says which words of an event are indexed, to find them when it is redacted.
fn words_key(room: RoomNum, order: i64) -> Packed {
    Packed::key(Keyspace::EVENT_WORDS).room(room).i64(order)
}

fn cursor_key() -> Packed {
    Packed::key(Keyspace::CURSOR).text("search")
}

/// Keeps the index up to date, for as long as the server runs.
pub async fn index(app: App) {
    let reader = app.metrics.reader("search");
    let mut position = loop {
        match app.store.get_raw(cursor_key()) {
            Ok(row) => break row.and_then(|row| Unpack(&row).u64()).unwrap_or(0),
            Err(error) => {
                tracing::error!(%error, "the search index cannot be read; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    loop {
        reader.at(position);
        let grew = app.store.grew().notified();
        tokio::pin!(grew);
        grew.as_mut().enable();
        match some(&app, position).await {
            Ok(reached) => {
                position = reached;
                app.search
                    .indexed
                    .store(position, std::sync::atomic::Ordering::Release);
                app.search.grew.notify_waiters();
                if position >= app.store.published() {
                    grew.await;
                    drop(tokio::time::timeout(GATHER, app.search.wanted.notified()).await);
                }
            }
            Err(error) => {
                tracing::error!(error = %error.message, "the search index fell behind; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Indexes some entries behind `position`; how far it came.
async fn some(app: &App, position: Position) -> ApiResult<Position> {
    let published = app.store.published();
    let entries = app.store.log(position, LOG_ENTRIES_MAX)?;
    let mut reached = position;
    let mut commit = Commit::new();
    // Words of events of this very commit are not in the store yet.
    let mut fresh: std::collections::BTreeMap<i64, Vec<String>> = std::collections::BTreeMap::new();
    for (at, entry) in &entries {
        reached = *at;
        let LogEntry::Event(event) = entry else {
            continue;
        };
        if let Some((_, text)) = searched(event) {
            let distinct: BTreeSet<String> = words(&text).take(EVENT_WORDS_MAX).collect();
            for word in &distinct {
                commit.put_raw(word_key(event.room, word).i64(event.order), Packed::new());
            }
            let distinct: Vec<String> = distinct.into_iter().collect();
            let row = Packed::new().raw(distinct.join(" ").as_bytes());
            commit.put_raw(words_key(event.room, event.order), row);
            fresh.insert(event.order, distinct);
        }
        if *event.pdu.kind() == TimelineEventType::RoomRedaction
            && let Some(target) = event.pdu.redacts()
            && let Some(target) = app.store.event(target)?
            && target.room == event.room
            && target.redacted_by.is_some()
        {
            let key = || words_key(target.room, target.order);
            let indexed = match fresh.remove(&target.order) {
                Some(words) => words,
                None => {
                    let row = app.store.get_raw(key())?.unwrap_or_default();
                    let row = String::from_utf8_lossy(&row).into_owned();
                    row.split(' ').map(str::to_owned).collect()
                }
            };
            for word in indexed {
                commit.delete(word_key(target.room, &word).i64(target.order));
            }
            commit.delete(key());
        }
    }
    // A purged room leaves entries that lead nowhere.
    if entries.len() < LOG_ENTRIES_MAX {
        reached = reached.max(published);
    }
    if !commit.is_empty() {
        commit.put_raw(cursor_key(), Packed::new().u64(reached));
        app.store.commit(commit).await?;
    }
    Ok(reached)
}

impl Search {
    /// Waits until everything up to `position` is indexed, but not long.
    pub async fn caught_up(&self, position: Position) {
        let caught_up = async {
            loop {
                let grew = self.grew.notified();
                tokio::pin!(grew);
                grew.as_mut().enable();
                if self.indexed.load(std::sync::atomic::Ordering::Acquire) >= position {
                    return;
                }
                // Kept until the index looks, which may not wait yet.
                self.wanted.notify_one();
                grew.await;
            }
        };
        // Somebody who searches while an old server is being indexed gets what is indexed.
        drop(tokio::time::timeout(BEHIND_MAX, caught_up).await);
    }
}

/// Visits the events of `rooms` before `before` that have all of `words`, newest first, until `visit`
/// returns `false`. `false`: it was given up, as [`ROWS_MAX`] rows were read.
///
/// # Errors
/// When the store cannot be read, or `visit` fails.
pub fn visit_hits(
    app: &App,
    rooms: &[RoomNum],
    words: &[String],
    before: i64,
    mut visit: impl FnMut(RoomNum, i64) -> ApiResult<bool>,
) -> ApiResult<bool> {
    let mut rows = ROWS_MAX;
    let mut next = BinaryHeap::new();
    for &room in rooms {
        let hit = hit_before(app, room, words, before, &mut rows)?;
        next.extend(hit.map(|order| (order, room.0)));
    }
    while let Some((order, room)) = next.pop() {
        let room = RoomNum(room);
        if !visit(room, order)? {
            return Ok(true);
        }
        let hit = hit_before(app, room, words, order, &mut rows)?;
        next.extend(hit.map(|order| (order, room.0)));
    }
    Ok(rows > 0)
}

/// The newest event of a room before `before` that has all of the words.
///
/// The rows of one word are walked and the others asked for; the longest word is likely the rarest.
fn hit_before(
    app: &App,
    room: RoomNum,
    words: &[String],
    before: i64,
    rows: &mut usize,
) -> ApiResult<Option<i64>> {
    let Some(rarest) = words.iter().max_by_key(|word| word.len()) else {
        return Ok(None);
    };
    let prefix = word_key(room, rarest);
    let (from, to) = (
        prefix.clone().into_bytes(),
        prefix.clone().i64(before).into_bytes(),
    );
    let mut found = None;
    app.store
        .visit_range(&from, &to, Direction::Descending, |key, _| {
            let Some(order) = key.get(from.len()..).and_then(|rest| Unpack(rest).i64()) else {
                return Ok(true);
            };
            for word in words {
                *rows = rows.saturating_sub(1);
                let missing = word != rarest
                    && app
                        .store
                        .get_raw(word_key(room, word).i64(order))?
                        .is_none();
                if missing {
                    return Ok(*rows > 0);
                }
            }
            found = Some(order);
            Ok(false)
        })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits_or_single_characters_without_spaces() {
        let split = |text: &str| words(text).collect::<Vec<_>>();
        assert_eq!(split("Hello, WORLD-2!"), ["hello", "world", "2"]);
        assert_eq!(split("  "), Vec::<String>::new());
        assert_eq!(split("Ärger über Straße"), ["ärger", "über", "straße"]);
        assert_eq!(split("go東京now"), ["go", "東", "京", "now"]);
        assert_eq!(split(&"a".repeat(40)), ["a".repeat(32)]);
    }
}
