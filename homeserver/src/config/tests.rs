//! The configuration as an admin meets it: what loads, what is refused, and in which words.

mod arguments;
mod example;
mod mistakes;
mod sources;

use std::{ffi::OsString, path::PathBuf};

use serde_json::Value as Json;
use tempfile::TempDir;

use super::{
    Api, Config, ConfigError, HashCost, Listener, Mode, Network, RegistrationMode, Sources,
};

/// A directory for the files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Loads a file with this content.
fn load(content: &str) -> Result<Config, ConfigError> {
    let files = Files::new();
    let file = Some(files.write("guildhall.toml", content));
    Config::load(&Sources {
        file,
        ..Sources::default()
    })
}

/// Loads overrides alone.
fn load_overrides(overrides: &[&str]) -> Result<Config, ConfigError> {
    Config::load(&Sources {
        overrides: overrides.iter().map(ToString::to_string).collect(),
        ..Sources::default()
    })
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// All values below `json` that are no tables or lists, with their key paths.
fn leaves(json: &Json) -> Vec<(String, &Json)> {
    fn walk<'a>(path: &str, json: &'a Json, found: &mut Vec<(String, &'a Json)>) {
        match json {
            Json::Object(entries) => {
                for (key, value) in entries {
                    walk(&super::tree::join(path, key), value, found);
                }
            }
            Json::Array(items) if items.iter().any(Json::is_object) => {
                for item in items {
                    walk(&format!("{path}[]"), item, found);
                }
            }
            _ => found.push((path.to_owned(), json)),
        }
    }
    let mut found = Vec::new();
    walk("", json, &mut found);
    found
}

#[test]
fn without_any_configuration_it_is_a_trial_server_for_this_machine() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.mode, Mode::Development);
    assert_eq!(config.server.name, "localhost");
    assert_eq!(
        config.listeners,
        [Listener::plain("127.0.0.1:8008".parse().unwrap())]
    );
    assert_eq!(config.data.directory, PathBuf::from("./guildhall-data"));
    assert_eq!(config.registration.mode, RegistrationMode::OpenLoopback);
    assert_eq!(config.public_base_url(), "http://127.0.0.1:8008");
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn a_file_makes_it_a_real_server_with_registration_closed() {
    let config = load("server.name = \"example.org\"").unwrap();
    assert_eq!(config.mode, Mode::Production);
    assert_eq!(config.registration.mode, RegistrationMode::Closed);
    assert_eq!(config.public_base_url(), "https://example.org");
    let expected = Config {
        server: config.server.clone(),
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn a_server_name_from_the_environment_makes_it_a_real_server_too() {
    let environment = environment(&[("GUILDHALL_SERVER__NAME", "example.org")]);
    let config = Config::load(&Sources {
        environment,
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(config.mode, Mode::Production);
    assert_eq!(config.registration.mode, RegistrationMode::Closed);
}

#[test]
fn a_trial_server_keeps_a_registration_mode_that_was_asked_for() {
    let config = load_overrides(&["registration.mode=token"]).unwrap();
    assert_eq!(config.mode, Mode::Development);
    assert_eq!(config.registration.mode, RegistrationMode::Token);
}

#[test]
fn sizes_are_converted_and_defaults_follow_other_keys() {
    let config = load_overrides(&[
        "limits.upload_mb=3",
        "limits.uploads_per_user_mb=2",
        "data.directory=/srv/data",
        "server.public_base_url=https://matrix.example.org/",
    ])
    .unwrap();
    assert_eq!(config.limits.upload_bytes(), 3 * 1024 * 1024);
    assert_eq!(
        config.limits.uploads_per_user_bytes(),
        Some(2 * 1024 * 1024)
    );
    assert_eq!(config.limits.uploads_total_bytes(), None);
    assert_eq!(config.media_directory(), PathBuf::from("/srv/data/media"));
    assert_eq!(config.public_base_url(), "https://matrix.example.org");

    let config = load_overrides(&["media.directory=/srv/media"]).unwrap();
    assert_eq!(config.media_directory(), PathBuf::from("/srv/media"));
}

#[test]
fn the_base_url_of_a_trial_server_is_its_first_plain_listener_for_clients() {
    let listeners = r#"listeners=[
        { address = "127.0.0.1:9100", serves = ["metrics"] },
        { address = "127.0.0.1:8009" },
    ]"#;
    assert_eq!(
        load_overrides(&[listeners]).unwrap().public_base_url(),
        "http://127.0.0.1:8009"
    );
}

#[test]
fn a_listener_has_the_usual_apis_and_trusts_this_machine_unless_told_otherwise() {
    let config = load(
        r#"
        server.name = "example.org"
        [[listeners]]
        address = "[::]:8448"
        [[listeners]]
        address = "127.0.0.1:9100"
        serves = ["metrics"]
        trusted_proxies = ["10.1.2.3"]
        "#,
    )
    .unwrap();
    let [public, metrics] = &config.listeners[..] else {
        panic!("{:?}", config.listeners)
    };
    assert!(
        public.offers(Api::Client)
            && public.offers(Api::Federation)
            && !public.offers(Api::Metrics)
    );
    assert!(public.trusts("127.0.0.1".parse().unwrap()) && public.trusts("::1".parse().unwrap()));
    assert!(!public.trusts("192.0.2.1".parse().unwrap()));
    assert!(metrics.offers(Api::Metrics) && !metrics.offers(Api::Client));
    assert!(
        metrics.trusts("10.1.2.3".parse().unwrap())
            && !metrics.trusts("127.0.0.1".parse().unwrap())
    );
}

#[test]
fn a_network_contains_the_addresses_of_its_range() {
    for (network, inside, outside) in [
        ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
        ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("::/0", "fd00::1", "127.0.0.1"),
        ("fd00::/8", "fdff::1", "fe00::1"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
    ] {
        let range = Network::parse(network).unwrap();
        assert!(
            range.contains(inside.parse().unwrap()),
            "{inside} in {network}"
        );
        assert!(
            !range.contains(outside.parse().unwrap()),
            "{outside} not in {network}"
        );
    }
    for wrong in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "localhost",
    ] {
        assert_eq!(Network::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn url_previews_follow_both_lists_and_the_switch() {
    let allows = |overrides: &[&str], host| {
        load_overrides(overrides)
            .unwrap()
            .media
            .url_previews
            .allows(host)
    };
    assert!(allows(&[], "example.org"));
    assert!(!allows(
        &["media.url_previews.enabled=false"],
        "example.org"
    ));

    let allow = r#"media.url_previews.allow_hosts=["example.org", "*.example.net"]"#;
    let deny = r#"media.url_previews.deny_hosts=["bad.example.net"]"#;
    for (host, expected) in [
        ("example.org", true),
        ("EXAMPLE.org.", true),
        ("www.example.org", false),
        ("a.b.example.net", true),
        ("example.net", false),
        ("notexample.net", false),
        ("bad.example.net", false),
        ("example.com", false),
    ] {
        assert_eq!(allows(&[allow, deny], host), expected, "{host}");
    }
}

#[test]
fn servers_are_federated_with_by_both_lists_and_the_switch() {
    let allows = |overrides: &[&str], server: &str| {
        let config = load_overrides(overrides).unwrap();
        config.federation.allows(server.try_into().unwrap())
    };
    let on = "federation.enabled=true";
    assert!(!allows(&[], "example.org"));
    assert!(allows(&[on], "example.org"));
    let allow = r#"federation.allow_servers=["example.org", "*.Example.net", "hs?", "[::1]"]"#;
    let deny = r#"federation.deny_servers=["bad.example.net"]"#;
    for (server, expected) in [
        ("example.org", true),
        ("EXAMPLE.org:8448", true),
        ("www.example.org", false),
        ("a.b.example.net", true),
        ("example.net", false),
        ("bad.example.net", false),
        ("Bad.example.net:1", false),
        ("hs1", true),
        ("hs10", false),
        ("[::1]:8448", true),
        ("[::2]:8448", false),
    ] {
        assert_eq!(allows(&[on, allow, deny], server), expected, "{server}");
    }
    assert!(!allows(
        &[on, r#"federation.deny_servers=["*"]"#],
        "example.org"
    ));
}

#[test]
fn every_switch_for_test_rigs_is_warned_about_when_it_is_on() {
    let files = Files::new();
    let ca_file = files.write("ca.pem", "a certificate");
    let defaults = serde_json::to_value(&Config::default().testing).unwrap();
    for key in defaults.as_object().unwrap().keys() {
        let value = match key.as_str() {
            "extra_ca_file" => ca_file.display().to_string(),
            "server_addresses" => r#"{ "hs1" = "127.0.0.1:8448" }"#.to_owned(),
            _ => "true".to_owned(),
        };
        let config = load_overrides(&[&format!("testing.{key}={value}")]).unwrap();
        let [warning] = &config.warnings()[..] else {
            panic!("{key}: {:?}", config.warnings())
        };
        assert!(
            warning.starts_with(&format!("testing.{key} is on")),
            "{warning}"
        );
    }
}

#[test]
fn choices_that_are_rarely_meant_are_warned_about() {
    let warnings = load_overrides(&["registration.mode=open"])
        .unwrap()
        .warnings();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("registration.mode = \"open\"")),
        "{warnings:?}"
    );

    let listeners = r#"listeners=[{ address = "0.0.0.0:80", serves = ["client", "metrics"] }]"#;
    let warnings = load_overrides(&[listeners]).unwrap().warnings();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("the listener on 0.0.0.0:80")),
        "{warnings:?}"
    );
}

#[test]
fn switches_for_test_rigs_override_the_keys_they_are_about() {
    let config = Config::default();
    assert!(config.public_list_needs_login());
    assert!(!config.push_may_reach_private_addresses());
    assert_eq!(
        config.password_hash_cost(),
        HashCost {
            memory_kib: 19 * 1024,
            passes: 2
        }
    );

    let config = load_overrides(&[
        "testing.public_list_without_login=true",
        "testing.allow_private_addresses=true",
        "testing.cheap_password_hashing=true",
    ])
    .unwrap();
    assert!(!config.public_list_needs_login());
    assert!(config.push_may_reach_private_addresses());
    assert_eq!(config.password_hash_cost(), HashCost::CHEAPEST);

    assert!(
        load_overrides(&["push.allow_private_addresses=true"])
            .unwrap()
            .push_may_reach_private_addresses()
    );
}

#[test]
fn the_printed_configuration_loads_to_the_same_again() {
    let config = load_overrides(&[
        r#"server.name="example.org""#,
        r#"server.support.contacts=[{ role = "security", email = "a@example.org" }, { role = "admin", matrix_id = "@b:c" }]"#,
        r#"listeners=[{ address = "0.0.0.0:80" }, { address = "[::1]:81", trusted_proxies = [] }]"#,
        r#"server_notices.room_name="a \"quoted\" \\ name""#,
        "limits.per_user.messages.per_second=0.25",
        r#"testing.server_addresses."hs1:8448"=127.0.0.1:8448"#,
    ])
    .unwrap();
    let printed = config.to_toml();
    assert_eq!(load(&printed).unwrap(), config, "{printed}");
}

#[test]
fn the_printed_configuration_shows_no_secret() {
    let files = Files::new();
    let secret_file = files.write("secret", "from-a-file\n");
    let config = load_overrides(&[
        "registration.shared_secret=written-directly",
        "turn.uris=[\"turn:turn.example.org\"]",
        &format!("turn.shared_secret_file={}", secret_file.display()),
    ])
    .unwrap();
    assert_eq!(
        config.registration.shared_secret.as_ref().unwrap().expose(),
        "written-directly"
    );
    assert_eq!(
        config.turn.shared_secret.as_ref().unwrap().expose(),
        "from-a-file"
    );

    let printed = config.to_toml();
    assert!(
        printed.contains("shared_secret = \"********\""),
        "{printed}"
    );
    assert_eq!(
        printed.matches("shared_secret =").count(),
        1,
        "the one from a file is not printed: {printed}"
    );
    assert!(
        printed.contains(&format!(
            "shared_secret_file = \"{}\"",
            secret_file.display()
        )),
        "{printed}"
    );
    for shown in [printed, format!("{config:?}")] {
        assert!(
            !shown.contains("written-directly") && !shown.contains("from-a-file"),
            "{shown}"
        );
    }
}
