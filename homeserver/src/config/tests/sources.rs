//! Where values come from, and which wins.

use std::ffi::OsString;

use super::{Files, environment, load};
use crate::config::{Config, ConfigError, Sources};

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&Sources {
        environment: environment(variables),
        ..Sources::default()
    })
}

#[test]
fn the_command_line_overrides_the_environment_and_that_the_file() {
    let files = Files::new();
    let content = "server.name = \"example.org\"\n[limits]\nupload_mb = 1\nrequest_body_mb = 1\nconnections_max = 1";
    let sources = Sources {
        file: Some(files.write("guildhall.toml", content)),
        environment: environment(&[
            ("GUILDHALL_LIMITS__REQUEST_BODY_MB", "2"),
            ("GUILDHALL_LIMITS__CONNECTIONS_MAX", "2"),
        ]),
        overrides: vec![
            "limits.connections_max=3".to_owned(),
            "limits.connections_max=4".to_owned(),
        ],
    };
    let limits = Config::load(&sources).unwrap().limits;
    assert_eq!(
        (
            limits.upload_mb,
            limits.request_body_mb,
            limits.connections_max
        ),
        (1, 2, 4)
    );
    assert_eq!(
        limits.sync_wait_seconds_max,
        Config::default().limits.sync_wait_seconds_max
    );
}

#[test]
fn one_half_of_a_rate_can_be_set_alone() {
    let limits = from_environment(&[("GUILDHALL_LIMITS__PER_USER__JOINS__BURST", "7")])
        .unwrap()
        .limits;
    let defaults = Config::default().limits.per_user.joins;
    assert_eq!(
        (
            limits.per_user.joins.per_second,
            limits.per_user.joins.burst
        ),
        (defaults.per_second, 7)
    );
}

#[test]
fn environment_values_are_toml_where_they_can_be_and_text_otherwise() {
    let config = from_environment(&[
        ("GUILDHALL_SERVER__NAME", "example.org"),
        (
            "GUILDHALL_SERVER__ADMIN_CONTACT",
            "\"mailto:a@example.org\"",
        ),
        ("GUILDHALL_PRESENCE__ENABLED", "false"),
        ("GUILDHALL_LIMITS__PER_USER__JOINS__PER_SECOND", "3"),
        ("GUILDHALL_APPSERVICES__REGISTRATION_FILES", "[]"),
        ("GUILDHALL_LISTENERS", r#"[{ address = "0.0.0.0:8008" }]"#),
        (
            "GUILDHALL_TESTING__SERVER_ADDRESSES",
            r#"{ "hs1:8448" = "127.0.0.1:1" }"#,
        ),
        ("PATH", "not ours"),
    ])
    .unwrap();
    assert_eq!(config.server.name, "example.org");
    assert_eq!(
        config.server.admin_contact.as_deref(),
        Some("mailto:a@example.org")
    );
    assert!(!config.presence.enabled);
    assert!((config.limits.per_user.joins.per_second - 3.0).abs() < f64::EPSILON);
    assert_eq!(config.listeners[0].address.to_string(), "0.0.0.0:8008");
    let addresses = Vec::from_iter(&config.testing.server_addresses);
    assert_eq!(addresses.len(), 1);
    assert_eq!(addresses[0].0.as_str(), "hs1:8448");
}

#[test] // Digits are a number in TOML, and a good part of generated secrets and some names are digits.
fn what_looks_like_a_number_is_text_where_text_is_wanted() {
    for (text, expected) in [
        ("12345", "12345"),
        ("007", "007"),
        ("true", "true"),
        ("1e5", "1e5"),
        ("[1]", "[1]"),
        ("\"12\"", "12"),
    ] {
        let config = from_environment(&[("GUILDHALL_REGISTRATION__SHARED_SECRET", text)]).unwrap();
        assert_eq!(
            config.registration.shared_secret.unwrap().expose(),
            expected
        );
    }
}

#[test]
fn an_override_may_quote_parts_of_its_key_and_have_equal_signs_in_its_value() {
    let config = Config::load(&Sources {
        overrides: vec![
            r#"testing.server_addresses."hs1:8448" = 127.0.0.1:1"#.to_owned(),
            "registration.shared_secret=a=b=".to_owned(),
        ],
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(config.testing.server_addresses.len(), 1);
    assert_eq!(config.registration.shared_secret.unwrap().expose(), "a=b=");
}

#[test]
fn an_override_without_a_key_or_a_value_is_refused() {
    for (text, shown) in [
        ("limits.upload_mb", "limits.upload_mb"),
        ("=5", "=…"),
        ("a b=secret", "a b=…"),
        ("a.=secret", "a.=…"),
        ("#a=secret", "#a=…"),
    ] {
        let error = Config::load(&Sources {
            overrides: vec![text.to_owned()],
            ..Sources::default()
        })
        .unwrap_err()
        .to_string();
        assert_eq!(
            error,
            format!("-O {shown}: must be key=value, such as limits.upload_mb=50")
        );
    }
}

#[test]
fn the_file_can_be_named_in_the_environment_but_the_command_line_wins() {
    let files = Files::new();
    let [one, two] = ["one", "two"]
        .map(|name| files.write(name, &format!("server.name = \"{name}.example.org\"")));
    let environment = vec![("GUILDHALL_CONFIG".into(), one.into_os_string())];
    let sources = Sources {
        environment,
        ..Sources::default()
    };
    assert_eq!(
        Config::load(&sources).unwrap().server.name,
        "one.example.org"
    );
    let sources = Sources {
        file: Some(two),
        ..sources
    };
    assert_eq!(
        Config::load(&sources).unwrap().server.name,
        "two.example.org"
    );
}

#[test]
fn a_file_that_is_not_there_is_an_error_not_a_trial_server() {
    let file = Some("./there/is/no/such.toml".into());
    let error = Config::load(&Sources {
        file,
        ..Sources::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.starts_with("cannot read the configuration file ./there/is/no/such.toml: "),
        "{error}"
    );
}

#[test]
fn secrets_are_read_from_files_without_the_line_break_at_the_end() {
    let files = Files::new();
    for (content, expected) in [
        ("secret\n", "secret"),
        ("secret", "secret"),
        (" a b \r\n", " a b "),
    ] {
        let path = files.write("secret", content);
        let content =
            format!("server.name = \"example.org\"\nregistration.shared_secret_file = {path:?}");
        let config = load(&content).unwrap();
        assert_eq!(
            config.registration.shared_secret.unwrap().expose(),
            expected
        );
        assert_eq!(config.registration.shared_secret_file, Some(path));
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_refused_without_showing_its_value() {
    use std::os::unix::ffi::OsStringExt as _;

    let value = OsString::from_vec(vec![b's', 0xff]);
    let environment = vec![("GUILDHALL_REGISTRATION__SHARED_SECRET".into(), value)];
    let error = Config::load(&Sources {
        environment,
        ..Sources::default()
    })
    .unwrap_err()
    .to_string();
    assert_eq!(
        error,
        "the environment variable GUILDHALL_REGISTRATION__SHARED_SECRET is not valid UTF-8"
    );

    let foreign = vec![("PATH".into(), OsString::from_vec(vec![0xff]))];
    assert!(
        Config::load(&Sources {
            environment: foreign,
            ..Sources::default()
        })
        .is_ok()
    );
}
