//! Where a server is: the lookups that [`federation::wire::discovery`] asks for, and what may be connected to.
//!
//! Whoever names a server can make this one connect to it, so an address must be public, whatever name leads there,
//! and what is connected to is the address that was checked. A well-known answer is only fetched over HTTPS, also
//! behind a redirect: who could change it could name a server of their own.
//!
//! Spec: server-server API, "Resolving server names".

mod lookup;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use federation::wire::discovery::{
    Discovery, Host, KEEP_MS_MAX, Next, Route, Target, delegated, in_order, keep_ms,
};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Semaphore;

pub(super) use self::lookup::Lookup;
use crate::{
    media::outward::is_public,
    seams::{Clock, Entropy},
};

/// How many servers are looked up at once; more wait.
const AT_ONCE_MAX: usize = 256;

/// How many well-known answers are kept.
const WELL_KNOWN_MAX: usize = 10_000;

/// How many addresses of one server are used.
const ADDRESSES_MAX: usize = 16;

/// Where a server is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The `Host` header.
    pub(super) host_header: String,
    /// What its certificate must be for.
    pub(super) certificate_for: Host,
    /// Where to connect to, in this order.
    pub(super) addresses: Vec<SocketAddr>,
}

/// What a host's well-known answer was.
#[derive(Clone, Debug, Default)]
struct WellKnown {
    delegated: Option<OwnedServerName>,
    /// When there was a valid one, in milliseconds since the epoch.
    good_ms: u64,
    /// When to ask again.
    until_ms: u64,
    /// How often in a row there was none.
    failures: u32,
}

/// Finds servers.
#[derive(Debug)]
pub(super) struct Resolver {
    lookup: Lookup,
    /// For test rigs: servers that are where this says.
    table: BTreeMap<OwnedServerName, SocketAddr>,
    /// For test rigs: addresses need not be public.
    allow_private: bool,
    clock: Clock,
    entropy: Entropy,
    well_known: Mutex<BTreeMap<String, WellKnown>>,
    places: Semaphore,
}

impl Resolver {
    pub(super) fn new(
        lookup: Lookup,
        table: BTreeMap<OwnedServerName, SocketAddr>,
        allow_private: bool,
        clock: Clock,
        entropy: Entropy,
    ) -> Self {
        Self {
            lookup,
            table,
            allow_private,
            clock,
            entropy,
            well_known: Mutex::default(),
            places: Semaphore::new(AT_ONCE_MAX),
        }
    }

    /// Where `server` is.
    ///
    /// # Errors
    /// Why it is not anywhere, in words.
    pub(super) async fn resolve(&self, server: &ServerName) -> Result<Place, String> {
        if let Some(address) = self.table.get(server) {
            let named = || Host::Name(server.host().to_owned());
            return Ok(Place {
                host_header: server.to_string(),
                certificate_for: literal(server).unwrap_or_else(named),
                addresses: vec![*address],
            });
        }
        let place = self.places.acquire().await;
        let mut discovery = Discovery::new(server);
        let route = loop {
            match discovery.next().clone() {
                Next::WellKnown(host) => {
                    let delegated = self.well_known(&host).await;
                    discovery.well_known(delegated.as_deref());
                }
                Next::Srv(name) => {
                    let records = self.lookup.srv(&name).await;
                    let random = |below: u32| {
                        let number =
                            u64::from_be_bytes(self.entropy.bytes()) % u64::from(below.max(1));
                        u32::try_from(number).unwrap_or(0)
                    };
                    discovery.srv(in_order(records, random));
                }
                Next::Found(route) => break route,
                Next::Nowhere => {
                    return Err("its SRV record says that it does not exist".to_owned());
                }
            }
        };
        let addresses = self.addresses(&route).await?;
        drop(place);
        Ok(Place {
            host_header: route.host_header,
            certificate_for: route.certificate_for,
            addresses,
        })
    }

    /// The addresses of a route that may be connected to.
    async fn addresses(&self, route: &Route) -> Result<Vec<SocketAddr>, String> {
        let (mut addresses, mut refused, mut failure) = (Vec::new(), false, None);
        for Target { host, port } in &route.targets {
            let found = match host {
                Host::Address(address) => vec![SocketAddr::new(*address, *port)],
                Host::Name(name) => match self.lookup.addresses(name, *port).await {
                    Ok(found) => found,
                    Err(error) => {
                        failure = Some(format!("{name}: {error}"));
                        continue;
                    }
                },
            };
            for address in found {
                if self.allow_private || is_public(address.ip()) {
                    addresses.push(address);
                } else {
                    refused = true;
                }
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        match (addresses.is_empty(), refused, failure) {
            (false, ..) => Ok(addresses),
            (true, true, _) => Err("it has no public address".to_owned()),
            (true, false, Some(failure)) => Err(failure),
            (true, false, None) => Err("it has no address".to_owned()),
        }
    }

    /// Which server `host` delegates to, from memory if it was asked lately.
    async fn well_known(&self, host: &str) -> Option<OwnedServerName> {
        let now_ms = self.clock.now_ms();
        let known = self.well_known_answers().get(host).cloned();
        if let Some(known) = &known
            && now_ms < known.until_ms
        {
            return known.delegated.clone();
        }
        let answer = self.lookup.well_known(host, now_ms).await;
        let valid = answer.and_then(|answer| Some((delegated(&answer.body)?, answer)));
        let before = known.unwrap_or_default();
        let known = match valid {
            Some((delegated, answer)) => WellKnown {
                delegated: Some(delegated),
                good_ms: now_ms,
                until_ms: now_ms
                    + keep_ms(0, answer.cache_control.as_deref(), answer.expires_in_ms),
                failures: 0,
            },
            None => {
                let failures = before.failures.saturating_add(1);
                // A web server that is down for an hour does not move the server behind it.
                let still = now_ms < before.good_ms.saturating_add(KEEP_MS_MAX);
                WellKnown {
                    delegated: before.delegated.filter(|_| still),
                    good_ms: before.good_ms,
                    until_ms: now_ms + keep_ms(failures, None, None),
                    failures,
                }
            }
        };
        let delegated = known.delegated.clone();
        let mut answers = self.well_known_answers();
        if answers.len() >= WELL_KNOWN_MAX && !answers.contains_key(host) {
            answers.retain(|_, known| known.until_ms > now_ms);
            if answers.len() >= WELL_KNOWN_MAX {
                answers.pop_first();
            }
        }
        answers.insert(host.to_owned(), known);
        delegated
    }

    fn well_known_answers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, WellKnown>> {
        self.well_known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that a server has for a name.
fn literal(server: &ServerName) -> Option<Host> {
    let host = server.host().trim_start_matches('[').trim_end_matches(']');
    host.parse().ok().map(Host::Address)
}

#[cfg(test)]
mod tests;
