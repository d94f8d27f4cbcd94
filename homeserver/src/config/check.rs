//! What no single value can tell: keys that need each other, and files that must be there. Reads the secret files.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use ruma::UserId;

use super::{
    Config, Listener, Passwords,
    error::{ConfigError, Origin},
    tree::Node,
    values::{SECRET_BYTES_MAX, Secret},
};

/// Checks what the parts of a configuration say about each other, and puts the secrets of `*_file` keys in place.
pub(super) fn check(config: &mut Config, tree: &Node) -> Result<(), ConfigError> {
    let check = Check { tree };
    check.contacts(config)?;
    check.listeners(&config.listeners)?;
    check.passwords(&config.passwords)?;
    check.notices(config)?;

    let registration = &mut config.registration;
    let secret_file = registration.shared_secret_file.as_deref();
    check.secret(
        "registration.shared_secret",
        &mut registration.shared_secret,
        secret_file,
    )?;
    let turn = &mut config.turn;
    check.secret(
        "turn.shared_secret",
        &mut turn.shared_secret,
        turn.shared_secret_file.as_deref(),
    )?;
    if !turn.uris.is_empty() && turn.shared_secret.is_none() {
        return Err(missing(
            "turn.shared_secret",
            "turn.uris is set, and the relay wants passwords made from a secret",
        ));
    }
    if turn.uris.is_empty() && turn.shared_secret.is_some() {
        return Err(missing(
            "turn.uris",
            "turn.shared_secret is set, but no relay to use it with",
        ));
    }
    if let Some(path) = &config.testing.extra_ca_file {
        check.readable("testing.extra_ca_file", path)?;
    }
    for (index, path) in config.appservices.registration_files.iter().enumerate() {
        check.readable(&format!("appservices.registration_files[{index}]"), path)?;
    }
    if let Some(path) = &config.appservices.registration_directory {
        let key = "appservices.registration_directory";
        fs::read_dir(path).map_err(|cause| check.unreadable(key, path, cause))?;
    }
    Ok(())
}

