//! What can be wrong with a configuration, in words for the person who wrote it.

use std::{fmt, io, path::PathBuf};

use super::sources::VARIABLE_PREFIX;

/// Why a configuration was refused. The text alone is enough to mend it: it never needs a source error beside it,
/// and it never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The configuration file is not TOML.
    #[error("{} is not valid TOML: line {line}, column {column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// What the parser found.
        message: String,
    },
    /// A `GUILDHALL_` environment variable that is not text.
    #[error("the environment variable {name} is not valid UTF-8")]
    NotText {
        /// Its name, as far as it can be shown.
        name: String,
    },
    /// An override that is not `key.path=value`.
    #[error("-O {text}: must be key=value, such as limits.upload_mb=50")]
    Override {
        /// What was given, without the value.
        text: String,
    },
    /// A key that does not exist.
    #[error(
        "unknown key `{key}`{} ({origin})",
        suggestion.as_ref().map(|known| format!(", did you mean `{known}`?")).unwrap_or_default()
    )]
    UnknownKey {
        /// The key as written, with its section.
        key: String,
        /// The nearest key that exists, if one is near.
        suggestion: Option<String>,
        /// Where it was written.
        origin: Origin,
    },
    /// A value of the wrong type or outside of what is allowed.
    #[error("`{key}` is {value}, but must be {allowed} ({origin})")]
    Value {
        /// The key, with its section.
        key: String,
        /// The value as written; masked if it is a secret.
        value: String,
        /// What would have been right.
        allowed: String,
        /// Where it was written.
        origin: Origin,
    },
    /// A key without which it does not work.
    #[error("`{key}` is missing: {reason}")]
    Missing {
        /// The key, with its section.
        key: String,
        /// Why it is needed, or what to set it to.
        reason: String,
    },
    /// A file that a key names cannot be read.
    #[error("`{key}` is \"{}\", which cannot be read: {cause} ({origin})", path.display())]
    Unreadable {
        /// The key, with its section.
        key: String,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
        /// Where it was written.
        origin: Origin,
    },
}

impl ConfigError {
    /// An unknown key. The suggestion is worded in the form it was given in: a variable's name for a variable.
    pub(super) fn unknown_key(key: String, suggestion: Option<String>, origin: &Origin) -> Self {
        let suggestion = suggestion.map(|known| match origin {
            Origin::Environment(_) if !known.contains('[') => {
                format!(
                    "{VARIABLE_PREFIX}{}",
                    known.replace('.', "__").to_uppercase()
                )
            }
            _ => known,
        });
        Self::UnknownKey {
            key,
            suggestion,
            origin: origin.clone(),
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// An `-O` option.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("built-in default"),
            Self::File { path, line } => write!(formatter, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(formatter, "environment variable {name}"),
            Self::Override => formatter.write_str("option -O"),
        }
    }
}
