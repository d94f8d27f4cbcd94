//! Server-server API, "Resolving server names", "TLS": requests over real connections.
//!
//! Which name leads where is tested where it is decided; here it is whom a server speaks to, under which name, and whom
//! it believes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use compliance_tests::World;
use homeserver::{
    config::{Config, Listener},
    peers::{self, Limits, PeerError},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ruma::{ServerName, api::federation::discovery::get_server_version};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// Whoever says who is who.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { directory, issuer }
    }

    /// A certificate for these names and addresses, and its key, in PEM.
    fn issue(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Makes a server trust this authority.
    fn trust(&self, config: &mut Config) {
        config.testing.extra_ca_file = Some(self.directory.path().join("ca.pem"));
    }
}

/// What a server saw of a request: the name in the TLS handshake, and the head.
#[derive(Clone, Debug)]
struct Seen {
    sni: Option<String>,
    head: String,
}

impl Seen {
    fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(of, _)| of.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }
}

type AllSeen = Arc<Mutex<Vec<Seen>>>;

/// A server with HTTP/1.1 and TLS that answers every request with this JSON.
async fn tls_server(
    certificate: (rcgen::Certificate, KeyPair),
    json: &str,
) -> (SocketAddr, AllSeen) {
    let length = json.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    raw_server(certificate, format!("{head}{json}"), Then::Close).await
}

/// What a server does when it has answered.
#[derive(Clone, Copy)]
enum Then {
    Close,
    /// It sends 200 MB more.
    Flood,
    /// It sends a byte every second, for ever.
    Drip,
}

impl Then {
    async fn go_on(self, stream: &mut (impl tokio::io::AsyncWrite + Unpin)) -> std::io::Result<()> {
        match self {
            Self::Close => {}
            Self::Flood => {
                for _ in 0..200 * 64 {
                    stream.write_all(&[b' '; 1 << 14]).await?;
                }
            }
            Self::Drip => loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            },
        }
        stream.shutdown().await
    }
}

/// The same with any answer.
async fn raw_server(
    (certificate, key): (rcgen::Certificate, KeyPair),
    answer: String,
    then: Then,
) -> (SocketAddr, AllSeen) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate)], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = AllSeen::default();
    let all = seen.clone();
    #[expect(clippy::disallowed_methods, reason = "a test has no task set")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust the certificate hangs up.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = vec![0; 8_192];
            let length = stream.read(&mut head).await.unwrap_or(0);
            head.truncate(length);
            all.lock().unwrap().push(Seen {
                sni: stream.get_ref().1.server_name().map(str::to_owned),
                head: String::from_utf8(head).unwrap(),
            });
            drop(stream.write_all(answer.as_bytes()).await);
            drop(then.go_on(&mut stream).await);
        }
    });
    (address, seen)
}

const VERSION: &str = r#"{"server":{"name":"other"}}"#;

async fn version(world: &World, server: &str) -> Result<String, PeerError> {
    version_within(world, server, None).await
}

async fn version_within(
    world: &World,
    server: &str,
    limits: Option<Limits>,
) -> Result<String, PeerError> {
    let server = ServerName::parse(server).unwrap();
    let request = get_server_version::v1::Request::new();
    let answer = peers::ask_within(&world.server().app, &server, request, limits).await?;
    Ok(answer.server.unwrap().name.unwrap())
}

async fn asks(change: impl FnOnce(&mut Config)) -> World {
    World::on_the_internet("hs1", change).await
}

#[track_caller]
fn assert_unreachable(answer: &Result<String, PeerError>) {
    assert!(
        matches!(answer, Err(PeerError::Unreachable { .. })),
        "{answer:?}"
    );
}

#[tokio::test] // Steps 1 and 2: `Host` is the server name with its port, SNI is the name, and not there for an address
async fn a_server_is_spoken_to_by_its_own_name_wherever_it_is() {
    let authority = Authority::new();
    let names = ["hs2", "hs3.example", "localhost", "127.0.0.1"];
    let (address, seen) = tls_server(authority.issue(&names), VERSION).await;
    let hs1 = asks(|config| {
        authority.trust(config);
        config.testing.server_addresses = ["hs2", "hs3.example:1234"]
            .map(|name| (name.try_into().unwrap(), address))
            .into();
    })
    .await;
    let port = address.port();
    for (server, sni) in [
        ("hs2".to_owned(), Some("hs2")),
        ("hs3.example:1234".to_owned(), Some("hs3.example")),
        (format!("localhost:{port}"), Some("localhost")),
        (format!("127.0.0.1:{port}"), None),
    ] {
        assert_eq!(version(&hs1, &server).await.unwrap(), "other", "{server}");
        let seen = seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.sni.as_deref(), sni, "{server}");
        assert_eq!(seen.header("host"), [server.as_str()]);
        assert!(
            seen.head
                .starts_with("GET /_matrix/federation/v1/version HTTP/1.1\r\n")
        );
        assert_eq!(seen.header("authorization").len(), 1);
    }
}

