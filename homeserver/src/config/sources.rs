//! Where a configuration comes from, and laying the sources over each other. Types and allowed values come later, in
//! `read` and `check`.

use std::{ffi::OsString, fs, path::PathBuf};

use toml::de::{DeTable, DeValue};

use super::{
    Config, Mode,
    error::{ConfigError, Origin},
    tree::{Node, Value, join},
};

/// What the names of our environment variables begin with.
pub const VARIABLE_PREFIX: &str = "GUILDHALL_";

/// The environment variable that stands for `--config`. No key: the file cannot name itself.
pub const CONFIG_VARIABLE: &str = "GUILDHALL_CONFIG";

/// Everything a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration file. If none is given, [`CONFIG_VARIABLE`] is asked.
    pub file: Option<PathBuf>,
    /// The process's environment (`std::env::vars_os`). Variables whose names do not begin with [`VARIABLE_PREFIX`]
    /// are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Overrides of the form `key.path=value`, in the order given.
    pub overrides: Vec<String>,
}

/// The built-in defaults, with every key there is.
pub(super) fn defaults() -> Node {
    let json = serde_json::to_value(Config::default());
    Node::from_defaults(json.expect("the defaults are plain data"))
}

/// Lays the sources over each other, and decides the mode.
pub(super) fn assemble(sources: &Sources) -> Result<(Node, Mode), ConfigError> {
    let mut tree = defaults();

    let variables = variables(&sources.environment)?;
    let named = variables
        .iter()
        .find(|(name, _)| name == CONFIG_VARIABLE)
        .map(|(_, value)| PathBuf::from(value));
    let file = sources.file.clone().or(named);
    if let Some(path) = &file {
        let content = fs::read_to_string(path).map_err(|cause| ConfigError::File {
            path: path.clone(),
            cause,
        })?;
        tree.merge(Node::from_file(path, &content)?);
    }
    for (name, value) in variables.iter().filter(|(name, _)| name != CONFIG_VARIABLE) {
        let path = name
            .strip_prefix(VARIABLE_PREFIX)
            .unwrap_or(name)
            .to_lowercase();
        let path: Vec<&str> = path.split("__").collect();
        set(&mut tree, &path, value, &Origin::Environment(name.clone()))?;
    }
    for text in &sources.overrides {
        // The value may be a secret, so it stays out of the error.
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| ConfigError::Override { text: text.clone() })?;
        let path = key_path(key).ok_or_else(|| ConfigError::Override {
            text: format!("{key}=…"),
        })?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        set(&mut tree, &path, value.trim(), &Origin::Override)?;
    }

    let untouched = |path: &[&str]| {
        tree.find(path)
            .is_none_or(|node| node.origin == Origin::Default)
    };
    if !untouched(&["server", "name"]) {
        return Ok((tree, Mode::Production));
    }
    if file.is_some() {
        let reason = "set it to the domain in your users' names, such as name = \"example.org\"; it cannot be \
                      changed later";
        return Err(ConfigError::Missing {
            key: "server.name".to_owned(),
            reason: reason.to_owned(),
        });
    }
    if untouched(&["registration", "mode"]) {
        set(
            &mut tree,
            &["registration", "mode"],
            "open-loopback",
            &Origin::Default,
        )?;
    }
    Ok((tree, Mode::Development))
}

/// Our environment variables, sorted by name so that an error does not depend on the order the system lists them in.
fn variables(environment: &[(OsString, OsString)]) -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in environment {
        let shown = name.to_string_lossy();
        if shown.starts_with(VARIABLE_PREFIX) {
            match (name.to_str(), value.to_str()) {
                (Some(name), Some(value)) => variables.push((name.to_owned(), value.to_owned())),
                _ => {
                    return Err(ConfigError::NotText {
                        name: shown.into_owned(),
                    });
                }
            }
        }
    }
    variables.sort();
    Ok(variables)
}

/// Puts one value into the tree.
fn set(tree: &mut Node, path: &[&str], text: &str, origin: &Origin) -> Result<(), ConfigError> {
    let mut node = &mut *tree;
    let mut walked = String::new();
    for key in path {
        let Value::Table(entries) = &mut node.value else {
            // A key below something that has none, such as `server.name.first`.
            let key = path
                .iter()
                .fold(String::new(), |path, key| join(&path, key));
            return Err(ConfigError::unknown_key(key, Some(walked), origin));
        };
        walked = join(&walked, key);
        node = entries.entry((*key).to_owned()).or_insert_with(|| Node {
            value: Value::Table([].into()),
            origin: origin.clone(),
            text: None,
        });
    }
    node.merge(Node::from_text(text, origin));
    Ok(())
}

/// Splits `testing.server_addresses."hs1:8448"` as TOML does. `None` if it is not a key.
fn key_path(key: &str) -> Option<Vec<String>> {
    if key.contains(['\n', '#']) {
        return None;
    }
    let document = format!("{key} = 0");
    let mut table = DeTable::parse(&document).ok()?.into_inner();
    let mut path = Vec::new();
    loop {
        let (key, value) = std::mem::take(&mut table).into_iter().next()?;
        path.push(key.into_inner().into_owned());
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}
