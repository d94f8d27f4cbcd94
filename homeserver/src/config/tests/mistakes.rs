//! Mistakes, and the words in which they are refused: key, value, where, and what is allowed.

use serde_json::Value as Json;

use super::{Files, environment, leaves, load, load_overrides};
use crate::config::{Config, Sources};

/// Loads a file with a server name in its first line, and returns the error with the file's name shortened.
fn refused(content: &str) -> String {
    let files = Files::new();
    let path = files.write(
        "guildhall.toml",
        &format!("server.name = \"example.org\"\n{content}"),
    );
    let error = Config::load(&Sources {
        file: Some(path.clone()),
        ..Sources::default()
    })
    .unwrap_err();
    error
        .to_string()
        .replace(&path.display().to_string(), "guildhall.toml")
}

/// The error that an environment variable gives.
fn refused_variable(name: &str, value: &str) -> String {
    let environment = environment(&[(name, value)]);
    Config::load(&Sources {
        environment,
        ..Sources::default()
    })
    .unwrap_err()
    .to_string()
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    for (content, expected) in [
        (
            "server.nmae = 5",
            "unknown key `server.nmae`, did you mean `server.name`? (guildhall.toml, line 2)",
        ),
        (
            "\n[limit]\nupload_mb = 5",
            "unknown key `limit`, did you mean `limits`? (guildhall.toml, line 3)",
        ),
        (
            "[limits]\n\nupload = 5",
            "unknown key `limits.upload`, did you mean `limits.upload_mb`? (guildhall.toml, line 4)",
        ),
        (
            "[data]\nbanana = 5",
            "unknown key `data.banana` (guildhall.toml, line 3)",
        ),
        // In the wrong section, or in none.
        (
            "upload_mb = 5",
            "unknown key `upload_mb`, did you mean `limits.upload_mb`? (guildhall.toml, line 2)",
        ),
        (
            "server.tls_key_file = \"k\"",
            "unknown key `server.tls_key_file`, did you mean `listeners[].tls_key_file`? (guildhall.toml, line 2)",
        ),
        (
            "public_base_url = \"\"",
            "unknown key `public_base_url`, did you mean `server.public_base_url`? (guildhall.toml, line 2)",
        ),
        // Below the first level, in lists, and in one-line tables.
        (
            "[limits.per_user]\nmessages = { per_secnod = 5 }",
            "unknown key `limits.per_user.messages.per_secnod`, did you mean `limits.per_user.messages.per_second`? \
             (guildhall.toml, line 3)",
        ),
        (
            "[[listeners]]\naddress = \"127.0.0.1:1\"\n[[listeners]]\nadress = \"127.0.0.1:2\"",
            "unknown key `listeners[1].adress`, did you mean `listeners[1].address`? (guildhall.toml, line 5)",
        ),
        // A key below one that has none.
        (
            "\"strange key\" = 1",
            "unknown key `\"strange key\"` (guildhall.toml, line 2)",
        ),
    ] {
        assert_eq!(refused(content), expected, "{content}");
    }
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest_one() {
    for (name, expected) in [
        (
            "GUILDHALL_SERVER_NAME",
            "unknown key `server_name`, did you mean `GUILDHALL_SERVER__NAME`?",
        ),
        (
            "GUILDHALL_SERVER__NMAE",
            "unknown key `server.nmae`, did you mean `GUILDHALL_SERVER__NAME`?",
        ),
        (
            "GUILDHALL_UPLOAD_MB",
            "unknown key `upload_mb`, did you mean `GUILDHALL_LIMITS__UPLOAD_MB`?",
        ),
        (
            "GUILDHALL_SERVER__NAME__FIRST",
            "unknown key `server.name.first`, did you mean `GUILDHALL_SERVER__NAME`?",
        ),
        (
            "GUILDHALL_LISTENERS__0__ADDRESS",
            "unknown key `listeners.0.address`, did you mean `GUILDHALL_LISTENERS`?",
        ),
    ] {
        assert_eq!(
            refused_variable(name, "x"),
            format!("{expected} (environment variable {name})")
        );
    }
}

#[test]
fn a_wrong_type_is_refused_with_key_value_and_what_is_allowed() {
    for (content, expected) in [
        ("server = 5", None),
        ("presence = 5", Some("`presence` is 5, but must be a table")),
        (
            "presence.enabled = \"yes\"",
            Some("`presence.enabled` is \"yes\", but must be true or false"),
        ),
        (
            "limits.upload_mb = \"5 MB\"",
            Some("`limits.upload_mb` is \"5 MB\", but must be a whole number from 1 to 1048576"),
        ),
        (
            "limits.upload_mb = 2.5",
            Some("`limits.upload_mb` is 2.5, but must be a whole number from 1 to 1048576"),
        ),
        (
            "limits.upload_mb = [1]",
            Some("`limits.upload_mb` is a list, but must be a whole number from 1 to 1048576"),
        ),
        (
            "limits.upload_mb = 99999999999999999999",
            Some(
                "`limits.upload_mb` is 100000000000000000000, but must be a whole number from 1 to 1048576",
            ),
        ),
        (
            "data.directory = true",
            Some("`data.directory` is true, but must be text in quotes"),
        ),
        (
            "turn.uris = \"turn:a\"",
            Some("`turn.uris` is \"turn:a\", but must be a list in square brackets"),
        ),
        (
            "turn.uris = [5]",
            Some("`turn.uris[0]` is 5, but must be text in quotes"),
        ),
        (
            "listeners = { address = \"127.0.0.1:1\" }",
            Some("`listeners` is a table, but must be a list in square brackets"),
        ),
        (
            "limits.per_user.joins = 5",
            Some("`limits.per_user.joins` is 5, but must be a table"),
        ),
        (
            "rooms.create = true",
            Some("`rooms.create` is true, but must be one of \"admins\", \"anyone\""),
        ),
    ] {
        let Some(expected) = expected else {
            assert!(
                refused(content).contains("is not valid TOML: line 2, column "),
                "{}",
                refused(content)
            );
            continue;
        };
        assert_eq!(
            refused(content),
            format!("{expected} (guildhall.toml, line 2)"),
            "{content}"
        );
    }
}

#[test]
fn a_bad_value_is_refused_with_key_value_and_what_is_allowed() {
    let one_of = "but must be one of \"closed\", \"open\", \"token\", \"open-loopback\"";
    let frequency =
        "but must be a number from 0.0001 to 1000000, such as 0.5 for one every two seconds";
    for (content, expected) in [
        ("registration.mode = \"public\"", format!("`registration.mode` is \"public\", {one_of}")),
        ("registration.mode = \"opne\"", format!("`registration.mode` is \"opne\", {one_of}; did you mean \"open\"?")),
        ("limits.upload_mb = 0", "`limits.upload_mb` is 0, but must be a whole number from 1 to 1048576".into()),
        ("limits.upload_mb = -1", "`limits.upload_mb` is -1, but must be a whole number from 1 to 1048576".into()),
        ("limits.per_user.joins.per_second = 0", format!("`limits.per_user.joins.per_second` is 0, {frequency}")),
        ("limits.per_user.joins.per_second = -0.5", format!("`limits.per_user.joins.per_second` is -0.5, {frequency}")),
        ("limits.per_user.joins.per_second = nan", format!("`limits.per_user.joins.per_second` is NaN, {frequency}")),
        ("limits.per_user.joins.per_second = inf", format!("`limits.per_user.joins.per_second` is inf, {frequency}")),
        (
            "limits.per_user.joins.burst = 0",
            "`limits.per_user.joins.burst` is 0, but must be a whole number from 1 to 1000000".into(),
        ),
        ("rooms.default_version = \"5\"", "`rooms.default_version` is \"5\", but must be a room version from \"6\" to \"12\"".into()),
        (
            "rooms.default_version = \"13\"",
            "`rooms.default_version` is \"13\", but must be a room version from \"6\" to \"12\"".into(),
        ),
        (
            "listeners = [{ address = \"localhost:8008\" }]",
            "`listeners[0].address` is \"localhost:8008\", but must be an IP address with a port, such as \
             \"127.0.0.1:8008\" or \"[::]:8448\""
                .into(),
        ),
        (
            "listeners = [{ address = \"127.0.0.1:1\", trusted_proxies = [\"10.0.0.0/40\"] }]",
            "`listeners[0].trusted_proxies[0]` is \"10.0.0.0/40\", but must be an IP address or a range such as \
             \"10.0.0.0/8\" or \"fd00::/8\""
                .into(),
        ),
        (
            "server.public_base_url = \"matrix.example.org\"",
            "`server.public_base_url` is \"matrix.example.org\", but must be a URL such as \
             \"https://matrix.example.org\", without ? and #"
                .into(),
        ),
        (
            "turn.uris = [\"https://turn.example.org\"]",
            "`turn.uris[0]` is \"https://turn.example.org\", but must be an address such as \
             \"turn:turn.example.org:3478?transport=udp\" or \"turns:…\""
                .into(),
        ),
        (
            "logging.level = \"loud\"",
            "`logging.level` is \"loud\", but must be a level (error, warn, info, debug, trace) or a list such as \
             \"info,homeserver::sync=debug\""
                .into(),
        ),
        ("data.directory = \"\"", "`data.directory` is \"\", but must be a path, not empty".into()),
        (
            "testing.server_addresses = { \"not a name\" = \"127.0.0.1:1\" }",
            "`a key in testing.server_addresses` is \"not a name\", but must be a server name such as \"example.org\" \
             or \"example.org:8448\", without https://"
                .into(),
        ),
        (
            "testing.server_addresses = { \"hs1:1\" = \"hs1\" }",
            "`testing.server_addresses.\"hs1:1\"` is \"hs1\", but must be an IP address with a port, such as \
             \"127.0.0.1:8008\" or \"[::]:8448\""
                .into(),
        ),
        (
            "server_notices.user_localpart = \"Some One\"",
            "`server_notices.user_localpart` is \"Some One\", but must be a user's name of a-z, 0-9 and . _ = - / +, \
             no longer than 255 bytes together with the server name"
                .into(),
        ),
        (
            "server.support.contacts = [{ role = \"admin\" }]",
            "`server.support.contacts[0]` is without an address, but must be given a matrix_id or an email".into(),
        ),
        ("listeners = []", "`listeners` is empty, but must be at least one listener".into()),
        (
            "listeners = [{ address = \"127.0.0.1:1\", serves = [] }]",
            "`listeners[0].serves` is empty, but must be one or more of client, federation, metrics".into(),
        ),
        (
            "listeners = [{ address = \"127.0.0.1:1\" }, { address = \"127.0.0.1:1\" }]",
            "`listeners[1].address` is \"127.0.0.1:1\", but must be another address than those of the listeners before"
                .into(),
        ),
    ] {
        assert_eq!(refused(content), format!("{expected} (guildhall.toml, line 2)"), "{content}");
    }
}

#[test]
fn what_is_no_server_and_no_key_is_refused_where_other_servers_are_named() {
    let old_key = |id: &str, public_key: &str| {
        format!(
            "federation.old_verify_keys = [{{ id = \"{id}\", public_key = \"{public_key}\", expired_unix_seconds = 1 }}]"
        )
    };
    for (content, expected) in [
        (
            "federation.deny_servers = [\"example.org:8448\"]".to_owned(),
            "`federation.deny_servers[0]` is \"example.org:8448\", but must be a server name without a port, in which * \
             stands for any text and ? for any character, such as \"*.example.org\"",
        ),
        (
            "federation.trusted_notaries = [\"https://matrix.org\"]".to_owned(),
            "`federation.trusted_notaries[0]` is \"https://matrix.org\", but must be a server name such as \
             \"example.org\" or \"example.org:8448\", without https://",
        ),
        (
            old_key("a_1", "x"),
            "`federation.old_verify_keys[0].id` is \"a_1\", but must be the ID of a signing key, such as \"ed25519:a_1\"",
        ),
        (
            old_key("ed25519:a_1", "x"),
            "`federation.old_verify_keys[0].public_key` is \"x\", but must be a public ed25519 key in base64",
        ),
    ] {
        assert_eq!(
            refused(&content),
            format!("{expected} (guildhall.toml, line 2)"),
            "{content}"
        );
    }
}

#[test]
fn a_bad_server_name_is_refused_wherever_it_comes_from() {
    let allowed = "but must be a server name such as \"example.org\" or \"example.org:8448\", without https://";
    for name in [
        "",
        "https://example.org",
        "example.org:port",
        "exa mple.org",
        "@alice:example.org",
    ] {
        let expected = format!(
            "`server.name` is {name:?}, {allowed} (environment variable GUILDHALL_SERVER__NAME)"
        );
        assert_eq!(refused_variable("GUILDHALL_SERVER__NAME", name), expected);
    }
    let error = load_overrides(&["server.name=https://example.org"])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("`server.name` is \"https://example.org\", {allowed} (option -O)")
    );
}