#[tokio::test] // "The target server must present a valid certificate for the hostname"
async fn who_cannot_prove_its_name_is_not_spoken_to() {
    let (authority, other_authority) = (Authority::new(), Authority::new());
    let (wrong_name, seen) = tls_server(authority.issue(&["hs3"]), VERSION).await;
    let (wrong_authority, seen_too) = tls_server(other_authority.issue(&["hs4"]), VERSION).await;
    let hs1 = asks(|config| {
        authority.trust(config);
        // Other outgoing requests may be less careful, federation is not.
        config.testing.accept_any_certificate = true;
        config.testing.server_addresses = [("hs2", wrong_name), ("hs4", wrong_authority)]
            .map(|(name, address)| (name.try_into().unwrap(), address))
            .into();
    })
    .await;
    assert_unreachable(&version(&hs1, "hs2").await);
    assert_unreachable(&version(&hs1, "hs4").await);
    assert_unreachable(&version(&hs1, &format!("127.0.0.1:{}", wrong_name.port())).await);
    assert!(seen.lock().unwrap().is_empty() && seen_too.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_address_of_this_machine_is_not_spoken_to_unless_a_test_rig_says_so() {
    let authority = Authority::new();
    let (address, seen) = tls_server(authority.issue(&["localhost", "127.0.0.1"]), VERSION).await;
    let hs1 = asks(|config| {
        authority.trust(config);
        config.testing.allow_private_addresses = false;
    })
    .await;
    let port = address.port();
    for server in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("127.1:{port}"),
        format!("2130706433:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
    ] {
        assert_unreachable(&version(&hs1, &server).await);
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nobody_listening_is_unreachable_and_remembered_as_that() {
    let hs1 = asks(|_| {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    drop(listener);
    assert_unreachable(&version(&hs1, &server).await);
    let again = version(&hs1, &server).await.unwrap_err();
    assert!(again.to_string().contains("a moment ago"), "{again}");
}

#[tokio::test]
async fn what_is_no_http_or_no_answer_is_an_error() {
    let authority = Authority::new();
    for answer in ["{", "5", "<html>"] {
        let (address, _) = tls_server(authority.issue(&["hs2"]), answer).await;
        let hs1 = asks(|config| {
            authority.trust(config);
            config.testing.server_addresses = [("hs2".try_into().unwrap(), address)].into();
        })
        .await;
        assert_unreachable(&version(&hs1, "hs2").await);
    }
}

#[tokio::test]
async fn an_answer_over_a_connection_is_limited_in_size_and_in_time() {
    let authority = Authority::new();
    let limits = Limits {
        timeout: Duration::from_secs(20),
        bytes_max: 100_000,
    };
    let head = |length: &str| format!("HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n");
    let quickly = Limits {
        timeout: Duration::from_millis(300),
        ..limits
    };
    let cases = [
        (head(""), Then::Flood, limits, "larger than 100000 bytes"),
        (
            head("Content-Length: 200000000\r\n"),
            Then::Drip,
            limits,
            "larger than 100000 bytes",
        ),
        (head("Content-Length: 1000\r\n"), Then::Close, limits, ""),
        (
            head("Content-Length: 1000\r\n"),
            Then::Drip,
            quickly,
            "did not come in time",
        ),
        (
            "HTTP/1.1 200 OK\r\nX: ".to_owned(),
            Then::Drip,
            quickly,
            "did not come in time",
        ),
        ("SSH-2.0-x\r\n".to_owned(), Then::Close, limits, ""),
    ];
    for (answer, then, limits, cause) in cases {
        let (address, _) = raw_server(authority.issue(&["hs2"]), answer.clone(), then).await;
        let hs1 = asks(|config| {
            authority.trust(config);
            config.testing.server_addresses = [("hs2".try_into().unwrap(), address)].into();
        })
        .await;
        let error = version_within(&hs1, "hs2", Some(limits)).await.unwrap_err();
        assert!(error.to_string().contains(cause), "{answer}: {error}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let authority = Authority::new();
    let answer =
        "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (address, seen) =
        raw_server(authority.issue(&["hs2"]), answer.to_owned(), Then::Close).await;
    let hs1 = asks(|config| {
        authority.trust(config);
        config.testing.server_addresses = [("hs2".try_into().unwrap(), address)].into();
    })
    .await;
    assert_unreachable(&version(&hs1, "hs2").await);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test] // Both ends are ours: HTTP/2, and keys over the wire
async fn two_servers_federate_over_tls() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&["hs2"]);
    let file = |name: &str, content: String| {
        let path = authority.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    };
    let listener = Listener {
        tls_certificate_file: file("hs2.pem", certificate.pem()),
        tls_key_file: file("hs2.key", key.serialize_pem()),
        ..Listener::plain("127.0.0.1:0".parse().unwrap())
    };
    let hs2 = World::on_the_internet("hs2", |config| config.listeners = vec![listener]).await;
    let listening = hs2.server().listen().await.unwrap();
    let hs1 = asks(|config| {
        authority.trust(config);
        config.testing.server_addresses =
            [("hs2".try_into().unwrap(), listening.addresses[0])].into();
    })
    .await;
    let asked = (0..20).map(|_| version(&hs1, "hs2"));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.unwrap(), "Guildhall");
    }
    let path = "/_matrix/key/v2/query/hs2";
    let reply = hs1.request(http::Method::GET, path, None, None).await.ok();
    assert_eq!(reply["server_keys"][0]["server_name"], "hs2");
    assert!(reply["server_keys"][0]["signatures"]["hs1"].is_object());
}
