//! Registration files: read once, at the start. A mistake in one stops the start and is named with file and
//! line, because a bridge that half works loses messages.
//!
//! Spec: application service API, "Registration".

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use ruma::{ServerName, UserId};

use super::Registration;
use crate::config::Appservices as Config;

/// The largest registration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a registration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The file, or the directory, cannot be read.
    #[error("cannot read the registration {}: {cause}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// It is not YAML, or not of the shape of a registration.
    #[error("the registration {}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A value that cannot be used.
    #[error("the registration {}, line {line}: `{key}` {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Where the key stands, counted from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Reads every registration that the configuration names.
///
/// # Errors
/// The first mistake found.
pub fn load(config: &Config, server: &ServerName) -> Result<Vec<Registration>, RegistrationError> {
    let mut list = Vec::new();
    let mut seen = BTreeMap::new();
    for path in files(config)? {
        let text = text(&path).map_err(|cause| RegistrationError::File {
            path: path.clone(),
            cause,
        })?;
        let registration = parse(&path, &text, server)?;
        for (key, value) in [
            ("id", &registration.id),
            ("as_token", &registration.as_token),
        ] {
            if let Some(other) = seen.insert((key, value.clone()), path.clone()) {
                let reason = format!("is the same as in {}", other.display());
                return Err(refuse(&path, &text, key, reason));
            }
        }
        list.push(registration);
    }
    Ok(list)
}

/// The files that are named, and those in the directory that is named, by name.
fn files(config: &Config) -> Result<Vec<PathBuf>, RegistrationError> {
    let mut files = config.registration_files.clone();
    let Some(directory) = &config.registration_directory else {
        return Ok(files);
    };
    let unreadable = |cause| RegistrationError::File {
        path: directory.clone(),
        cause,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !files.contains(&path) {
            found.push(path);
        }
    }
    found.sort();
    files.append(&mut found);
    Ok(files)
}

fn text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    fs::read_to_string(path)
}

fn parse(path: &Path, text: &str, server: &ServerName) -> Result<Registration, RegistrationError> {
    let mut registration: Registration = serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        RegistrationError::Syntax {
            path: path.to_owned(),
            line: error.location().map_or(1, |location| location.line()),
            reason: one_line(&error.to_string()),
        }
    })?;
    let refuse = |key, reason: &str| Err(refuse(path, text, key, reason.to_owned()));
    if registration.id.is_empty() {
        return refuse("id", "is empty");
    }
    for (key, token) in [
        ("as_token", &registration.as_token),
        ("hs_token", &registration.hs_token),
    ] {
        // It goes into a header.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(
                key,
                "must be a text of printable ASCII characters without spaces",
            );
        }
    }
    let sender = UserId::parse(format!("@{}:{server}", registration.sender_localpart));
    if !sender.is_ok_and(|sender| sender.localpart() == registration.sender_localpart) {
        return refuse(
            "sender_localpart",
            "must be a user's name, without @ and server name",
        );
    }
    let url = registration.url.take();
    registration.url = url
        .map(|url| url.trim_end_matches('/').to_owned())
        .filter(|url| !url.is_empty());
    if let Some(url) = &registration.url {
        let parsed = reqwest::Url::parse(url);
        let usable = parsed.is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !usable {
            return refuse(
                "url",
                "must be null or an http or https URL without user name, query and fragment",
            );
        }
    }
    Ok(registration)
}

