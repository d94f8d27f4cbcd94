//! The way to other servers over the internet: HTTPS to where [`super::resolve`] finds them.
//!
//! A connection goes to an address that was checked, under the name that the certificate must have, which need not be
//! the name that led to the address. Connections are kept, and each server has its own.
//!
//! Spec: server-server API, "TLS", "Resolving server names".

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use federation::wire::discovery::Host;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, header};
use reqwest::{Client, Url, redirect};
use ruma::{OwnedServerName, ServerName};
use rustls_pki_types::CertificateDer;

use super::{
    flights::Flights,
    resolve::{Lookup, Place, Resolver},
};
use crate::{
    config::Config,
    media::outward::Outward,
    seams::{Clock, Lost, Outgoing, Seams, Transport},
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept for the next request, and how many of them for each server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const IDLE_PER_SERVER_MAX: usize = 2;

/// For how long a server is where it was found, in milliseconds. DNS is not asked for how long it thinks so.
const FOUND_MS: u64 = 5 * 60 * 1_000;

/// How many servers' connections are kept.
const SERVERS_MAX: usize = 1_000;

/// The internet.
#[derive(Debug)]
pub struct Internet {
    resolver: Resolver,
    tls: rustls::ClientConfig,
    user_agent: String,
    clock: Clock,
    ways: Mutex<BTreeMap<OwnedServerName, Way>>,
    flights: Flights,
}

/// The way to one server.
#[derive(Clone, Debug)]
struct Way {
    place: Place,
    /// Scheme and authority.
    base: String,
    client: Client,
    until_ms: u64,
    used_ms: u64,
}

impl Internet {
    /// The internet as `config` wants it; `outward` fetches well-known answers, and `extra_ca` are trusted beside the
    /// system's authorities.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        config: &Config,
        seams: &Seams,
        outward: Outward,
        extra_ca: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let resolver = Resolver::new(
            Lookup::system(outward),
            config.testing.server_addresses.clone(),
            config.testing.allow_private_addresses,
            seams.clock.clone(),
            seams.entropy.clone(),
        );
        Ok(Self {
            resolver,
            tls: tls(extra_ca)?,
            user_agent: format!("Guildhall/{}", env!("CARGO_PKG_VERSION")),
            clock: seams.clock.clone(),
            ways: Mutex::default(),
            flights: Flights::default(),
        })
    }

    /// The way to `server`, from memory if it was found lately.
    async fn way(&self, server: &ServerName) -> Result<Way, String> {
        loop {
            if let Some(way) = self.found(server) {
                return Ok(way);
            }
            let Some(flight) = self.flights.take(server) else {
                self.flights.landed(server).await;
                return self
                    .found(server)
                    .ok_or_else(|| "it could not be found a moment ago".to_owned());
            };
            let place = self.resolver.resolve(&flight.server).await?;
            self.remember(server, place)?;
            drop(flight);
        }
    }

    fn found(&self, server: &ServerName) -> Option<Way> {
        let now_ms = self.clock.now_ms();
        let mut ways = self.ways();
        let way = ways.get_mut(server)?;
        if now_ms >= way.until_ms {
            return None;
        }
        way.used_ms = now_ms;
        Some(way.clone())
    }

    fn remember(&self, server: &ServerName, place: Place) -> Result<(), String> {
        let now_ms = self.clock.now_ms();
        let before = self.ways().remove(server);
        let way = match before.filter(|before| before.place == place) {
            // Still there: its connections are good.
            Some(before) => Way {
                until_ms: now_ms + FOUND_MS,
                used_ms: now_ms,
                ..before
            },
            None => self.build(place, now_ms)?,
        };
        let mut ways = self.ways();
        if ways.len() >= SERVERS_MAX {
            let oldest = ways.iter().min_by_key(|(_, way)| way.used_ms);
            if let Some(oldest) = oldest.map(|(server, _)| server.clone()) {
                ways.remove(&oldest);
            }
        }
        ways.insert(server.to_owned(), way);
        Ok(())
    }

    fn build(&self, place: Place, now_ms: u64) -> Result<Way, String> {
        let mut builder = Client::builder()
            .user_agent(&self.user_agent)
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(true)
            // A proxy would resolve names itself, and a redirect would lead to where nobody has looked.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .dns_resolver(NoNames)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_SERVER_MAX);
        let base = match &place.certificate_for {
            Host::Address(address) => {
                let port = place
                    .addresses
                    .first()
                    .map_or(0, std::net::SocketAddr::port);
                format!("https://{}", std::net::SocketAddr::new(*address, port))
            }
            Host::Name(name) => {
                // Without a port in the URL, each address has its own.
                builder = builder.resolve_to_addrs(name, &place.addresses);
                let port = place.host_header.rsplit_once(':');
                let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
                match port {
                    Some(port) if place.addresses.iter().all(|address| address.port() == port) => {
                        format!("https://{name}:{port}")
                    }
                    _ => format!("https://{name}"),
                }
            }
        };
        check_base(&base, &place.certificate_for)?;
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Way {
            place,
            base,
            client,
            until_ms: now_ms + FOUND_MS,
            used_ms: now_ms,
        })
    }

    async fn carry(&self, outgoing: Outgoing) -> Result<http::Response<Bytes>, Lost> {
        let Outgoing {
            server,
            request,
            bytes_max,
            ..
        } = outgoing;
        let way = self.way(&server).await.map_err(Lost::Unreachable)?;
        let target = request.uri().to_string();
        let unsendable =
            |reason: &str| Lost::BrokeOff(format!("the request cannot be sent: {reason}"));
        let url = Url::parse(&format!("{}{target}", way.base));
        let url = url.map_err(|error| unsendable(&error.to_string()))?;
        // The signature is over the target as it is, and URLs have their own idea of dots and quotes.
        if !url.as_str().ends_with(&target) {
            return Err(unsendable("its target is not a URL's"));
        }
        let (mut parts, body) = request.into_parts();
        if way.base.strip_prefix("https://") != Some(&way.place.host_header) {
            let host = HeaderValue::from_str(&way.place.host_header);
            let host = host.map_err(|error| unsendable(&error.to_string()))?;
            parts.headers.insert(header::HOST, host);
        }
        let request = way.client.request(parts.method, url);
        let request = request.headers(parts.headers).body(body);
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                self.ways().remove(&server);
                return Err(Lost::Unreachable(chain(&error)));
            }
            Err(error) => return Err(Lost::BrokeOff(chain(&error))),
        };
        let too_large = Lost::TooLarge { bytes_max };
        let announced = answer.content_length().unwrap_or(0);
        if announced > bytes_max as u64 {
            return Err(too_large);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer
            .chunk()
            .await
            .map_err(|error| Lost::BrokeOff(chain(&error)))?
        {
            if chunk.len() > bytes_max - bytes.len() {
                return Err(too_large);
            }
            bytes.extend_from_slice(&chunk);
        }
        let mut response = http::Response::new(Bytes::from(bytes));
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }

    fn ways(&self) -> std::sync::MutexGuard<'_, BTreeMap<OwnedServerName, Way>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Internet {
    fn send(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<http::Response<Bytes>, Lost>> {
        async move {
            let timeout = outgoing.timeout;
            match tokio::time::timeout(timeout, self.carry(outgoing)).await {
                Ok(answer) => answer,
                Err(_) => Err(Lost::TimedOut),
            }
        }
        .boxed()
    }
}

