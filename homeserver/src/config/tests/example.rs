//! `guildhall.example.toml` is true: it shows every key there is, no other, and the defaults.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{leaves, load};
use crate::config::{Config, read, sources, tree::Node};

const EXAMPLE: &str = include_str!("../../../../guildhall.example.toml");

/// Whether a line is a key that is commented out: `#key = value` or `#[header]`, without a space. Text has one.
fn commented_out(line: &str) -> bool {
    line.strip_prefix('#')
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(' '))
}

/// The example with every key in use that is commented out in it.
fn with_everything_set() -> String {
    let line = |line| {
        if commented_out(line) {
            line.strip_prefix('#').unwrap()
        } else {
            line
        }
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_loads_to_the_defaults_but_for_the_server_name() {
    let mut config = load(EXAMPLE).unwrap();
    assert_eq!(config.server.name, "example.org");
    config.server.name = Config::default().server.name;
    assert_eq!(config, Config::default());
}

#[test] // A new field is not in the example's text, or is null if it is optional: either way this fails.
fn the_example_shows_every_key_there_is_and_no_other() {
    let content = with_everything_set();
    let tree = Node::from_file("example".as_ref(), &content).unwrap();
    let mut whole = sources::defaults();
    whole.merge(tree.clone());
    let config: Config = read::read(&whole, &[]).unwrap();
    let json = serde_json::to_value(&config).unwrap();

    for (key, value) in leaves(&json) {
        let shown =
            !value.is_null() && value != &serde_json::json!([]) && value != &serde_json::json!({});
        // The second listener is there to show less.
        assert!(
            shown || key.starts_with("listeners[].tls_"),
            "{key} is not set in the example"
        );
    }
    // Null is "not set", which only that second listener may have; its keys are all there in the first one.
    let keys_of_structs = BTreeSet::from_iter(Node::from_defaults(json).keys());
    let keys_in_text = BTreeSet::from_iter(tree.keys());
    assert_eq!(keys_in_text, keys_of_structs);
}

#[test]
fn every_default_that_is_a_value_is_in_use_in_the_example_and_the_rest_is_commented_out() {
    let tree = Node::from_file("example".as_ref(), EXAMPLE).unwrap();
    let in_use = BTreeSet::from_iter(tree.keys());
    let defaults = serde_json::to_value(Config::default()).unwrap();
    for (key, value) in leaves(&defaults) {
        let nothing = matches!(value, Json::Null) || value == &serde_json::json!([]);
        assert_eq!(in_use.contains(&key), !nothing, "{key}");
    }
}

#[test]
fn every_key_and_section_of_the_example_has_a_comment_above() {
    let mut above = "";
    for line in EXAMPLE.lines().filter(|line| !line.is_empty()) {
        let is_text = line.starts_with('#') && !commented_out(line);
        if !is_text {
            assert!(above.starts_with("# "), "no explanation above: {line}");
        }
        above = if is_text { line } else { "" };
    }
}

#[test] // So that nobody has to guess what a bare number means.
fn every_number_has_its_unit_in_its_name_or_counts_things() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    for (key, _) in leaves(&defaults)
        .iter()
        .filter(|(_, value)| value.is_number())
    {
        let name = key.rsplit('.').next().unwrap();
        let unit = ["_mb", "_seconds", "_pixels", "per_second"]
            .iter()
            .any(|unit| name.contains(unit));
        let count = ["_max", "_min", "_passes", "burst"]
            .iter()
            .any(|ending| name.ends_with(ending));
        assert!(unit || count, "{key}");
    }
}
