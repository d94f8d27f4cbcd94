//! A server's name to where it is: which questions to ask, in which order, and what the answers mean.
//!
//! A small machine: it says what to look up next, and is told what came. It looks up nothing itself and keeps
//! nothing between two servers; for how long an answer may be kept is told by [`keep_ms`].
//!
//! Spec: server-server API, "Resolving server names".

// Addresses as numbers, not as something to connect to.
use core::net::IpAddr;

use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;

/// The port of a server that names no other.
pub const PORT: u16 = 8448;

/// The largest `/.well-known/matrix/server`, in bytes.
pub const WELL_KNOWN_BYTES_MAX: usize = 50 * 1024;

/// How often a request for `/.well-known/matrix/server` is sent on at most.
pub const WELL_KNOWN_REDIRECTS_MAX: usize = 5;

/// How many SRV records of a name are used.
pub const SRV_MAX: usize = 8;

const MINUTE_MS: u64 = 60 * 1_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// For how long a well-known answer is kept that says nothing about it, in milliseconds: 24 hours.
const KEEP_MS: u64 = 24 * HOUR_MS;

/// For how long one is kept at least, whatever it says, in milliseconds: 5 minutes.
const KEEP_MS_MIN: u64 = 5 * MINUTE_MS;

/// For how long one is kept at most, whatever it says, in milliseconds: 48 hours.
pub const KEEP_MS_MAX: u64 = 48 * HOUR_MS;

/// For how long it is kept that there is no answer, in milliseconds: an hour at most, less after the first failures.
const KEEP_FAILURE_MS_MAX: u64 = HOUR_MS;

/// What a server is called in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, to be looked up as A and AAAA.
    Name(String),
}

/// One place at which a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

/// Where a server is, and as whom to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The `Host` header.
    pub host_header: String,
    /// What its certificate must be for; also sent as SNI if it is a name.
    pub certificate_for: Host,
    /// The places, to be tried in this order.
    pub targets: Vec<Target>,
}

/// An SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Lower is tried first.
    pub priority: u16,
    /// The share among those of the same priority.
    pub weight: u16,
    /// The host, a name.
    pub target: String,
    /// The port.
    pub port: u16,
}

/// What to look up next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// `https://HOST/.well-known/matrix/server` of this host.
    WellKnown(String),
    /// The SRV records of this name.
    Srv(String),
    /// Nothing: it is there.
    Found(Route),
    /// Nothing: its SRV record says that it is nowhere.
    Nowhere,
}

/// The way to one server.
#[derive(Clone, Debug)]
pub struct Discovery {
    next: Next,
}

impl Discovery {
    /// The way to `server`.
    pub fn new(server: &ServerName) -> Self {
        let next =
            direct(server).map_or_else(|| Next::WellKnown(server.host().to_owned()), Next::Found);
        Self { next }
    }

    /// What to look up next.
    pub fn next(&self) -> &Next {
        &self.next
    }

    /// Takes what the well-known answer names; `None` if there is no valid one.
    pub fn well_known(&mut self, delegated: Option<&ServerName>) {
        let Next::WellKnown(host) = &self.next else {
            return;
        };
        self.next = match delegated {
            None => Next::Srv(srv_name(SRV_SERVICE, host)),
            Some(server) => direct(server).map_or_else(
                || Next::Srv(srv_name(SRV_SERVICE, server.host())),
                Next::Found,
            ),
        };
    }

