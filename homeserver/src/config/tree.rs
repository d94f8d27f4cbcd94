//! The raw configuration before it has a type: values with the place each was written at, and laying one source over
//! another.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use serde_json::Value as Json;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Origin},
    print::quote,
};

/// A value, and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// For values from the environment and the command line: the text as it was given. A secret of nothing but
    /// digits is a number by TOML's rules, and yet is meant as text.
    pub(super) text: Option<String>,
}

/// What TOML can say, and "not set".
#[derive(Debug, Clone)]
pub(super) enum Value {
    Unset,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    /// The built-in defaults; `null` becomes [`Value::Unset`], so that the tree has every key there is.
    pub(super) fn from_defaults(json: Json) -> Self {
        let value = match json {
            Json::Null => Value::Unset,
            Json::Bool(boolean) => Value::Boolean(boolean),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(
                    number
                        .as_f64()
                        .expect("a default number is a float if no 64-bit integer"),
                ),
            },
            Json::String(text) => Value::Text(text),
            Json::Array(items) => Value::List(items.into_iter().map(Self::from_defaults).collect()),
            Json::Object(entries) => Value::Table(
                entries
                    .into_iter()
                    .map(|(key, value)| (key, Self::from_defaults(value)))
                    .collect(),
            ),
        };
        Self {
            value,
            origin: Origin::Default,
            text: None,
        }
    }

    /// Reads a TOML document, and remembers the line of each value.
    pub(super) fn from_file(path: &Path, content: &str) -> Result<Self, ConfigError> {
        let lines = Lines::new(content);
        match DeTable::parse(content) {
            Ok(table) => {
                let line = |offset| Origin::File {
                    path: path.to_owned(),
                    line: lines.position(offset).0,
                };
                Ok(Self::from_toml(
                    DeValue::Table(table.into_inner()),
                    0,
                    &line,
                ))
            }
            Err(error) => {
                let (line, column) = lines.position(error.span().map_or(0, |span| span.start));
                // Not the error's own text: it quotes the line, which may hold a secret.
                let message = error.message().to_owned();
                Err(ConfigError::Syntax {
                    path: path.to_owned(),
                    line,
                    column,
                    message,
                })
            }
        }
    }

    /// Reads a single value as given in the environment or on the command line: a TOML value if it is one, else text.
    pub(super) fn from_text(text: &str, origin: &Origin) -> Self {
        let value = match DeValue::parse(text) {
            Ok(value) => Self::from_toml(value.into_inner(), 0, &|_| origin.clone()).value,
            Err(_) => Value::Text(text.to_owned()),
        };
        Self {
            value,
            origin: origin.clone(),
            text: Some(text.to_owned()),
        }
    }

    fn from_toml(value: DeValue<'_>, offset: usize, origin: &impl Fn(usize) -> Origin) -> Self {
        let value = match value {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(integer) => Value::Integer(integer),
                    // Beyond 64 bits, and so beyond what any key allows.
                    Err(_) => Value::Float(integer.as_str().parse().unwrap_or(f64::INFINITY)),
                }
            }
            DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(boolean) => Value::Boolean(boolean),
            DeValue::Datetime(datetime) => Value::Text(datetime.to_string()),
            DeValue::Array(items) => {
                let node = |item: Spanned<DeValue<'_>>| {
                    let start = item.span().start;
                    Self::from_toml(item.into_inner(), start, origin)
                };
                Value::List(items.into_iter().map(node).collect())
            }
            DeValue::Table(entries) => {
                let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
                    let start = key.span().start;
                    (
                        key.into_inner().into_owned(),
                        Self::from_toml(value.into_inner(), start, origin),
                    )
                };
                Value::Table(entries.into_iter().map(entry).collect())
            }
        };
        Self {
            value,
            origin: origin(offset),
            text: None,
        }
    }

    /// Lays `above` over this: tables are merged key by key, everything else is replaced.
    pub(super) fn merge(&mut self, above: Self) {
        match (&mut self.value, above.value) {
            (Value::Table(below), Value::Table(above)) => {
                for (key, node) in above {
                    match below.entry(key) {
                        Entry::Occupied(mut existing) => existing.get_mut().merge(node),
                        Entry::Vacant(vacant) => _ = vacant.insert(node),
                    }
                }
            }
            (_, value) => {
                *self = Self {
                    value,
                    origin: above.origin,
                    text: above.text,
                }
            }
        }
    }

    /// The value at `path`, each step being a key.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| match &node.value {
            Value::Table(entries) => entries.get(*key),
            _ => None,
        })
    }

    /// All keys below this, sections included, with their full path.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        self.collect_keys("", &mut keys);
        keys
    }

    fn collect_keys(&self, path: &str, keys: &mut Vec<String>) {
        match &self.value {
            Value::Table(entries) => {
                for (key, node) in entries {
                    let path = join(path, key);
                    keys.push(path.clone());
                    node.collect_keys(&path, keys);
                }
            }
            Value::List(items) => {
                let path = format!("{path}[]");
                for item in items {
                    item.collect_keys(&path, keys);
                }
            }
            _ => {}
        }
    }
}

/// `key` below `path`, in the form that TOML and `-O` take.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || "_-".contains(char));
    let key = if bare { key.to_owned() } else { quote(key) };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// Turns byte offsets into lines and columns.
struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn new(content: &'a str) -> Self {
        Self(content)
    }

    /// Line and column (in characters) at `offset`, both counted from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.0.get(..offset).unwrap_or(self.0);
        let line = before.split('\n').count();
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        (line, column)
    }
}
