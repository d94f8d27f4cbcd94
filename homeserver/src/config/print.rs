//! The effective configuration as TOML, for `--print-config`.
//!
//! Keys are sorted, so that two print-outs can be compared. What is not set is left out, and so is a secret that came
//! from a file: the file's name is there instead.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use super::{Config, Mode, tree::join};

/// Tables up to this depth get a `[header]`, deeper ones are written in one line.
const HEADER_DEPTH_MAX: usize = 2;

pub(super) fn toml(config: &Config) -> String {
    let json = serde_json::to_value(config).expect("a configuration is plain data");
    let mode = match config.mode {
        Mode::Development => "development",
        Mode::Production => "production",
    };
    let mut out = format!("# the effective configuration, in {mode} mode; secrets are masked\n");
    if let Json::Object(entries) = &json {
        write_table(&mut out, "", 0, entries);
    }
    out
}

/// Writes the values of a table, then the tables in it.
fn write_table(out: &mut String, path: &str, depth: usize, entries: &Map<String, Json>) {
    let mut tables = Vec::new();
    for (key, value) in set_entries(entries) {
        match value {
            Json::Object(inner) if depth < HEADER_DEPTH_MAX => {
                tables.push((key, vec![inner], "[", "]"));
            }
            Json::Array(items) if !items.is_empty() && items.iter().all(Json::is_object) => {
                tables.push((
                    key,
                    items.iter().filter_map(Json::as_object).collect(),
                    "[[",
                    "]]",
                ));
            }
            _ => writeln!(out, "{} = {}", join("", key), inline(value))
                .expect("a String takes everything"),
        }
    }
    for (key, inner_tables, open, close) in tables {
        let path = join(path, key);
        for inner in inner_tables {
            let mut body = String::new();
            write_table(&mut body, &path, depth + 1, inner);
            if !body.is_empty() {
                // No header for a table that holds nothing but tables.
                let header = if body.starts_with('\n') {
                    String::new()
                } else {
                    format!("\n{open}{path}{close}\n")
                };
                out.push_str(&header);
                out.push_str(&body);
            }
        }
    }
}

/// The entries to show.
fn set_entries(entries: &Map<String, Json>) -> impl Iterator<Item = (&String, &Json)> {
    let from_file = |key: &str| {
        entries
            .get(&format!("{key}_file"))
            .is_some_and(|file| !file.is_null())
    };
    entries
        .iter()
        .filter(move |(key, value)| !value.is_null() && !from_file(key))
}

fn inline(value: &Json) -> String {
    match value {
        Json::String(text) => quote(text),
        Json::Array(items) => format!(
            "[{}]",
            items.iter().map(inline).collect::<Vec<_>>().join(", ")
        ),
        Json::Object(entries) => {
            let entry =
                |(key, value): (&String, &Json)| format!("{} = {}", join("", key), inline(value));
            format!(
                "{{ {} }}",
                set_entries(entries)
                    .map(entry)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => value.to_string(),
    }
}

/// A TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => {
                write!(quoted, "\\U{:08X}", u32::from(char)).expect("a String takes everything");
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}