    /// Takes the SRV records of the name that was asked for, in the order in which to try them; none if there are none.
    pub fn srv(&mut self, mut records: Vec<Srv>) {
        let Next::Srv(name) = &self.next else { return };
        let service = if name.starts_with(SRV_SERVICE) {
            SRV_SERVICE
        } else {
            SRV_SERVICE_OLD
        };
        let host = name.get(service.len() + 1..).unwrap_or_default().to_owned();
        records.truncate(SRV_MAX);
        let none = records.is_empty();
        // "A target of "." means that the service is decidedly not available" (RFC 2782).
        records.retain(|record| !matches!(record.target.as_str(), "." | ""));
        self.next = if !records.is_empty() {
            let targets = records.into_iter().map(|record| Target {
                host: Host::Name(record.target.trim_end_matches('.').to_owned()),
                port: record.port,
            });
            named(&host, host.clone(), targets.collect())
        } else if !none {
            Next::Nowhere
        } else if service == SRV_SERVICE {
            Next::Srv(srv_name(SRV_SERVICE_OLD, &host))
        } else {
            let target = Target {
                host: Host::Name(host.clone()),
                port: PORT,
            };
            named(&host, host.clone(), vec![target])
        };
    }
}

const SRV_SERVICE: &str = "_matrix-fed._tcp";
const SRV_SERVICE_OLD: &str = "_matrix._tcp";

fn srv_name(service: &str, host: &str) -> String {
    format!("{service}.{host}")
}

fn named(host: &str, host_header: String, targets: Vec<Target>) -> Next {
    Next::Found(Route {
        host_header,
        certificate_for: Host::Name(host.to_owned()),
        targets,
    })
}

/// Where a server is that has an address or a port in its name.
fn direct(server: &ServerName) -> Option<Route> {
    let host = if server.is_ip_literal() {
        let literal = server.host().trim_start_matches('[').trim_end_matches(']');
        Host::Address(literal.parse().ok()?)
    } else {
        server.port()?;
        Host::Name(server.host().to_owned())
    };
    Some(Route {
        host_header: server.to_string(),
        certificate_for: host.clone(),
        targets: vec![Target {
            host,
            port: server.port().unwrap_or(PORT),
        }],
    })
}

/// What a well-known answer names, if it is valid.
pub fn delegated(body: &[u8]) -> Option<OwnedServerName> {
    #[derive(Deserialize)]
    struct WellKnown {
        #[serde(rename = "m.server")]
        server: String,
    }
    if body.len() > WELL_KNOWN_BYTES_MAX {
        return None;
    }
    let WellKnown { server } = serde_json::from_slice(body).ok()?;
    ServerName::parse(server).ok()
}

/// For how long a well-known answer is kept, in milliseconds.
///
/// `failures` counts the times in a row that there was no valid one, this time included; `expires_in_ms` is what the
/// `Expires` header says, if there is one.
pub fn keep_ms(failures: u32, cache_control: Option<&str>, expires_in_ms: Option<u64>) -> u64 {
    if failures > 0 {
        let doubled = KEEP_MS_MIN.saturating_mul(1 << (failures - 1).min(16));
        return doubled.min(KEEP_FAILURE_MS_MAX);
    }
    let mut said = expires_in_ms;
    for directive in cache_control.unwrap_or_default().split(',') {
        let directive = directive.trim().to_ascii_lowercase();
        if directive == "no-store" || directive == "no-cache" {
            said = Some(0);
            break;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            let seconds = seconds.trim_matches('"').parse::<u64>().ok();
            said = seconds.map(|seconds| seconds.saturating_mul(1_000));
        }
    }
    said.unwrap_or(KEEP_MS).clamp(KEEP_MS_MIN, KEEP_MS_MAX)
}

/// Puts SRV records in the order in which to try them. `random` gives a number below its argument, which is not zero.
///
/// Spec: RFC 2782, "Usage rules".
pub fn in_order(mut records: Vec<Srv>, mut random: impl FnMut(u32) -> u32) -> Vec<Srv> {
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let same = records
            .iter()
            .take_while(|record| record.priority == priority);
        let total: u32 = same.map(|record| u32::from(record.weight)).sum();
        let mut left = random(total + 1);
        let chosen = records.iter().position(|record| {
            let weight = u32::from(record.weight);
            let here = left <= weight;
            left = left.saturating_sub(weight);
            here
        });
        ordered.push(records.remove(chosen.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests;
