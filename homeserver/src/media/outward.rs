//! Requests to places that a user names: pages to preview, push gateways.
//!
//! Whoever can make a server fetch a URL can try to make it fetch from the network the server stands in:
//! databases without a password, routers, the cloud's credentials. So a request goes only to a public
//! address, whatever name leads there and however often it is redirected (`guard.rs`), and what comes back is
//! bounded in size and in time, whatever its headers announce (`answer.rs`).
//!
//! It does not go through a proxy, keeps no cookies, and does not retry. It cannot know that a public address
//! is the server's own, or leads back inside through somebody's port forwarding: what must not be reached
//! from the internet must not listen there. Requests to other homeservers go elsewhere: their addresses are
//! found in another way, and their answers are trusted further.
//!
//! Spec: client-server API, `GET /media/preview_url`; push gateway API.

use std::{error::Error, time::Duration};

use http::{HeaderValue, Method, header};
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder, Url, redirect};
use rustls_pki_types::CertificateDer;

mod address;
mod answer;
mod guard;

#[cfg(test)]
mod tests;

pub use address::is_public;
pub use answer::Answer;
use answer::Deadline;
pub use guard::Refusal;
use guard::{Lookup, Resolver, Rule};

/// How long a connection may take to be made. Within [`Limits::total`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept for the next request to the same host, and how many of them. Previews go to
/// a different host nearly every time, so what is kept is mostly a cost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_PER_HOST_MAX: usize = 4;

/// What a page that is fetched for its looks is asked for.
const ACCEPT: HeaderValue =
    HeaderValue::from_static("text/html,application/xhtml+xml;q=0.9,image/*;q=0.8,*/*;q=0.5");

/// How the outside is reached.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// What the server calls itself in `User-Agent`.
    pub user_agent: String,
    /// For test rigs: private and loopback addresses may be reached, too, and any port.
    pub allow_private: bool,
    /// For test rigs: certificates by which others may prove who they are, besides those the system trusts.
    pub extra_ca: Vec<CertificateDer<'static>>,
    /// For test rigs: nobody needs to prove who they are.
    pub accept_any_certificate: bool,
}

/// How much a request may take. The size is told later, when it is known what is coming.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first name lookup to the last byte, redirects included. Who sends a byte at a time is stopped
    /// by this.
    pub total: Duration,
    /// Between two pieces of the body. Who stops sending is stopped by this.
    pub idle: Duration,
    /// How many redirects are followed.
    pub redirects_max: usize,
}

impl Default for Limits {
    /// 30 s in all, 10 s without a byte, 5 redirects.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(30),
            idle: Duration::from_secs(10),
            redirects_max: 5,
        }
    }
}

/// The client could not be set up: a certificate of [`Policy::extra_ca`] or the TLS library is unusable.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the client for outgoing requests")]
pub struct SetUpError(#[from] reqwest::Error);

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request may not be sent, or not to where it was redirected.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was sent on too often.
    #[error("more than {redirects_max} redirects")]
    TooManyRedirects {
        /// The limit.
        redirects_max: usize,
    },
    /// What comes is larger than the caller wants.
    #[error("the answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The answer, or the next piece of it, did not come in time.
    #[error("the answer did not come in time")]
    TimedOut,
    /// No connection, no TLS, no HTTP.
    #[error("the request failed")]
    Failed(#[source] reqwest::Error),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = error.source();
        while let Some(error) = cause {
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                return Self::Refused(refusal.clone());
            }
            cause = error.source();
        }
        if error.is_timeout() {
            return Self::TimedOut;
        }
        // The URL may hold what only the one who gave it should know.
        Self::Failed(error.without_url())
    }
}

/// What was fetched, whole.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Where it came from, after all redirects.
    pub final_url: Url,
    /// Any status but a redirect that was followed.
    pub status: http::StatusCode,
    /// As declared.
    pub content_type: Option<String>,
    /// The body, unpacked.
    pub bytes: Vec<u8>,
}

