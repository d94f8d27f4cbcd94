//! The published directory, page by page: what is in it, in which order, who finds it.
//!
//! Which rooms are published is [`super::aliases`]' to write. Spec: client-server API, "Published
//! room directory".

use std::cmp::Reverse;

use ruma::OwnedRoomId;
use serde_json::{Map, Value};

use super::{aliases, outline::Outline};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many rooms a page of the directory has at most.
pub const PAGE_ROOMS_MAX: usize = 100;

/// How many published rooms are looked at; those published later are not found.
const PUBLISHED_ROOMS_MAX: usize = 10_000;

/// What the directory tells of a room, of all that an outline has.
const TOLD: [&str; 10] = [
    "room_id",
    "name",
    "topic",
    "avatar_url",
    "canonical_alias",
    "room_type",
    "join_rule",
    "num_joined_members",
    "world_readable",
    "guest_can_join",
];

/// Which rooms of the directory are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What name, topic or canonical alias must contain, in any case.
    pub term: Option<String>,
    /// The types that a room may have, where `None` is a room without one. Empty: any.
    pub types: Vec<Option<String>>,
}

impl Wanted {
    fn takes(&self, fields: &Map<String, Value>) -> bool {
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let of_type = self.types.is_empty()
            || self
                .types
                .iter()
                .any(|kind| kind.as_deref() == text("room_type"));
        let found = self.term.as_deref().is_none_or(|term| {
            let term = term.to_lowercase();
            ["name", "topic", "canonical_alias"]
                .iter()
                .filter_map(|key| text(key))
                .any(|text| text.to_lowercase().contains(&term))
        });
        of_type && found
    }
}

/// A place in the directory: between two rooms, so that rooms which come or go do not move it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    forward: bool,
    joined: u64,
    room_id: String,
}

impl Place {
    /// From a `since` that this server gave.
    ///
    /// # Errors
    /// `M_INVALID_PARAM` when it did not.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let parse = || {
            let (forward, rest) = match text.split_at_checked(1)? {
                ("n", rest) => (true, rest),
                ("p", rest) => (false, rest),
                _ => return None,
            };
            let (joined, room_id) = rest.split_once('_')?;
            Some(Self {
                forward,
                joined: joined.parse().ok()?,
                room_id: room_id.to_owned(),
            })
        };
        parse().ok_or_else(|| ApiError::invalid_param("`since` is not of this server"))
    }

    fn beside(entry: &Entry, forward: bool) -> Self {
        Self {
            forward,
            joined: entry.joined,
            room_id: entry.room_id.to_string(),
        }
    }

    fn order(&self) -> (Reverse<u64>, &str) {
        (Reverse(self.joined), &self.room_id)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = if self.forward { 'n' } else { 'p' };
        write!(f, "{letter}{}_{}", self.joined, self.room_id)
    }
}

/// A room in the directory.
#[derive(Clone, Debug)]
struct Entry {
    joined: u64,
    room_id: OwnedRoomId,
    fields: Map<String, Value>,
}

impl Entry {
    fn order(&self) -> (Reverse<u64>, &str) {
        (Reverse(self.joined), self.room_id.as_str())
    }
}

/// A page of the directory.
#[derive(Debug)]
pub struct Page {
    /// The rooms, those with most members first.
    pub rooms: Vec<Map<String, Value>>,
    /// Where the next page begins, if there is one.
    pub next: Option<Place>,
    /// Where the page before begins, if there is one.
    pub previous: Option<Place>,
    /// How many rooms there are in all.
    pub total: usize,
}