#[test]
fn a_file_without_a_server_name_is_refused() {
    let expected = "`server.name` is missing: set it to the domain in your users' names, such as name = \
                    \"example.org\"; it cannot be changed later";
    assert_eq!(load("").unwrap_err().to_string(), expected);
    assert_eq!(
        load("[server]\npublic_base_url = \"https://a.org\"")
            .unwrap_err()
            .to_string(),
        expected
    );
}

#[test]
fn a_file_that_is_no_toml_is_refused_at_its_line_without_quoting_it() {
    let error = refused("[registration]\nshared_secret = \"hunter2\n");
    assert!(
        error.starts_with("guildhall.toml is not valid TOML: line 3, column "),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test] // Zero and huge values of every whole number there is, so that a new one cannot be without a range.
fn no_whole_number_may_be_zero_negative_or_huge() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut tried = 0;
    for (key, _) in leaves(&defaults).iter().filter(|(_, value)| value.is_u64()) {
        for value in ["0", "-1", "9223372036854775807"] {
            let error = load_overrides(&[&format!("{key}={value}")])
                .unwrap_err()
                .to_string();
            let expected = format!("`{key}` is {value}, but must be a whole number from ");
            assert!(error.starts_with(&expected), "{error}");
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} were found");
}

#[test] // A field whose type refuses nothing would take these.
fn no_text_may_be_empty() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let texts = leaves(&defaults);
    let texts = texts
        .iter()
        .filter(|(key, value)| !key.contains('[') && (value.is_string() || value.is_null()));
    for (key, _) in texts {
        let error = load_overrides(&[&format!("{key}=\"\"")])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(&format!("`{key}` is ")), "{error}");
    }
}

