//! The small sections: what else the server does, and with whom it works together.

use std::path::PathBuf;

use ruma::{OwnedServerName, ServerName, events::room::server_acl::RoomServerAclEventContent};
use serde::{Deserialize, Serialize};

use super::values::{
    BaseUrl, Between, FilePath, Label, LogFilter, PublicKey, Secret, Server, ServerPattern,
    SigningKeyId, TurnUri, list, optional, plain,
};

/// Notifications to phones, through push gateways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// Whether gateways may have private and loopback addresses; for a gateway of one's own. Users choose the
    /// gateway, so this lets them make the server send requests into its own network. Default: no.
    pub allow_private_addresses: bool,
    /// How long a gateway may take to answer. Default: 10 s.
    #[serde(deserialize_with = "plain::<Between<1, 600>, _, _>")]
    pub timeout_seconds: u64,
}

impl Default for Push {
    fn default() -> Self {
        Self {
            allow_private_addresses: false,
            timeout_seconds: 10,
        }
    }
}

/// Who is online.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// Whether people see who is online. Default: yes.
    pub enabled: bool,
}

impl Default for Presence {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Bridges and bots with a registration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Appservices {
    /// Registration files (YAML). Default: none.
    #[serde(deserialize_with = "list::<FilePath, _, _>")]
    pub registration_files: Vec<PathBuf>,
    /// A directory in which every `.yaml` and `.yml` file is a registration file. Default: none.
    #[serde(deserialize_with = "optional::<FilePath, _, _>")]
    pub registration_directory: Option<PathBuf>,
    /// Whether they are sent their `hs_token` also as `?access_token=`, where old ones look for it and logs of
    /// web servers keep it. Default: no, only in the header.
    pub legacy_authorization: bool,
}

/// Exchange with other servers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Federation {
    /// Whether this server exchanges rooms and events with others. Default: no.
    pub enabled: bool,
    /// Whether other servers are told the names of devices. Default: no, only their IDs and keys.
    pub share_device_names: bool,
    /// The only servers with which it does. Default: empty, all servers.
    #[serde(deserialize_with = "list::<ServerPattern, _, _>")]
    pub allow_servers: Vec<String>,
    /// Servers with which it does not, also if allowed above. Default: none.
    #[serde(deserialize_with = "list::<ServerPattern, _, _>")]
    pub deny_servers: Vec<String>,
    /// Servers that are asked for the keys of others that do not answer. What they say is believed, if it is signed
    /// by them and by the key that it names. Default: none.
    #[serde(deserialize_with = "list::<Server, _, _>")]
    pub trusted_notaries: Vec<OwnedServerName>,
    /// Keys that this server signed with before it had the one it has now, by another program or on another machine:
    /// others need them to verify what was sent then. Default: none.
    pub old_verify_keys: Vec<OldVerifyKey>,
}

/// A key that this server signed with once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OldVerifyKey {
    /// Its ID, `ed25519:` and a version.
    #[serde(deserialize_with = "plain::<SigningKeyId, _, _>")]
    pub id: String,
    /// The public key, in base64.
    #[serde(deserialize_with = "plain::<PublicKey, _, _>")]
    pub public_key: String,
    /// When it was last used, in seconds since 1970.
    #[serde(deserialize_with = "plain::<Between<0, 9_000_000_000_000>, _, _>")]
    pub expired_unix_seconds: u64,
}

impl Federation {
    /// Whether this server exchanges anything with `server`, by the lists and the switch.
    ///
    /// Spec: the lists mean what those of `m.room.server_acl` mean.
    pub fn allows(&self, server: &ServerName) -> bool {
        let allow = if self.allow_servers.is_empty() {
            vec!["*".to_owned()]
        } else {
            self.allow_servers.clone()
        };
        let lists = RoomServerAclEventContent::new(true, allow, self.deny_servers.clone());
        self.enabled && lists.is_allowed(server)
    }
}

/// Where clients find a service for group calls (`MatrixRTC`, MSC4143).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rtc {
    /// Services that hand out tokens for a `LiveKit` server. Default: none, no group calls.
    #[serde(deserialize_with = "list::<BaseUrl, _, _>")]
    pub livekit_service_urls: Vec<String>,
}

/// Relay for one-to-one calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Addresses of the relay. Default: none, no relay.
    #[serde(deserialize_with = "list::<TurnUri, _, _>")]
    pub uris: Vec<String>,
    /// The secret shared with the relay (coturn: `static-auth-secret`). Needed if there are addresses.
    pub shared_secret: Option<Secret>,
    /// A file with this secret; it is in `shared_secret` once loaded.
    #[serde(deserialize_with = "optional::<FilePath, _, _>")]
    pub shared_secret_file: Option<PathBuf>,
    /// How long the passwords made from it are valid. Default: 86,400 s, a day.
    #[serde(deserialize_with = "plain::<Between<60, 2_592_000>, _, _>")]
    pub lifetime_seconds: u64,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            uris: Vec::new(),
            shared_secret: None,
            shared_secret_file: None,
            lifetime_seconds: 86_400,
        }
    }
}

/// What is written to the log, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logging {
    /// The form of a line. Default: human.
    pub format: LogFormat,
    /// What is written: a level, or a list of `module=level`. Default: info.
    #[serde(deserialize_with = "plain::<LogFilter, _, _>")]
    pub level: String,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            level: "info".to_owned(),
        }
    }
}

/// The form of a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line, for programs.
    Json,
}

/// Events that are sent later (MSC4140).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DelayedEvents {
    /// The longest delay. Default: 86,400 s, a day.
    #[serde(deserialize_with = "plain::<Between<1, 31_536_000>, _, _>")]
    pub delay_seconds_max: u64,
    /// Events that one user may have waiting. Default: 100.
    #[serde(deserialize_with = "plain::<Between<1, 100_000>, _, _>")]
    pub per_user_max: usize,
}

impl Default for DelayedEvents {
    fn default() -> Self {
        Self {
            delay_seconds_max: 86_400,
            per_user_max: 100,
        }
    }
}

/// Messages from the admins to their users (`/_synapse/admin/v1/send_server_notice`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerNotices {
    /// The name of the user who sends them, without `@` and server name. Default: notices.
    pub user_localpart: String,
    /// What this user is called. Default: Server Notices.
    #[serde(deserialize_with = "plain::<Label, _, _>")]
    pub display_name: String,
    /// What the rooms with the messages are called. Default: Server Notices.
    #[serde(deserialize_with = "plain::<Label, _, _>")]
    pub room_name: String,
}

impl Default for ServerNotices {
    fn default() -> Self {
        Self {
            user_localpart: "notices".to_owned(),
            display_name: "Server Notices".to_owned(),
            room_name: "Server Notices".to_owned(),
        }
    }
}
