//! Section `[testing]`: switches that test rigs need, such as Complement. All off by default, loud in the log when on.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use ruma::OwnedServerName;
use serde::{Deserialize, Deserializer, Serialize};

use super::values::{Address, FilePath, Server, optional};

/// Switches for test rigs. Each takes away a protection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, each a key of its own"
)]
pub struct Testing {
    /// No rate limits at all.
    pub rate_limits_off: bool,
    /// Passwords are hashed with the least that Argon2 allows.
    pub cheap_password_hashing: bool,
    /// A PEM file with certificate authorities that outgoing TLS trusts beside the usual ones.
    #[serde(deserialize_with = "optional::<FilePath, _, _>")]
    pub extra_ca_file: Option<PathBuf>,
    /// Outgoing requests that are not federation (push gateways, application services, URL previews) accept any
    /// certificate.
    pub accept_any_certificate: bool,
    /// Servers that are found here and not by DNS or `.well-known`: server name (with its port, if it has one) to
    /// address.
    #[serde(deserialize_with = "server_addresses")]
    pub server_addresses: BTreeMap<OwnedServerName, SocketAddr>,
    /// Outgoing requests of every kind may go to private and loopback addresses.
    pub allow_private_addresses: bool,
    /// Any member may put any room into the public list, whatever `rooms.publish` and the room's power levels say.
    pub publish_any_room: bool,
    /// The public list is read without login, whatever `rooms.public_list_needs_login` says.
    pub public_list_without_login: bool,
    /// `?access_token=` in the query counts as a login, as it did in old versions of the spec.
    pub access_token_in_query: bool,
}

impl Testing {
    /// A sentence for each switch that is on.
    pub(super) fn warnings(&self) -> Vec<String> {
        let switches = [
            (
                self.rate_limits_off,
                "rate_limits_off",
                "anyone can flood this server and guess passwords",
            ),
            (
                self.cheap_password_hashing,
                "cheap_password_hashing",
                "passwords set now are easily cracked",
            ),
            (
                self.extra_ca_file.is_some(),
                "extra_ca_file",
                "whoever has that authority's key can pose as any server",
            ),
            (
                self.accept_any_certificate,
                "accept_any_certificate",
                "push gateways, application services and previewed pages can be impersonated",
            ),
            (
                !self.server_addresses.is_empty(),
                "server_addresses",
                "the servers in this table are not looked up as the spec says",
            ),
            (
                self.allow_private_addresses,
                "allow_private_addresses",
                "users can make this server send requests into its own network",
            ),
            (
                self.publish_any_room,
                "publish_any_room",
                "anyone can put any room into the public list",
            ),
            (
                self.public_list_without_login,
                "public_list_without_login",
                "everyone can read the list of public rooms",
            ),
            (
                self.access_token_in_query,
                "access_token_in_query",
                "access tokens can end up in the logs of proxies",
            ),
        ];
        let on = switches.into_iter().filter(|(on, ..)| *on);
        on.map(|(_, key, danger)| format!("testing.{key} is on, for test rigs only: {danger}"))
            .collect()
    }
}

fn server_addresses<'de, D>(
    deserializer: D,
) -> Result<BTreeMap<OwnedServerName, SocketAddr>, D::Error>
where
    D: Deserializer<'de>,
{
    let addresses = BTreeMap::<Server, Address>::deserialize(deserializer)?;
    Ok(addresses
        .into_iter()
        .map(|(name, address)| (name.into(), address.into()))
        .collect())
}