#[test]
fn both_files_of_tls_must_be_there() {
    let files = Files::new();
    let file = files.write("file.pem", "pem");
    let missing = file.with_file_name("missing.pem");
    let listener = |keys: &str| {
        refused(&format!(
            "listeners = [{{ address = \"127.0.0.1:1\", {keys} }}]"
        ))
    };

    assert_eq!(
        listener(&format!("tls_certificate_file = {file:?}")),
        "`listeners[0].tls_key_file` is missing: tls_certificate_file is set, and TLS needs its private key"
    );
    assert_eq!(
        listener(&format!("tls_key_file = {file:?}")),
        "`listeners[0].tls_certificate_file` is missing: tls_key_file is set, and TLS needs its certificate"
    );
    let error = listener(&format!(
        "tls_certificate_file = {file:?}, tls_key_file = {missing:?}"
    ));
    assert!(
        error.starts_with(&format!(
            "`listeners[0].tls_key_file` is {missing:?}, which cannot be read: "
        )),
        "{error}"
    );
    assert!(error.ends_with(" (guildhall.toml, line 2)"), "{error}");

    let content = format!(
        "server.name = \"a.org\"\nlisteners = [{{ address = \"127.0.0.1:1\", tls_certificate_file = {file:?}, \
         tls_key_file = {file:?} }}]"
    );
    assert_eq!(
        load(&content).unwrap().listeners[0].tls_key_file,
        Some(file)
    );
}

