//! Listening: TCP and TLS, and what every reply carries.
//!
//! Spec: client-server API, "Web Browser Clients" for the cross-origin headers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use super::auth::Client;
use crate::{
    config::{Api, Listener},
    server::App,
};

/// How long a client may take for a TLS handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long open requests may take to end when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the TLS certificate or key of {address} cannot be used: {reason}")]
    Tls {
        /// The address of the listener.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// A bound listener, before it accepts.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    config: Listener,
}

impl Bound {
    /// Binds a listener and reads its certificate.
    ///
    /// # Errors
    /// When either fails.
    pub async fn bind(config: Listener) -> Result<Self, ListenError> {
        let address = config.address;
        let tls = match (&config.tls_certificate_file, &config.tls_key_file) {
            (Some(certificate), Some(key)) => Some(
                tls_config(certificate, key)
                    .map_err(|reason| ListenError::Tls { address, reason })?,
            ),
            _ => None,
        };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError::Bind { address, source })?;
        Ok(Self {
            listener,
            tls,
            config,
        })
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.address)
    }

    /// Accepts connections until the server stops, then lets open requests end.
    pub async fn serve(self, app: App, router: Router) {
        let connections = Arc::new(Semaphore::new(app.config.limits.connections_max));
        let graceful = GracefulShutdown::new();
        let config = Arc::new(self.config);
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = app.tasks.stopping() => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            while tasks.try_join_next().is_some() {}
            let Some((stream, address, place)) = accepted else {
                continue;
            };
            let service = TowerToHyperService::new(Named {
                router: router.clone(),
                config: config.clone(),
                peer: address.ip(),
            });
            let (tls, watcher) = (self.tls.clone(), graceful.watcher());
            tasks.spawn(async move {
                match tls {
                    None => serve_connection(stream, service, watcher).await,
                    Some(tls) => {
                        let handshake = TlsAcceptor::from(tls).accept(stream);
                        if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, handshake).await
                        {
                            serve_connection(stream, service, watcher).await;
                        }
                    }
                }
                drop(place);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not end in time");
        }
        tasks.abort_all();
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> Option<Accepted> {
    let place = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // A chat is small messages both ways.
            drop(stream.set_nodelay(true));
            Some((stream, address, place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            // Out of file descriptors: give those in use time to close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: TowerToHyperService<Named>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100);
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The router for one connection: notes on each request where it comes from, which is the peer, or
/// what a trusted proxy says of it.
#[derive(Clone, Debug)]
struct Named {
    router: Router,
    config: Arc<Listener>,
    peer: IpAddr,
}

impl Named {
    fn client(&self, headers: &http::HeaderMap) -> IpAddr {
        let forwarded = || {
            let header = headers.get("x-forwarded-for")?.to_str().ok()?;
            // The last address that is not itself a trusted proxy's.
            header
                .rsplit(',')
                .filter_map(|address| address.trim().parse::<IpAddr>().ok())
                .find(|address| !self.config.trusts(*address))
        };
        if self.config.trusts(self.peer) {
            forwarded().unwrap_or(self.peer)
        } else {
            self.peer
        }
    }
}

impl tower::Service<http::Request<hyper::body::Incoming>> for Named {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = <Router as tower::Service<Request>>::Future;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        tower::Service::<Request>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        if !offers(&self.config, request.uri().path()) {
            // Nothing is there, which the router answers as for every path that it does not know.
            *request.uri_mut() = Uri::from_static("/");
        }
        let client = self.client(request.headers());
        request.extensions_mut().insert(Client(client));
        self.router.call(request)
    }
}

/// Whether a listener offers what is at a path.
fn offers(listener: &Listener, path: &str) -> bool {
    let below = |prefix: &str| path.starts_with(prefix);
    let (client, federation) = (
        listener.offers(Api::Client),
        listener.offers(Api::Federation),
    );
    if path == "/health" {
        true
    } else if path == "/metrics" {
        listener.offers(Api::Metrics)
    } else if below("/_matrix/federation/") || below("/_matrix/key/") {
        federation
    } else if below("/.well-known/") {
        client || federation
    } else {
        client
    }
}

/// The router with the cross-origin headers on every reply, and `OPTIONS` answered everywhere.
pub fn with_cors(router: Router) -> Router {
    router.layer(middleware::from_fn(cors))
}

async fn cors(request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PUT, DELETE, PATCH, HEAD, OPTIONS"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(
            "X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match",
        ),
    );
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("ETag, Location, Retry-After"),
    );
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("86400"),
    );
    response
}

fn tls_config(certificate: &Path, key: &Path) -> Result<Arc<rustls::ServerConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
        .map_err(|error| error.to_string())?
        .collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| error.to_string())?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_offers_what_it_serves_and_nothing_else() {
        let listener = |serves: &[Api]| Listener {
            serves: serves.to_vec(),
            ..Listener::plain(SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let offered = |serves: &[Api]| {
            let paths = [
                "/health",
                "/metrics",
                "/_matrix/client/versions",
                "/_matrix/federation/v1/version",
                "/_matrix/key/v2/server",
                "/.well-known/matrix/server",
                "/_synapse/admin/v1/register",
            ];
            paths.map(|path| u8::from(offers(&listener(serves), path)))
        };
        assert_eq!(
            offered(&[Api::Client, Api::Federation]),
            [1, 0, 1, 1, 1, 1, 1]
        );
        assert_eq!(offered(&[Api::Client]), [1, 0, 1, 0, 0, 1, 1]);
        assert_eq!(offered(&[Api::Federation]), [1, 0, 0, 1, 1, 1, 0]);
        assert_eq!(offered(&[Api::Metrics]), [1, 1, 0, 0, 0, 0, 0]);
    }
}