fn missing(key: &str, reason: &str) -> ConfigError {
    ConfigError::Missing {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

struct Check<'t> {
    tree: &'t Node,
}

impl Check<'_> {
    /// Where `key` was written. Items of a list are as good as the list.
    fn origin(&self, key: &str) -> Origin {
        let list = key.split('[').next().unwrap_or(key);
        let path: Vec<&str> = list.split('.').collect();
        self.tree
            .find(&path)
            .expect("a checked key is in the tree of defaults")
            .origin
            .clone()
    }

    fn refuse(&self, key: &str, value: &str, allowed: &str) -> ConfigError {
        ConfigError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            allowed: allowed.to_owned(),
            origin: self.origin(key),
        }
    }

    fn contacts(&self, config: &Config) -> Result<(), ConfigError> {
        for (index, contact) in config.server.support.contacts.iter().enumerate() {
            if contact.matrix_id.is_none() && contact.email.is_none() {
                let key = format!("server.support.contacts[{index}]");
                return Err(self.refuse(
                    &key,
                    "without an address",
                    "given a matrix_id or an email",
                ));
            }
        }
        Ok(())
    }

    fn listeners(&self, listeners: &[Listener]) -> Result<(), ConfigError> {
        if listeners.is_empty() {
            return Err(self.refuse("listeners", "empty", "at least one listener"));
        }
        for (index, listener) in listeners.iter().enumerate() {
            let key = |name: &str| format!("listeners[{index}].{name}");
            if listener.serves.is_empty() {
                return Err(self.refuse(
                    &key("serves"),
                    "empty",
                    "one or more of client, federation, metrics",
                ));
            }
            let taken = listeners
                .iter()
                .take(index)
                .any(|other| other.address == listener.address);
            if taken && listener.address.port() != 0 {
                let value = format!("\"{}\"", listener.address);
                return Err(self.refuse(
                    &key("address"),
                    &value,
                    "another address than those of the listeners before",
                ));
            }
            match (&listener.tls_certificate_file, &listener.tls_key_file) {
                (Some(certificate), Some(private_key)) => {
                    self.readable(&key("tls_certificate_file"), certificate)?;
                    self.readable(&key("tls_key_file"), private_key)?;
                }
                (Some(_), None) => {
                    return Err(missing(
                        &key("tls_key_file"),
                        "tls_certificate_file is set, and TLS needs its private key",
                    ));
                }
                (None, Some(_)) => {
                    return Err(missing(
                        &key("tls_certificate_file"),
                        "tls_key_file is set, and TLS needs its certificate",
                    ));
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn passwords(&self, passwords: &Passwords) -> Result<(), ConfigError> {
        let product = passwords.hash_memory_mb * passwords.hash_passes;
        if product >= Passwords::MB_PASSES_MIN {
            return Ok(());
        }
        let [memory, passes] = ["passwords.hash_memory_mb", "passwords.hash_passes"];
        let (key, value, other) = match self.origin(memory) {
            Origin::Default => (passes, passwords.hash_passes, memory),
            _ => (memory, passwords.hash_memory_mb, passes),
        };
        let allowed = format!(
            "at least {}, as {other} is {}: cheaper hashes are cheap to crack; for test rigs there is \
             testing.cheap_password_hashing",
            Passwords::MB_PASSES_MIN.div_ceil(product / value),
            product / value
        );
        Err(self.refuse(key, &value.to_string(), &allowed))
    }

    fn notices(&self, config: &Config) -> Result<(), ConfigError> {
        let localpart = &config.server_notices.user_localpart;
        let user_id = UserId::parse(format!("@{localpart}:{}", config.server.name));
        if user_id.is_ok_and(|user_id| {
            user_id.localpart() == localpart && user_id.validate_strict().is_ok()
        }) {
            return Ok(());
        }
        let allowed = "a user's name of a-z, 0-9 and . _ = - / +, no longer than 255 bytes together with the server name";
        Err(self.refuse(
            "server_notices.user_localpart",
            &format!("{localpart:?}"),
            allowed,
        ))
    }

    /// Reads a secret from its file, if it has one.
    fn secret(
        &self,
        key: &str,
        secret: &mut Option<Secret>,
        file: Option<&Path>,
    ) -> Result<(), ConfigError> {
        let Some(path) = file else { return Ok(()) };
        let file_key = format!("{key}_file");
        let quoted = format!("{:?}", path.display().to_string());
        if secret.is_some() {
            return Err(self.refuse(
                &file_key,
                &quoted,
                &format!("left out if `{key}` is set: only one of them"),
            ));
        }
        let content = self.open(&file_key, path).and_then(|file| {
            let mut content = String::new();
            file.take(SECRET_BYTES_MAX + 1)
                .read_to_string(&mut content)
                .map_err(|cause| self.unreadable(&file_key, path, cause))?;
            Ok(content)
        })?;
        // Editors end a file with a line break; a secret does not.
        let text = content.trim_end_matches(['\r', '\n']);
        *secret = Secret::new(text).filter(|_| content.len() as u64 <= SECRET_BYTES_MAX);
        if secret.is_none() {
            let allowed =
                format!("a file with nothing but the secret, 1 to {SECRET_BYTES_MAX} bytes");
            return Err(self.refuse(&file_key, &quoted, &allowed));
        }
        Ok(())
    }

    fn readable(&self, key: &str, path: &Path) -> Result<(), ConfigError> {
        self.open(key, path).map(drop)
    }

    fn open(&self, key: &str, path: &Path) -> Result<File, ConfigError> {
        let file = File::open(path).and_then(|file| {
            if file.metadata()?.is_dir() {
                Err(io::ErrorKind::IsADirectory.into())
            } else {
                Ok(file)
            }
        });
        file.map_err(|cause| self.unreadable(key, path, cause))
    }

    fn unreadable(&self, key: &str, path: &Path, cause: io::Error) -> ConfigError {
        ConfigError::Unreadable {
            key: key.to_owned(),
            path: path.to_owned(),
            cause,
            origin: self.origin(key),
        }
    }
}