/// A page of the published rooms that anybody may know of.
///
/// A room that somebody published and that has since become private, or empty, is left out.
///
/// # Errors
/// When the store cannot be read.
pub fn page(app: &App, wanted: &Wanted, since: Option<&Place>, limit: usize) -> ApiResult<Page> {
    let mut entries = Vec::new();
    for room in aliases::published(&app.store, PUBLISHED_ROOMS_MAX)? {
        let Some(view) = app.store.room(room)? else {
            continue;
        };
        let outline = Outline::of(app, &view)?;
        if outline.joined == 0 || !outline.may_be_told(app, &view, None)? {
            continue;
        }
        if wanted.takes(&outline.fields) {
            let mut fields = outline.fields;
            fields.retain(|key, _| TOLD.contains(&&**key));
            entries.push(Entry {
                joined: outline.joined,
                room_id: view.room_id.clone(),
                fields,
            });
        }
    }
    entries.sort_by(|one, other| one.order().cmp(&other.order()));
    Ok(cut(&entries, since, limit))
}

/// The part of the sorted entries that a page shows.
fn cut(entries: &[Entry], since: Option<&Place>, limit: usize) -> Page {
    let (start, end) = match since {
        None => (0, limit),
        Some(place) if place.forward => {
            let start = entries.partition_point(|entry| entry.order() <= place.order());
            (start, start.saturating_add(limit))
        }
        Some(place) => {
            let end = entries.partition_point(|entry| entry.order() < place.order());
            (end.saturating_sub(limit), end)
        }
    };
    let shown = entries
        .get(start..end.min(entries.len()))
        .unwrap_or_default();
    let more_behind = start + shown.len() < entries.len();
    Page {
        next: shown
            .last()
            .filter(|_| more_behind)
            .map(|entry| Place::beside(entry, true)),
        previous: shown
            .first()
            .filter(|_| start > 0)
            .map(|entry| Place::beside(entry, false)),
        rooms: shown.iter().map(|entry| entry.fields.clone()).collect(),
        total: entries.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(joined: u64, name: &str) -> Entry {
        Entry {
            joined,
            room_id: format!("!{name}:hs1").try_into().unwrap(),
            fields: Map::from_iter([("name".to_owned(), name.into())]),
        }
    }

    fn names(page: &Page) -> Vec<&str> {
        let rooms = page.rooms.iter();
        rooms.filter_map(|room| room["name"].as_str()).collect()
    }

    #[test]
    fn pages_follow_each_other_both_ways_though_a_room_goes_between() {
        let mut entries = vec![
            entry(9, "a"),
            entry(4, "b"),
            entry(4, "c"),
            entry(4, "d"),
            entry(1, "e"),
        ];
        let first = cut(&entries, None, 2);
        assert_eq!((names(&first), &first.previous), (vec!["a", "b"], &None));
        entries.remove(1);
        let next = Place::parse(&first.next.unwrap().to_string()).unwrap();
        let second = cut(&entries, Some(&next), 2);
        assert_eq!(names(&second), ["c", "d"]);
        let third = cut(&entries, second.next.as_ref(), 2);
        assert_eq!((names(&third), &third.next), (vec!["e"], &None));
        let back = cut(&entries, third.previous.as_ref(), 2);
        assert_eq!(names(&back), ["c", "d"]);
        let back = cut(&entries, back.previous.as_ref(), 2);
        assert_eq!((names(&back), &back.previous), (vec!["a"], &None));
    }

    #[test]
    fn a_place_of_another_server_is_refused() {
        for text in ["", "n", "x3_!a:hs1", "nx_!a:hs1", "\u{1f4a5}3_"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_term_is_found_in_any_case_and_a_room_without_type_is_a_type() {
        let fields = entry(1, "Wombles").fields;
        let mut wanted = Wanted {
            term: Some("WOMB".to_owned()),
            types: Vec::new(),
        };
        assert!(wanted.takes(&fields));
        wanted.types = vec![Some("m.space".to_owned())];
        assert!(!wanted.takes(&fields));
        wanted.types.push(None);
        assert!(wanted.takes(&fields));
        wanted.term = Some("other".to_owned());
        assert!(!wanted.takes(&fields));
    }
}