fn refuse(path: &Path, text: &str, key: &'static str, reason: String) -> RegistrationError {
    let written = |line: &str| {
        let line = line.trim_start_matches(['"', '\'', '{', ' ']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    RegistrationError::Value {
        path: path.to_owned(),
        line: text.lines().position(written).map_or(1, |line| line + 1),
        key,
        reason,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    const BRIDGE: &str = "\
id: bridge
url: http://127.0.0.1:29318/
as_token: as
hs_token: hs
sender_localpart: bridgebot
rate_limited: false
namespaces:
  users:
  - regex: '@bridge_.*:hs1'
    exclusive: true
  aliases: null
de.sorunome.msc2409.push_ephemeral: true
org.matrix.msc3202: true
protocols: null
a.key.of.the.bridge: [1, 2]
";

    fn refused(text: &str) -> String {
        let error = parse(Path::new("bridge.yaml"), text, server_name!("hs1"));
        error.unwrap_err().to_string()
    }

    #[test]
    fn a_bridge_is_read_with_keys_that_nobody_here_knows() {
        let read = parse(Path::new("bridge.yaml"), BRIDGE, server_name!("hs1")).unwrap();
        assert_eq!(read.url.as_deref(), Some("http://127.0.0.1:29318"));
        assert_eq!(read.rate_limited, Some(false));
        assert!(read.push_ephemeral && read.encryption && !read.receive_ephemeral);
        let user = |name| UserId::parse(name).unwrap();
        assert!(read.acts_as(&user("@bridge_1:hs1")) && read.acts_as(&user("@bridgebot:hs1")));
        assert!(!read.acts_as(&user("@alice_bridge_1:hs1")));
    }

    #[test]
    fn no_url_and_an_empty_one_are_the_same() {
        for url in ["null", "\"\"", "~"] {
            let text = BRIDGE.replace("http://127.0.0.1:29318/", url);
            let read = parse(Path::new("bridge.yaml"), &text, server_name!("hs1")).unwrap();
            assert_eq!(read.url, None, "{url}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_file_and_line() {
        let pattern = refused(&BRIDGE.replace("@bridge_.*", "@bridge_(.*"));
        assert!(
            pattern.starts_with("the registration bridge.yaml, line 9: ")
                && pattern.contains("`@bridge_(.*:hs1` cannot be used: unclosed group"),
            "{pattern}"
        );
        let missing = refused(&BRIDGE.replace("as_token: as\n", ""));
        assert!(missing.contains("as_token"), "{missing}");
        let broken = refused(&BRIDGE.replace("hs_token: hs", "hs_token: [hs"));
        assert!(
            broken.starts_with("the registration bridge.yaml, line "),
            "{broken}"
        );
        assert_eq!(
            refused(&BRIDGE.replace("http://127.0.0.1:29318/", "unix:/run/bridge")),
            "the registration bridge.yaml, line 2: `url` must be null or an http or https URL without user \
             name, query and fragment"
        );
        assert!(
            refused(&BRIDGE.replace("hs_token: hs", "hs_token: 'h s'"))
                .contains("line 4: `hs_token`")
        );
        assert!(
            refused(&BRIDGE.replace("bridgebot", "'@bridgebot:hs1'"))
                .contains("line 5: `sender_localpart`")
        );
    }

    #[test]
    fn two_services_do_not_share_an_id_or_a_token() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
        let config = Config {
            registration_directory: Some(directory.path().to_owned()),
            ..Config::default()
        };
        write("a.yaml", BRIDGE.to_owned());
        write("b.yml", BRIDGE.replace("as_token: as", "as_token: other"));
        write("c.txt", "no registration".to_owned());
        let error = load(&config, server_name!("hs1")).unwrap_err().to_string();
        assert!(
            error.contains("b.yml, line 1: `id` is the same as in"),
            "{error}"
        );
        write("b.yml", BRIDGE.replace("id: bridge", "id: other"));
        let error = load(&config, server_name!("hs1")).unwrap_err().to_string();
        assert!(
            error.contains("b.yml, line 3: `as_token` is the same as in"),
            "{error}"
        );
        write(
            "b.yml",
            BRIDGE
                .replace("id: bridge", "id: x")
                .replace("as_token: as", "as_token: y"),
        );
        assert_eq!(load(&config, server_name!("hs1")).unwrap().len(), 2);
    }
}
