//! The configuration: one struct for each section of the TOML file, and how it is put together.
//!
//! Four sources, each overriding the one before: built-in defaults, the file (`--config`), environment variables
//! (`GUILDHALL_LIMITS__UPLOAD_MB=50`), and `-O limits.upload_mb=50`. Whatever the source, a mistake gives one
//! error that names the key, the value, where it was written and what is allowed. Loading is a plain function
//! from [`Sources`] to [`Config`], so a reload can refuse a bad file and keep what it has.
//!
//! Units are in the key names: `_seconds`, `_mb` (1 MB is 1024 × 1024 bytes), `_pixels`. Every `_max` and every
//! `_mb` has a range of its own beside the field. The defaults are documented in `guildhall.example.toml`; a test
//! compares that file with these structs in both directions.
//!
//! Not here: command line parsing ([`arguments`]), the logging set-up, and anything that opens a socket.

mod accounts;
pub mod arguments;
mod check;
mod content;
mod error;
mod limits;
mod print;
mod read;
mod server;
mod services;
mod sources;
mod suggest;
mod testing;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    accounts::{HashCost, Passwords, Registration, RegistrationMode, Sessions},
    content::{Data, Engine, Media, Rooms, Thumbnails, UrlPreviews, Who},
    error::{ConfigError, Origin},
    limits::{Limits, PerAddress, PerUser, Rate},
    server::{Api, Contact, Listener, Server, Support, SupportRole},
    services::{
        Appservices, DelayedEvents, Federation, LogFormat, Logging, OldVerifyKey, Presence, Push,
        Rtc, ServerNotices, Turn,
    },
    sources::{CONFIG_VARIABLE, Sources, VARIABLE_PREFIX},
    testing::Testing,
    values::{Network, Secret},
};

/// Bytes in what the configuration calls an MB.
pub const MB: u64 = 1024 * 1024;

/// The whole configuration; one field for each section of the file.
///
/// [`Config::default`] is what a configuration file with nothing but `server.name = "localhost"` gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Whether this is a real server or a trial on one's own machine; follows from the sources, is no key.
    #[serde(skip)]
    pub mode: Mode,
    /// `[server]`: who this server is, and whom to ask about it.
    pub server: Server,
    /// `[[listeners]]`: where it listens. Default: one plain listener on 127.0.0.1:8008.
    pub listeners: Vec<Listener>,
    /// `[data]`: where it keeps what it stores.
    pub data: Data,
    /// `[registration]`: how people get accounts.
    pub registration: Registration,
    /// `[passwords]`: what passwords must be like, and how they are hashed.
    pub passwords: Passwords,
    /// `[sessions]`: how long tokens live.
    pub sessions: Sessions,
    /// `[rooms]`: creating and publishing rooms.
    pub rooms: Rooms,
    /// `[limits]`: sizes, times, quotas and rates.
    pub limits: Limits,
    /// `[media]`: uploads, thumbnails, URL previews.
    pub media: Media,
    /// `[push]`: notifications to phones, through push gateways.
    pub push: Push,
    /// `[presence]`: who is online.
    pub presence: Presence,
    /// `[appservices]`: bridges and bots with a registration file.
    pub appservices: Appservices,
    /// `[federation]`: exchange with other servers.
    pub federation: Federation,
    /// `[rtc]`: where clients find a service for group calls.
    pub rtc: Rtc,
    /// `[turn]`: relay for one-to-one calls.
    pub turn: Turn,
    /// `[logging]`: what is written to the log, and how.
    pub logging: Logging,
    /// `[delayed_events]`: events that are sent later (MSC4140).
    pub delayed_events: DelayedEvents,
    /// `[server_notices]`: messages from the admins to their users.
    pub server_notices: ServerNotices,
    /// `[testing]`: switches for test rigs. Each makes the server unsafe.
    pub testing: Testing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            server: Server::default(),
            listeners: Listener::by_default(),
            data: Data::default(),
            registration: Registration::default(),
            passwords: Passwords::default(),
            sessions: Sessions::default(),
            rooms: Rooms::default(),
            limits: Limits::default(),
            media: Media::default(),
            push: Push::default(),
            presence: Presence::default(),
            appservices: Appservices::default(),
            federation: Federation::default(),
            rtc: Rtc::default(),
            turn: Turn::default(),
            logging: Logging::default(),
            delayed_events: DelayedEvents::default(),
            server_notices: ServerNotices::default(),
            testing: Testing::default(),
        }
    }
}