/// That what a URL calls the host is what was meant: `127.1` and `0x7f000001` are names to Matrix, and addresses to URLs.
fn check_base(base: &str, meant: &Host) -> Result<(), String> {
    let url = Url::parse(base).map_err(|error| error.to_string())?;
    let literal = url.host_str().unwrap_or_default();
    let literal = literal.trim_start_matches('[').trim_end_matches(']');
    let same = match meant {
        Host::Address(address) => literal.parse() == Ok(*address),
        Host::Name(name) => {
            literal.eq_ignore_ascii_case(name) && literal.parse::<std::net::IpAddr>().is_err()
        }
    };
    if same {
        return Ok(());
    }
    Err("its name is not one of a host".to_owned())
}

/// What may be trusted to prove who it is.
fn tls(extra_ca: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(extra_ca, provider);
    let mut config = match verifier {
        Ok(verifier) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth(),
        Err(error) => {
            tracing::warn!(%error, "no certificates of the system can be used: other servers will not be reached");
            builder
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What went wrong, down to the cause, without the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() {
        "the request failed".clone_into(&mut text);
    }
    text
}

/// Knows no name: every name that is connected to has its addresses already.
#[derive(Clone, Copy, Debug)]
struct NoNames;

impl reqwest::dns::Resolve for NoNames {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let text = format!("{} was not looked up", name.as_str());
        Box::pin(std::future::ready(Err(text.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_url_takes_for_an_address_is_refused() {
        let named =
            |name: &str| check_base(&format!("https://{name}"), &Host::Name(name.to_owned()));
        for name in ["example.org", "Example.ORG", "a", "xn--bcher-kva.example"] {
            named(name).unwrap();
        }
        for name in ["127.1", "0x7f000001", "2130706433", "1.2.3", "0", "1.2.3.4"] {
            named(name).unwrap_err();
        }
        let address = "::1".parse().unwrap();
        check_base("https://[::1]:8448", &Host::Address(address)).unwrap();
        check_base("https://[::2]:8448", &Host::Address(address)).unwrap_err();
    }
}
