//! From the raw tree to the structs: a serde deserializer that knows at which key it is, so that an error can say it.
//!
//! It differs from a usual one in four ways. Keys that a struct does not have are refused, with the nearest one that
//! exists. Errors carry the key, the value and its origin, and say what is allowed (a visitor's `expecting`, or the
//! text of a custom error, both worded to follow "must be"). Values from the environment count as text where text is
//! wanted, whatever they look like. And the value of a [`Secret`](super::Secret) is never shown.

use std::{collections::btree_map, fmt::Display};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor, value::StrDeserializer,
};

use super::{
    error::ConfigError,
    suggest,
    tree::{Node, Value, join},
    values::{MASK, SECRET},
};

/// Reads the whole tree. `known` are all keys there are, for suggestions.
pub(super) fn read<T: DeserializeOwned>(tree: &Node, known: &[String]) -> Result<T, ConfigError> {
    let reader = Reader {
        key: String::new(),
        node: tree,
        known,
        secret: false,
    };
    T::deserialize(reader.clone()).map_err(|error| reader.locate(error))
}

/// An error on its way up from a value to the reader that knows its key.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Located(Box<ConfigError>),
    /// What would have been allowed.
    #[error("must be {0}")]
    NotAllowed(String),
    #[error("`{0}` is missing")]
    MissingField(String),
}

impl de::Error for ReadError {
    fn custom<T: Display>(allowed: T) -> Self {
        Self::NotAllowed(allowed.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(expected)
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let list: Vec<String> = expected.iter().map(|name| format!("{name:?}")).collect();
        let hint = suggest::nearest(variant, expected.iter().copied());
        let hint = hint
            .map(|name| format!("; did you mean {name:?}?"))
            .unwrap_or_default();
        Self::NotAllowed(format!("one of {}{hint}", list.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field.to_owned())
    }
}

impl From<ConfigError> for ReadError {
    fn from(error: ConfigError) -> Self {
        Self::Located(Box::new(error))
    }
}

/// The deserializer of one value.
#[derive(Clone)]
struct Reader<'t> {
    /// Its key with its section, such as `listeners[0].address`.
    key: String,
    node: &'t Node,
    /// All keys there are, for suggestions.
    known: &'t [String],
    /// Whether the value must not be shown.
    secret: bool,
}

impl Reader<'_> {
    /// Adds to an error where it happened, unless a reader further down has done so.
    fn locate(&self, error: ReadError) -> ConfigError {
        match error {
            ReadError::Located(error) => *error,
            ReadError::NotAllowed(allowed) => ConfigError::Value {
                key: self.key.clone(),
                value: self.shown(),
                allowed,
                origin: self.node.origin.clone(),
            },
            ReadError::MissingField(field) => ConfigError::Missing {
                key: join(&self.key, &field),
                reason: format!(
                    "`{}` does not work without it ({})",
                    self.key, self.node.origin
                ),
            },
        }
    }

    /// The value for an error message.
    fn shown(&self) -> String {
        match (&self.node.value, &self.node.text) {
            _ if self.secret => MASK.to_owned(),
            (Value::Unset, _) => "not set".to_owned(),
            (Value::List(_), _) => "a list".to_owned(),
            (Value::Table(_), _) => "a table".to_owned(),
            (Value::Text(text), _) => format!("{text:?}"),
            (_, Some(text)) => text.clone(),
            (Value::Boolean(boolean), None) => boolean.to_string(),
            (Value::Integer(integer), None) => integer.to_string(),
            (Value::Float(float), None) => float.to_string(),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    /// Numbers, and whatever decides by its visitor alone.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Unset => visitor.visit_none(),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Integer(integer) => visitor.visit_i64(*integer),
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Table(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Value::Boolean(boolean) = self.node.value else {
            return Err(ReadError::custom("true or false"));
        };
        visitor.visit_bool(boolean)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let ((Value::Text(text), _) | (_, Some(text))) = (&self.node.value, &self.node.text) else {
            return Err(ReadError::custom("text in quotes"));
        };
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Unset => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let inner = Self {
            secret: self.secret || name == SECRET,
            ..self
        };
        visitor
            .visit_newtype_struct(inner.clone())
            .map_err(|error| inner.locate(error).into())
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let Value::Text(text) = &self.node.value else {
            return Err(ReadError::unknown_variant("", variants));
        };
        let variant: StrDeserializer<'_, ReadError> = text.as_str().into_deserializer();
        visitor.visit_enum(variant)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Value::List(items) = &self.node.value else {
            return Err(ReadError::custom("a list in square brackets"));
        };
        let iter = items.iter().enumerate();
        visitor.visit_seq(Items { list: &self, iter })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Value::Table(entries) = &self.node.value else {
            return Err(ReadError::custom("a table"));
        };
        let entries = Entries {
            table: &self,
            iter: entries.iter(),
            next: None,
        };
        visitor.visit_map(entries)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if let Value::Table(entries) = &self.node.value
            && let Some((key, node)) = entries
                .iter()
                .find(|(key, _)| !fields.contains(&key.as_str()))
        {
            let key = join(&self.key, key);
            let suggestion = suggest::nearest_key(&key, &self.key, fields, self.known);
            return Err(ConfigError::unknown_key(key, suggestion, &node.origin).into());
        }
        self.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

/// The items of a list.
struct Items<'r, 't> {
    list: &'r Reader<'t>,
    iter: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        let Some((index, node)) = self.iter.next() else {
            return Ok(None);
        };
        let key = format!("{}[{index}]", self.list.key);
        let reader = Reader {
            key,
            node,
            ..self.list.clone()
        };
        let item = seed.deserialize(reader.clone());
        item.map(Some).map_err(|error| reader.locate(error).into())
    }
}

/// The entries of a table.
struct Entries<'r, 't> {
    table: &'r Reader<'t>,
    iter: btree_map::Iter<'t, String, Node>,
    next: Option<(&'t String, &'t Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, ReadError> {
        self.next = self.iter.next();
        let Some((key, node)) = self.next else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, ReadError> = key.as_str().into_deserializer();
        let read = seed.deserialize(name).map_err(|error| match error {
            // A key that is free within limits, such as a server name.
            ReadError::NotAllowed(allowed) => ConfigError::Value {
                key: format!("a key in {}", self.table.key),
                value: format!("{key:?}"),
                allowed,
                origin: node.origin.clone(),
            },
            error => self.table.locate(error),
        })?;
        Ok(Some(read))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let (key, node) = self
            .next
            .expect("serde asks for a value only after its key");
        let reader = Reader {
            key: join(&self.table.key, key),
            node,
            ..self.table.clone()
        };
        seed.deserialize(reader.clone())
            .map_err(|error| reader.locate(error).into())
    }
}
