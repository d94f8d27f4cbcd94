//! One kept-alive HTTP/1.1 connection to the server under test, and where that server is.
//!
//! Deliberately not a pool: a worker owns its connection, so that a request costs the driver one
//! write and one read and no lock. No TLS, no redirects, no retries: a benchmark that retries
//! hides what it should show. Only loopback addresses are accepted.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::clock;
use crate::failure::Failure;

/// No single exchange takes longer than this: a long-poll of two minutes on a server that is very busy.
const EXCHANGE_MAX: Duration = Duration::from_mins(5);
/// A connection that idled this long is opened anew, since the server may be about to close it.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How much of an error's body is quoted.
const QUOTE_BYTES_MAX: usize = 300;

/// The server under test.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    addr: SocketAddr,
    host: HeaderValue,
}

impl Site {
    /// Reads `http://HOST:PORT`.
    ///
    /// # Errors
    /// Another scheme, a path, an unknown name or an address that is not loopback.
    pub(crate) fn parse(base: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| Failure::Usage(format!("--base {base}: {why}"));
        let authority = base
            .strip_prefix("http://")
            .ok_or_else(|| refuse("must begin with http://"))?
            .trim_end_matches('/');
        let addr = authority
            .to_socket_addrs()
            .map_err(|_| refuse("must be http://HOST:PORT"))?
            .next()
            .ok_or_else(|| refuse("the name has no address"))?;
        if !addr.ip().is_loopback() {
            return Err(refuse("only loopback addresses are put under load"));
        }
        let host = HeaderValue::from_str(authority).map_err(|_| refuse("bad host"))?;
        Ok(Self { addr, host })
    }

    /// A connection that is opened by its first request.
    pub(crate) fn conn(&self) -> Conn {
        Conn {
            site: self.clone(),
            open: None,
        }
    }
}

/// A status and the whole body.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// What to ask. Paths are already percent-encoded.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    /// The whole `Authorization` value.
    pub(crate) bearer: Option<&'a HeaderValue>,
    pub(crate) body: Bytes,
}

/// See the module.
pub(crate) struct Conn {
    site: Site,
    open: Option<Open>,
}

struct Open {
    requests: http1::SendRequest<Full<Bytes>>,
    /// Moves the bytes; ends with the connection, and is aborted when this is dropped.
    _pump: JoinSet<()>,
    used: Instant,
}

impl Conn {
    /// Asks, and returns whatever the server answered.
    pub(crate) async fn exchange(&mut self, ask: Ask<'_>) -> Result<Reply, Failure> {
        let what = format!("{} {}", ask.method, ask.path);
        let exchange = self.exchange_unbounded(ask, &what);
        match tokio::time::timeout(EXCHANGE_MAX, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Timeout { what }),
        }
    }

    /// Asks, and returns the body of a 200.
    ///
    /// # Errors
    /// Also for every other status.
    pub(crate) async fn ask(&mut self, ask: Ask<'_>) -> Result<Bytes, Failure> {
        let request = format!("{} {}", ask.method, ask.path);
        let reply = self.exchange(ask).await?;
        if reply.status == 200 {
            return Ok(reply.body);
        }
        let quoted = reply.body.get(..QUOTE_BYTES_MAX).unwrap_or(&reply.body);
        Err(Failure::Status {
            request,
            status: reply.status,
            body: String::from_utf8_lossy(quoted).into_owned(),
        })
    }

    async fn exchange_unbounded(&mut self, ask: Ask<'_>, what: &str) -> Result<Reply, Failure> {
        let broken = |source| Failure::Http {
            what: what.to_owned(),
            source,
        };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, self.site.host.clone());
        if let Some(bearer) = ask.bearer {
            request = request.header(AUTHORIZATION, bearer.clone());
        }
        if !ask.body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let request = request
            .body(Full::new(ask.body))
            .map_err(|problem| Failure::Usage(format!("{what}: {problem}")))?;

        let open = self.opened().await?;
        open.requests.ready().await.map_err(broken)?;
        let response = open.requests.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(broken)?;
        open.used = clock::now();
        Ok(Reply {
            status,
            body: body.to_bytes(),
        })
    }

    async fn opened(&mut self) -> Result<&mut Open, Failure> {
        let usable = self
            .open
            .take()
            .filter(|open| !open.requests.is_closed() && open.used.elapsed() < IDLE_MAX);
        let open = match usable {
            Some(open) => open,
            None => Open::new(&self.site).await?,
        };
        Ok(self.open.insert(open))
    }
}

impl Open {
    async fn new(site: &Site) -> Result<Self, Failure> {
        let connecting = || format!("connecting to {}", site.addr);
        let stream = TcpStream::connect(site.addr)
            .await
            .map_err(Failure::io(connecting()))?;
        stream
            .set_nodelay(true)
            .map_err(Failure::io("setting TCP_NODELAY"))?;
        let (requests, connection) =
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|source| Failure::Http {
                    what: connecting(),
                    source,
                })?;
        let mut pump = JoinSet::new();
        pump.spawn(async move {
            // A broken connection also fails the request that waits on it, which reports it.
            drop(connection.await);
        });
        Ok(Self {
            requests,
            _pump: pump,
            used: clock::now(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Site;

    #[test]
    fn only_loopback_servers_are_put_under_load() {
        assert!(Site::parse("http://127.0.0.1:8008").is_ok());
        assert!(Site::parse("http://[::1]:8008/").is_ok());
        for refused in [
            "http://192.0.2.1:8008",
            "https://127.0.0.1:8008",
            "http://127.0.0.1",
            "127.0.0.1:8008",
        ] {
            assert!(Site::parse(refused).is_err(), "{refused}");
        }
    }
}
