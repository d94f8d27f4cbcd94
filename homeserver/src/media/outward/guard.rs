//! Where a request may go: the URL before it is sent, the address when it is connected to.
//!
//! A name is resolved here, for each connection anew, and the addresses that pass are the ones that are
//! connected to: a name that means something else a moment later (DNS rebinding) gains nothing. A literal
//! address in a URL is never resolved, so the URL is checked for it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use super::address::is_public;

/// Ports from 1024 up at which something listens that a request could do harm to: those that browsers
/// refuse. Below 1024, only the ports of the two schemes are allowed.
///
/// Spec: Fetch, "bad port".
const PORTS_REFUSED: [u16; 19] = [
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080,
];

/// Why a request may not be sent. It has not been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an absolute URL with a host.
    #[error("this is not an absolute http or https URL")]
    NotAUrl,
    /// Neither HTTP nor HTTPS.
    #[error("the scheme is {scheme}, not http or https")]
    Scheme {
        /// The scheme it has.
        scheme: String,
    },
    /// The URL has a user name or a password in it.
    #[error("the URL carries credentials")]
    Credentials,
    /// The port belongs to another protocol.
    #[error("port {port} is not one for HTTP")]
    Port {
        /// The port it has.
        port: u16,
    },
    /// The URL names an address that is not public.
    #[error("{address} is not a public address")]
    Address {
        /// The address it names.
        address: IpAddr,
    },
    /// The name exists, and none of its addresses is public.
    #[error("{name} has no public address")]
    Name {
        /// The name.
        name: String,
    },
}

/// Which addresses may be connected to.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Those of the public internet.
    Public,
    /// All: for test rigs.
    Any,
    /// One, which stands for the public internet.
    #[cfg(test)]
    Only(IpAddr),
}

impl Rule {
    fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::Public => is_public(address),
            Self::Any => true,
            #[cfg(test)]
            Self::Only(only) => address == *only,
        }
    }

    const fn allows_any_port(&self) -> bool {
        !matches!(self, Self::Public)
    }

    /// May a request be sent to `url`, as far as can be seen from it?
    pub(super) fn check(&self, url: &Url) -> Result<(), Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme {
                scheme: url.scheme().to_owned(),
            });
        }
        let host = url.host_str().ok_or(Refusal::NotAUrl)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        let port = url.port_or_known_default().ok_or(Refusal::NotAUrl)?;
        let known = matches!(port, 80 | 443) || (port >= 1024 && !PORTS_REFUSED.contains(&port));
        if !known && !self.allows_any_port() {
            return Err(Refusal::Port { port });
        }
        // The parser has brought 127.1, 0x7f000001 and their like into one form.
        let literal = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        match literal.parse() {
            Ok(address) if !self.allows(address) => Err(Refusal::Address { address }),
            _ => Ok(()),
        }
    }
}

/// Resolves names, and keeps to itself the addresses that may not be connected to.
#[derive(Clone)]
pub(super) struct Resolver {
    pub(super) rule: Rule,
    pub(super) lookup: Lookup,
}

#[cfg(test)]
pub(super) type Table = Arc<dyn Fn(&str) -> Vec<SocketAddr> + Send + Sync>;

/// Who knows the addresses of a name.
#[derive(Clone)]
pub(super) enum Lookup {
    /// The operating system.
    System,
    /// A test.
    #[cfg(test)]
    Table(Table),
}

impl Lookup {
    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0)).await?.collect()),
            #[cfg(test)]
            Self::Table(table) => Ok(table(name)),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Arc::new(self.clone());
        Box::pin(async move {
            let name = name.as_str();
            let mut addresses = resolver.lookup.addresses(name).await?;
            let known = !addresses.is_empty();
            addresses.retain(|address| resolver.rule.allows(address.ip()));
            if known && addresses.is_empty() {
                return Err(Refusal::Name {
                    name: name.to_owned(),
                }
                .into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
