//! The questions themselves: `.well-known` over HTTPS, SRV, A and AAAA records.

use std::{io, net::SocketAddr, time::Duration};

use federation::wire::discovery::{Srv, WELL_KNOWN_BYTES_MAX, WELL_KNOWN_REDIRECTS_MAX};
use hickory_resolver::{
    TokioResolver,
    proto::rr::{RData, RecordType},
};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Url;

use crate::media::outward::{Answer, Limits, Outward};

/// How long a host may take for its well-known answer, redirects included.
const WELL_KNOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an SRV lookup may take.
const SRV_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the lookup of an address may take.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// A well-known answer, before anybody has looked into it.
#[derive(Clone, Debug, Default)]
pub(in crate::peers) struct WellKnownAnswer {
    pub(super) body: Vec<u8>,
    pub(super) cache_control: Option<String>,
    pub(super) expires_in_ms: Option<u64>,
}

/// Who knows.
pub(in crate::peers) enum Lookup {
    /// The internet.
    System {
        /// Fetches well-known answers.
        outward: Outward,
        /// `https`, but in tests.
        scheme: &'static str,
        /// [`WELL_KNOWN_TIMEOUT`], but in tests.
        timeout: Duration,
        /// Knows SRV records; absent where the system names no name server.
        dns: Option<Box<TokioResolver>>,
    },
    /// A test.
    #[cfg(test)]
    Table(super::tests::Table),
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Lookup")
    }
}

impl Lookup {
    /// The internet, by the name servers that the system is configured with.
    pub(in crate::peers) fn system(outward: Outward) -> Self {
        let dns = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        let dns = dns.map(Box::new).map_err(|error| {
            tracing::warn!(%error, "servers with SRV records will not be found: there is no name server");
        });
        Self::System {
            outward,
            scheme: "https",
            timeout: WELL_KNOWN_TIMEOUT,
            dns: dns.ok(),
        }
    }

    /// The addresses of a name.
    pub(super) async fn addresses(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System { .. } => {
                let found =
                    tokio::time::timeout(ADDRESS_TIMEOUT, tokio::net::lookup_host((name, port)));
                Ok(found.await??.collect())
            }
            #[cfg(test)]
            Self::Table(table) => table.addresses(name, port),
        }
    }

    /// The SRV records of a name; none also where they could not be had.
    pub(super) async fn srv(&self, name: &str) -> Vec<Srv> {
        match self {
            Self::System { dns: None, .. } => Vec::new(),
            Self::System { dns: Some(dns), .. } => {
                // With a dot at its end, nothing is tried behind it.
                let found = dns.lookup(format!("{name}."), RecordType::SRV);
                let found = tokio::time::timeout(SRV_TIMEOUT, found).await;
                let Ok(Ok(found)) = found else {
                    return Vec::new();
                };
                let records = found
                    .answers()
                    .iter()
                    .filter_map(|record| match &record.data {
                        RData::SRV(srv) => Some(Srv {
                            priority: srv.priority,
                            weight: srv.weight,
                            target: srv.target.to_ascii(),
                            port: srv.port,
                        }),
                        _ => None,
                    });
                records.collect()
            }
            #[cfg(test)]
            Self::Table(table) => table.srv(name),
        }
    }

    /// The well-known answer of a host, if there is one with the status 200.
    pub(super) async fn well_known(&self, host: &str, now_ms: u64) -> Option<WellKnownAnswer> {
        match self {
            Self::System {
                outward,
                scheme,
                timeout,
                ..
            } => {
                let url = format!("{scheme}://{host}/.well-known/matrix/server");
                let fetched = fetch(outward, &url, scheme, now_ms);
                match tokio::time::timeout(*timeout, fetched).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => {
                        tracing::debug!(host, %error, "there is no well-known answer");
                        None
                    }
                    Err(_) => None,
                }
            }
            #[cfg(test)]
            Self::Table(table) => table.well_known(host),
        }
    }
}

async fn fetch(
    outward: &Outward,
    url: &str,
    scheme: &str,
    now_ms: u64,
) -> Result<Option<WellKnownAnswer>, Box<dyn std::error::Error + Send + Sync>> {
    let mut url = Url::parse(url)?;
    let limits = Limits {
        total: WELL_KNOWN_TIMEOUT,
        idle: WELL_KNOWN_TIMEOUT,
        redirects_max: 0,
    };
    for _ in 0..=WELL_KNOWN_REDIRECTS_MAX {
        if url.scheme() != scheme {
            return Err("it leads away from HTTPS".into());
        }
        let request = outward.request(Method::GET, url.as_str())?;
        let answer = outward.send(request, &limits).await?;
        if answer.status() == StatusCode::OK {
            let cache_control = text(answer.headers(), &header::CACHE_CONTROL);
            let expires_in_ms = expires_in_ms(answer.headers(), now_ms);
            return Ok(Some(WellKnownAnswer {
                body: answer.bytes(WELL_KNOWN_BYTES_MAX).await?,
                cache_control,
                expires_in_ms,
            }));
        }
        match location(&answer) {
            Some(next) => url = next,
            None => return Err(format!("it answers {}", answer.status()).into()),
        }
    }
    Err("it is sent on too often".into())
}

fn location(answer: &Answer) -> Option<Url> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
    answer.url().join(location).ok()
}

fn text(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// How long from now the `Expires` header is; 0 if it is over.
fn expires_in_ms(headers: &HeaderMap, now_ms: u64) -> Option<u64> {
    let expires = headers.get(header::EXPIRES)?;
    let expires = ruma::http_headers::http_date_to_system_time(expires).ok()?;
    let since = expires.duration_since(std::time::UNIX_EPOCH).ok()?;
    let expires_ms = u64::try_from(since.as_millis()).ok()?;
    Some(expires_ms.saturating_sub(now_ms))
}
