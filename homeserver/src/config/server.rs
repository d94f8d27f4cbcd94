//! Sections `[server]` and `[[listeners]]`: who this server is, and where it listens.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ruma::{OwnedServerName, OwnedUserId, server_name};
use serde::{Deserialize, Serialize};

use super::values::{
    Address, BaseUrl, ContactUri, Email, FilePath, Network, PageUrl, Server as ServerCheck, User,
    optional, plain,
};

/// Who this server is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// The part behind the colon in user IDs. Required with a configuration file, `localhost` in development. It
    /// cannot be changed once there are users.
    #[serde(deserialize_with = "plain::<ServerCheck, _, _>")]
    pub name: OwnedServerName,
    /// Where clients reach this server, for `/.well-known/matrix/client`; no slash at the end. Default: see
    /// [`Config::public_base_url`](super::Config::public_base_url).
    #[serde(deserialize_with = "optional::<BaseUrl, _, _>")]
    pub public_base_url: Option<String>,
    /// Where other servers reach this server, for `/.well-known/matrix/server`. Default: the file is not served, so
    /// they look at port 8448 of `name`.
    #[serde(deserialize_with = "optional::<ServerCheck, _, _>")]
    pub well_known_server: Option<OwnedServerName>,
    /// A link by which users reach the admins; part of the error that a quota of theirs is used up. Default: none.
    #[serde(deserialize_with = "optional::<ContactUri, _, _>")]
    pub admin_contact: Option<String>,
    /// What `/.well-known/matrix/support` says. It is served if anything is set here.
    pub support: Support,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            name: server_name!("localhost").to_owned(),
            public_base_url: None,
            well_known_server: None,
            admin_contact: None,
            support: Support::default(),
        }
    }
}

/// Whom to ask about this server (client-server API, "Getting homeserver support").
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Support {
    /// A page with help for the users of this server. Default: none.
    #[serde(deserialize_with = "optional::<PageUrl, _, _>")]
    pub page: Option<String>,
    /// People to write to. Default: none.
    pub contacts: Vec<Contact>,
}

/// One person, or group of people, to write to. Has at least one of the two addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contact {
    /// What they are there for.
    pub role: SupportRole,
    /// Their Matrix ID.
    #[serde(default, deserialize_with = "optional::<User, _, _>")]
    pub matrix_id: Option<OwnedUserId>,
    /// Their e-mail address.
    #[serde(default, deserialize_with = "optional::<Email, _, _>")]
    pub email: Option<String>,
}

/// What a support contact is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SupportRole {
    /// Anything about the server: `m.role.admin`.
    Admin,
    /// Weaknesses that should be told in confidence: `m.role.security`.
    Security,
}

impl SupportRole {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "m.role.admin",
            Self::Security => "m.role.security",
        }
    }
}

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// IP address and TCP port; port 0 lets the system choose.
    #[serde(deserialize_with = "plain::<Address, _, _>")]
    pub address: SocketAddr,
    /// Certificate chain in PEM form, the server's own first. Default: no TLS.
    #[serde(default, deserialize_with = "optional::<FilePath, _, _>")]
    pub tls_certificate_file: Option<PathBuf>,
    /// The private key to it, in PEM form. Needed exactly if there is a certificate.
    #[serde(default, deserialize_with = "optional::<FilePath, _, _>")]
    pub tls_key_file: Option<PathBuf>,
    /// What is offered there. Default: `client` and `federation`.
    #[serde(default = "Listener::serves_by_default")]
    pub serves: Vec<Api>,
    /// Reverse proxies whose `X-Forwarded-For` is believed. Default: this machine.
    #[serde(default = "Listener::trusted_by_default")]
    pub trusted_proxies: Vec<Network>,
}

impl Listener {
    /// A plain listener with everything else as by default.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            tls_certificate_file: None,
            tls_key_file: None,
            serves: Self::serves_by_default(),
            trusted_proxies: Self::trusted_by_default(),
        }
    }

    /// The listeners if none are configured.
    pub(super) fn by_default() -> Vec<Self> {
        vec![Self::plain(SocketAddr::from(([127, 0, 0, 1], 8008)))]
    }

    /// Whether `api` is offered there.
    pub fn offers(&self, api: Api) -> bool {
        self.serves.contains(&api)
    }

    /// Whether a connection from `address` is one of the trusted proxies, so that the client is whom it says.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|network| network.contains(address))
    }

    fn serves_by_default() -> Vec<Api> {
        vec![Api::Client, Api::Federation]
    }

    fn trusted_by_default() -> Vec<Network> {
        ["127.0.0.0/8", "::1/128"]
            .into_iter()
            .filter_map(Network::parse)
            .collect()
    }
}

/// What a listener can offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// For clients, admin tools and application services, with media and `.well-known`.
    Client,
    /// For other servers, with `.well-known` and keys.
    Federation,
    /// `/metrics` for Prometheus. It has no login, so it belongs on an address of its own that only Prometheus reaches.
    Metrics,
}