#[test]
fn a_listener_needs_an_address() {
    assert_eq!(
        refused("[[listeners]]\nserves = [\"client\"]"),
        "`listeners[0].address` is missing: `listeners[0]` does not work without it (guildhall.toml, line 2)"
    );
}

#[test]
fn files_that_keys_name_must_be_readable() {
    for key in [
        "registration.shared_secret_file",
        "turn.shared_secret_file",
        "testing.extra_ca_file",
        "appservices.registration_files",
        "appservices.registration_directory",
    ] {
        let value = if key.ends_with("files") {
            "[\"./no/such\"]"
        } else {
            "\"./no/such\""
        };
        let error = refused(&format!("{key} = {value}"));
        assert!(error.starts_with(&format!("`{key}")), "{error}");
        assert!(
            error.contains("is \"./no/such\", which cannot be read: "),
            "{error}"
        );
    }
    let error = refused("registration.shared_secret_file = \"/\"");
    assert!(
        error.starts_with("`registration.shared_secret_file` is \"/\", which cannot be read: "),
        "{error}"
    );
}

#[test]
fn a_secret_is_given_once_and_is_neither_empty_nor_the_mask() {
    let files = Files::new();
    let file = files.write("secret", "something");
    assert_eq!(
        refused(&format!(
            "registration = {{ shared_secret = \"a\", shared_secret_file = {file:?} }}"
        )),
        format!(
            "`registration.shared_secret_file` is {file:?}, but must be left out if `registration.shared_secret` is \
             set: only one of them (guildhall.toml, line 2)"
        )
    );
    for content in ["", "\n", "********\n", &"x".repeat(4097)] {
        let file = files.write("secret", content);
        assert_eq!(
            refused(&format!("registration.shared_secret_file = {file:?}")),
            format!(
                "`registration.shared_secret_file` is {file:?}, but must be a file with nothing but the secret, 1 to \
                 4096 bytes (guildhall.toml, line 2)"
            )
        );
    }
    let file = files.write("secret", &"x".repeat(4096));
    assert!(
        load_overrides(&[&format!(
            "registration.shared_secret_file={}",
            file.display()
        )])
        .is_ok()
    );

    let allowed = "but must be the secret itself as text, not empty and not the mask of a printed configuration";
    for value in ["\"\"", "\"********\""] {
        let error = refused(&format!("registration.shared_secret = {value}"));
        assert_eq!(
            error,
            format!("`registration.shared_secret` is ********, {allowed} (guildhall.toml, line 2)")
        );
    }
}