/// A client for what users name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outward {
    client: Client,
    rule: Rule,
}

impl Outward {
    /// A client under `policy`.
    ///
    /// A TLS provider must be installed before. On a machine that trusts nobody's certificates, HTTPS fails
    /// and the log says so; it is no reason not to start.
    pub fn new(policy: &Policy) -> Result<Self, SetUpError> {
        let rule = if policy.allow_private {
            Rule::Any
        } else {
            Rule::Public
        };
        Self::with(policy, rule, Lookup::System)
    }

    fn with(policy: &Policy, rule: Rule, lookup: Lookup) -> Result<Self, SetUpError> {
        let resolver = Resolver {
            rule: rule.clone(),
            lookup,
        };
        let builder = || builder(policy, resolver.clone());
        let client = if policy.extra_ca.is_empty() {
            builder().build().or_else(|error| {
                tracing::warn!(%error, "no certificates of the system can be used: outgoing HTTPS will fail");
                builder().tls_certs_only([]).build()
            })?
        } else {
            let extra_ca = policy.extra_ca.iter().map(|der| Certificate::from_der(der));
            builder()
                .tls_certs_merge(extra_ca.collect::<Result<Vec<_>, _>>()?)
                .build()?
        };
        Ok(Self { client, rule })
    }

    /// A request to `url`, to be filled and given to [`send`](Self::send).
    ///
    /// # Errors
    /// `url` is none that may be asked. What a name in it leads to is found out when it is sent.
    pub fn request(&self, method: Method, url: &str) -> Result<RequestBuilder, Refusal> {
        let url = Url::parse(url).map_err(|_| Refusal::NotAUrl)?;
        self.rule.check(&url)?;
        Ok(self.client.request(method, url))
    }

    /// Sends `request`, and waits for the head of the answer. Redirects are not followed: they are answers.
    pub async fn send(
        &self,
        request: RequestBuilder,
        limits: &Limits,
    ) -> Result<Answer, FetchError> {
        self.send_before(Deadline::after(limits.total), request, limits)
            .await
    }

    /// Asks for `url`, follows redirects, and waits for the head of the answer. Every address on the way is
    /// checked like the first.
    pub async fn open(&self, url: &str, limits: &Limits) -> Result<Answer, FetchError> {
        let mut deadline = Deadline::after(limits.total);
        let mut url = Url::parse(url).map_err(|_| Refusal::NotAUrl)?;
        for _ in 0..=limits.redirects_max {
            self.rule.check(&url)?;
            let request = self.client.get(url).header(header::ACCEPT, ACCEPT);
            let answer = self.send_before(deadline, request, limits).await?;
            match answer.redirect() {
                None => return Ok(answer),
                Some(next) => url = next,
            }
            deadline = answer.into_deadline();
        }
        Err(FetchError::TooManyRedirects {
            redirects_max: limits.redirects_max,
        })
    }

    /// Fetches `url`, at most `bytes_max` bytes of it.
    pub async fn get(
        &self,
        url: &str,
        bytes_max: usize,
        limits: &Limits,
    ) -> Result<Fetch, FetchError> {
        let answer = self.open(url, limits).await?;
        Ok(Fetch {
            final_url: answer.url().clone(),
            status: answer.status(),
            content_type: answer.content_type().map(str::to_owned),
            bytes: answer.bytes(bytes_max).await?,
        })
    }

    async fn send_before(
        &self,
        mut deadline: Deadline,
        request: RequestBuilder,
        limits: &Limits,
    ) -> Result<Answer, FetchError> {
        let response = deadline.within(request.send()).await??;
        Ok(Answer::new(response, deadline, limits.idle))
    }
}

fn builder(policy: &Policy, resolver: Resolver) -> ClientBuilder {
    Client::builder()
        .user_agent(&policy.user_agent)
        .dns_resolver(resolver)
        // A proxy would resolve names itself, and a redirect would not be checked.
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .tls_danger_accept_invalid_certs(policy.accept_any_certificate)
}