/// What kind of server this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// No configuration file, and no source sets `server.name`: a trial on one's own machine. The server is called
    /// `localhost`, and everyone on this machine may register.
    Development,
    /// Anything else.
    #[default]
    Production,
}

impl Config {
    /// Puts the configuration together from its sources, checks it, and reads the secrets kept in files of their own.
    ///
    /// # Errors
    /// The first mistake found. Nothing but the configuration's own files is read.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let (tree, mode) = sources::assemble(sources)?;
        let mut config: Self = read::read(&tree, &sources::defaults().keys())?;
        config.mode = mode;
        check::check(&mut config, &tree)?;
        Ok(config)
    }

    /// The effective configuration as TOML, keys sorted, secrets masked.
    ///
    /// Loads to the same configuration again, as long as no secret is written in it directly.
    pub fn to_toml(&self) -> String {
        print::toml(self)
    }

    /// What the admin should read in the log at each start, loud: every switch for test rigs that is on, and choices
    /// that are allowed but rarely meant. Empty for the defaults.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.testing.warnings();
        if self.registration.mode == RegistrationMode::Open {
            warnings.push(
                "registration.mode = \"open\": anyone who can reach this server can create accounts, spammers \
                 included; \"token\" needs a registration token"
                    .to_owned(),
            );
        }
        for listener in &self.listeners {
            if listener.offers(Api::Metrics) && listener.serves.len() > 1 {
                warnings.push(format!(
                    "the listener on {} serves metrics beside other things: whoever reaches those can read the \
                     metrics too",
                    listener.address
                ));
            }
        }
        warnings
    }

    /// Where clients reach this server, without a slash at the end, for `/.well-known/matrix/client`.
    ///
    /// `server.public_base_url` if set; else `https://` and the server name, or in development the first listener.
    pub fn public_base_url(&self) -> String {
        match (
            &self.server.public_base_url,
            self.mode,
            self.client_address(),
        ) {
            (Some(url), _, _) => url.clone(),
            (None, Mode::Development, Some(address)) => format!("http://{address}"),
            (None, _, _) => format!("https://{}", self.server.name),
        }
    }

    /// Where uploaded files and thumbnails lie: `media.directory`, by default `media` in the data directory.
    pub fn media_directory(&self) -> PathBuf {
        self.media
            .directory
            .clone()
            .unwrap_or_else(|| self.data.directory.join("media"))
    }

    /// Whether only someone with an access token may read the list of public rooms.
    pub fn public_list_needs_login(&self) -> bool {
        self.rooms.public_list_needs_login && !self.testing.public_list_without_login
    }

    /// Whether push gateways may have private and loopback addresses.
    pub fn push_may_reach_private_addresses(&self) -> bool {
        self.push.allow_private_addresses || self.testing.allow_private_addresses
    }

    /// What hashing a new password costs, with `testing.cheap_password_hashing` taken into account.
    pub fn password_hash_cost(&self) -> HashCost {
        if self.testing.cheap_password_hashing {
            HashCost::CHEAPEST
        } else {
            self.passwords.hash_cost()
        }
    }

    /// The first plain listener for clients.
    fn client_address(&self) -> Option<SocketAddr> {
        let plain = |listener: &&Listener| {
            listener.tls_certificate_file.is_none() && listener.offers(Api::Client)
        };
        self.listeners
            .iter()
            .find(plain)
            .map(|listener| listener.address)
    }
}