#[test]
fn a_secret_of_the_wrong_type_is_not_shown() {
    let error = refused("registration.shared_secret = 8674665223082153551");
    assert_eq!(
        error,
        "`registration.shared_secret` is ********, but must be text in quotes (guildhall.toml, line 2)"
    );
}

#[test]
fn a_relay_and_its_secret_need_each_other() {
    assert_eq!(
        refused("turn.uris = [\"turn:turn.example.org\"]"),
        "`turn.shared_secret` is missing: turn.uris is set, and the relay wants passwords made from a secret"
    );
    assert_eq!(
        refused("turn.shared_secret = \"a\""),
        "`turn.uris` is missing: turn.shared_secret is set, but no relay to use it with"
    );
}

#[test]
fn password_hashing_cannot_be_made_cheap_by_accident() {
    for (overrides, accepted) in [
        (
            ["passwords.hash_memory_mb=7", "passwords.hash_passes=5"],
            true,
        ),
        (
            ["passwords.hash_memory_mb=7", "passwords.hash_passes=4"],
            false,
        ),
        (
            ["passwords.hash_memory_mb=35", "passwords.hash_passes=1"],
            true,
        ),
        (
            ["passwords.hash_memory_mb=34", "passwords.hash_passes=1"],
            false,
        ),
    ] {
        assert_eq!(
            load_overrides(&overrides).is_ok(),
            accepted,
            "{overrides:?}"
        );
    }
    let tail = "cheaper hashes are cheap to crack; for test rigs there is testing.cheap_password_hashing \
                (guildhall.toml, line 2)";
    assert_eq!(
        refused("passwords.hash_passes = 1"),
        format!(
            "`passwords.hash_passes` is 1, but must be at least 2, as passwords.hash_memory_mb is 19: {tail}"
        )
    );
    assert_eq!(
        refused("passwords.hash_memory_mb = 8"),
        format!(
            "`passwords.hash_memory_mb` is 8, but must be at least 18, as passwords.hash_passes is 2: {tail}"
        )
    );
}

#[test]
fn every_default_is_itself_allowed() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    for (key, value) in leaves(&defaults) {
        if !key.contains('[') && !matches!(value, Json::Null | Json::Object(_)) {
            let text = if value == &serde_json::json!({}) {
                "{}".to_owned()
            } else {
                value.to_string()
            };
            let loaded = load_overrides(&[&format!("{key}={text}")]);
            assert!(loaded.is_ok(), "{key}: {}", loaded.unwrap_err());
        }
    }
}
