//! Little servers on loopback, most of them ill-disposed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Body, extract::Request, response::Response};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A server that answers every connection in one way, and ends with the test.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// One that hands each connection, whose request has been read, to `answer`.
    async fn raw<F>(answer: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let answer = Arc::new(answer);
        Self::listening(Ipv4Addr::LOCALHOST, move |mut stream: TcpStream| {
            let answer = Arc::clone(&answer);
            async move {
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    answer(stream).await;
                }
            }
        })
        .await
    }

    /// One that answers each request with what is written in `answer`.
    async fn saying(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::raw(move |mut stream| {
            let answer = answer.clone();
            async move {
                // The client may have heard enough before it is all said.
                stream.write_all(answer.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        })
        .await
    }

    /// One that is an axum application.
    async fn routing(router: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            connections,
            _tasks: tasks,
        }
    }

    async fn listening<A, F>(host: Ipv4Addr, answer: A) -> Self
    where
        A: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut answers = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                answers.spawn(answer(stream));
            }
        });
        Self {
            address,
            connections,
            _tasks: tasks,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn use_ring() {
    // The second test to come here finds it installed.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

fn policy(allow_private: bool) -> Policy {
    use_ring();
    Policy {
        user_agent: "Guildhall tests".to_owned(),
        allow_private,
        ..Policy::default()
    }
}

/// A client that may go anywhere.
fn unguarded() -> Outward {
    Outward::new(&policy(true)).unwrap()
}

/// A client for which `only` is the public internet, and `table` the DNS.
fn guarded(
    only: IpAddr,
    table: impl Fn(&str) -> Vec<SocketAddr> + Send + Sync + 'static,
) -> Outward {
    Outward::with(
        &policy(false),
        Rule::Only(only),
        Lookup::Table(Arc::new(table)),
    )
    .unwrap()
}

fn no_dns(name: &str) -> Vec<SocketAddr> {
    panic!("{name} was looked up")
}

const THIS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Long enough for a busy machine: these tests do not wait for the time to run out.
const PATIENT: Limits = Limits {
    total: Duration::from_mins(1),
    idle: Duration::from_mins(1),
    redirects_max: 3,
};

/// Fetches a little, in a way that a task of a server could.
fn get<'a>(
    outward: &'a Outward,
    url: &'a str,
) -> impl Future<Output = Result<Fetch, FetchError>> + Send + 'a {
    outward.get(url, 1000, &PATIENT)
}

#[track_caller]
fn refusal(result: Result<impl std::fmt::Debug, FetchError>) -> Refusal {
    match result {
        Err(FetchError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_page_is_fetched_with_its_type_and_final_address() {
    let server = Server::routing(Router::new().fallback(async |request: Request| {
        let agent = request.headers()["user-agent"].to_str().unwrap().to_owned();
        match request.uri().path() {
            "/old" => Response::builder()
                .status(302)
                .header("location", "/new?a=b")
                .body(Body::empty()),
            "/new" => Response::builder()
                .header("content-type", "text/html")
                .body(Body::from(agent)),
            _ => Response::builder().status(404).body(Body::from("nothing")),
        }
        .unwrap()
    }))
    .await;
    let outward = unguarded();

    let fetch = get(&outward, &server.url("/old")).await.unwrap();
    assert_eq!(fetch.final_url.as_str(), server.url("/new?a=b"));
    assert_eq!(fetch.status, 200);
    assert_eq!(fetch.content_type.as_deref(), Some("text/html"));
    assert_eq!(fetch.bytes, b"Guildhall tests");

    let fetch = get(&outward, &server.url("/else")).await.unwrap();
    assert_eq!((fetch.status.as_u16(), fetch.content_type), (404, None));
    assert_eq!(fetch.bytes, b"nothing");
}

#[tokio::test]
async fn a_request_with_a_body_is_sent_and_not_redirected() {
    let server = Server::routing(Router::new().fallback(async |request: Request| {
        let echo = Response::builder()
            .status(308)
            .header("location", "/elsewhere");
        echo.body(request.into_body()).unwrap()
    }))
    .await;
    let outward = unguarded();
    let request = outward
        .request(Method::POST, &server.url("/push"))
        .unwrap()
        .body("notification");
    let answer = outward.send(request, &PATIENT).await.unwrap();
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.url().path(), "/push");
    assert_eq!(answer.bytes(100).await.unwrap(), b"notification");
}

#[tokio::test]
async fn only_http_and_https_to_ports_for_it_are_asked() {
    let outward = Outward::new(&policy(false)).unwrap();
    let refused = |url: &str| outward.request(Method::GET, url).map(|_| ()).unwrap_err();
    for scheme in ["ftp", "file", "gopher", "javascript", "data"] {
        let refusal = refused(&format!("{scheme}://example.org/"));
        assert_eq!(
            refusal,
            Refusal::Scheme {
                scheme: scheme.to_owned()
            }
        );
    }
    for url in [
        "",
        "example.org",
        "/path",
        "http://",
        "http://exa mple/",
        "http://[::1",
    ] {
        assert_eq!(refused(url), Refusal::NotAUrl, "{url}");
    }
    for port in [0, 22, 25, 110, 6000, 6667, 10_080] {
        assert_eq!(
            refused(&format!("http://example.org:{port}/")),
            Refusal::Port { port }
        );
    }
    assert_eq!(refused("http://user@example.org/"), Refusal::Credentials);
    assert_eq!(
        refused("http://:password@example.org/"),
        Refusal::Credentials
    );
    for url in [
        "http://example.org",
        "https://example.org:8443/x",
        "http://example.org:8080",
        "http://1.1.1.1",
    ] {
        assert!(outward.request(Method::GET, url).is_ok(), "{url}");
    }
}

#[tokio::test]
async fn a_private_address_is_refused_in_every_spelling() {
    let server = Server::saying("HTTP/1.1 200 OK\r\n\r\n").await;
    let outward = Outward::new(&policy(false)).unwrap();
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "１２７.0.0.1",
    ] {
        let url = format!("http://{host}:{port}/");
        let refusal = refusal(get(&outward, &url).await);
        assert!(
            matches!(refusal, Refusal::Address { .. }),
            "{url}: {refusal:?}"
        );
    }
    // The name is looked up in earnest; that it is loopback is not taken from its looks.
    let refusal = refusal(get(&outward, &format!("http://localhost:{port}/")).await);
    assert_eq!(
        refusal,
        Refusal::Name {
            name: "localhost".to_owned()
        }
    );
    assert_eq!(server.connections(), 0);

    assert!(
        get(&unguarded(), &format!("http://127.1:{port}/"))
            .await
            .is_ok()
    );
    assert!(
        get(&unguarded(), &format!("http://localhost:{port}/"))
            .await
            .is_ok()
    );
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_name_is_connected_to_by_the_addresses_that_passed() {
    let server = Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let port = server.address.port();
    // One private address among the public ones does not make the name unusable.
    let outward = guarded(THIS, |_| vec![(OTHER, 0).into(), (THIS, 0).into()]);
    let fetch = get(&outward, &format!("http://mixed.test:{port}/"))
        .await
        .unwrap();
    assert_eq!(fetch.bytes, b"ok");

    let outward = guarded(THIS, |_| vec![(OTHER, 0).into()]);
    let refusal = refusal(get(&outward, &format!("http://inside.test:{port}/")).await);
    assert_eq!(
        refusal,
        Refusal::Name {
            name: "inside.test".to_owned()
        }
    );

    let outward = guarded(THIS, |_| vec![]);
    let error = get(&outward, &format!("http://nowhere.test:{port}/"))
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Failed(_)), "{error:?}");
}

#[tokio::test]
async fn a_name_that_changes_its_meaning_after_the_first_look_gains_nothing() {
    let inside = Server::listening(Ipv4Addr::new(127, 0, 0, 2), async |_| {}).await;
    let port = inside.address.port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let outward = guarded(THIS, move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        vec![(if first { THIS } else { OTHER }, 0).into()]
    });
    let url = format!("http://rebinding.test:{port}/");

    // Nothing listens at the address it has at first.
    let error = get(&outward, &url).await.unwrap_err();
    assert!(matches!(error, FetchError::Failed(_)), "{error:?}");
    let refusal = refusal(get(&outward, &url).await);
    assert!(matches!(refusal, Refusal::Name { .. }), "{refusal:?}");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        2,
        "it is looked up for each connection, once"
    );
    assert_eq!(inside.connections(), 0);
}

fn redirect_to(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_redirect_does_not_lead_inside() {
    let inside = Server::listening(Ipv4Addr::new(127, 0, 0, 2), async |_| {}).await;
    for (location, expected) in [
        (
            format!("http://{}/", inside.address),
            Refusal::Address { address: OTHER },
        ),
        (
            format!("//{}/", inside.address),
            Refusal::Address { address: OTHER },
        ),
        (
            format!("http://inside.test:{}/", inside.address.port()),
            Refusal::Name {
                name: "inside.test".to_owned(),
            },
        ),
        (
            "file:///etc/passwd".to_owned(),
            Refusal::Scheme {
                scheme: "file".to_owned(),
            },
        ),
        ("http://a:b@127.0.0.1/".to_owned(), Refusal::Credentials),
    ] {
        let server = Server::saying(redirect_to(&location)).await;
        let outward = guarded(THIS, |_| vec![(OTHER, 0).into()]);
        assert_eq!(
            refusal(get(&outward, &server.url("/")).await),
            expected,
            "{location}"
        );
        assert_eq!(server.connections(), 1);
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn redirects_are_followed_up_to_the_limit() {
    let router = |to: usize| {
        Router::new().fallback(async move |request: Request| {
            let at: usize = request.uri().path().trim_matches('/').parse().unwrap();
            let next = (at + 1).to_string();
            let status = if at < to { 307 } else { 200 };
            let response = Response::builder().status(status).header("location", next);
            response.body(Body::empty()).unwrap()
        })
    };
    let outward = guarded(THIS, no_dns);
    let three = Server::routing(router(3)).await;
    assert_eq!(
        get(&outward, &three.url("/0"))
            .await
            .unwrap()
            .final_url
            .path(),
        "/3"
    );
    let four = Server::routing(router(4)).await;
    let error = get(&outward, &four.url("/0")).await.unwrap_err();
    assert!(
        matches!(error, FetchError::TooManyRedirects { redirects_max: 3 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_redirect_to_nowhere_is_an_answer() {
    let server = Server::saying("HTTP/1.1 302 Found\r\ncontent-length: 4\r\n\r\nhere").await;
    let fetch = get(&unguarded(), &server.url("/")).await.unwrap();
    assert_eq!(
        (fetch.status.as_u16(), fetch.bytes.as_slice()),
        (302, &b"here"[..])
    );
}

#[tokio::test]
async fn an_answer_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() {
    let outward = unguarded();
    let body = "x".repeat(1001);
    for (length, fits) in [(1000, true), (1001, false)] {
        let body = body.split_at(length).0;
        for head in [
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"),
            "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n"),
        ] {
            let chunked = head.contains("chunked");
            let end = if chunked { "\r\n0\r\n\r\n" } else { "" };
            let server = Server::saying(format!("{head}{body}{end}")).await;
            match get(&outward, &server.url("/")).await {
                Ok(fetch) => assert!(fits && fetch.bytes.len() == length, "{head}"),
                Err(FetchError::TooLarge { bytes_max: 1000 }) => assert!(!fits, "{head}"),
                Err(error) => panic!("{head}: {error:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_announced_length_is_believed_only_if_it_is_too_long() {
    let outward = unguarded();
    // Announced, and never sent: it is not waited for.
    let server = Server::saying(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        1_u64 << 40
    ))
    .await;
    let error = get(&outward, &server.url("/")).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error:?}");

    let server = Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nless").await;
    let error = get(&outward, &server.url("/")).await.unwrap_err();
    assert!(matches!(error, FetchError::Failed(_)), "{error:?}");

    let server =
        Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmore than announced").await;
    assert_eq!(
        get(&outward, &server.url("/")).await.unwrap().bytes,
        b"more"
    );
}

#[tokio::test]
async fn what_unpacks_to_more_than_the_limit_is_not_unpacked() {
    // 32 times 32 kB of zeros in one deflate block each, packed by the rule for runs.
    const BOMB: &[u8] = include_bytes!("tests/zeros.gz");
    assert!(BOMB.len() < 2000);
    let server = Server::routing(Router::new().fallback(async || {
        Response::builder()
            .header("content-encoding", "gzip")
            .body(Body::from(BOMB))
            .unwrap()
    }))
    .await;
    let outward = unguarded();
    let fetch = async |bytes_max| outward.get(&server.url("/"), bytes_max, &PATIENT).await;
    assert_eq!(fetch(1 << 20).await.unwrap().bytes, vec![0; 1 << 20]);
    let error = fetch((1 << 20) - 1).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn the_beginning_of_an_endless_answer_can_be_had() {
    let server = Server::raw(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok();
        while stream.write_all(&[b'x'; 1000]).await.is_ok() {}
    })
    .await;
    let answer = unguarded().open(&server.url("/"), &PATIENT).await.unwrap();
    assert_eq!(answer.prefix(12_345).await.unwrap(), vec![b'x'; 12_345]);

    let server = Server::saying("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nshort").await;
    let answer = unguarded().open(&server.url("/"), &PATIENT).await.unwrap();
    assert_eq!(answer.prefix(12_345).await.unwrap(), b"short");
}

#[tokio::test]
async fn who_sends_nothing_is_not_waited_for() {
    let impatient = Limits {
        total: Duration::from_mins(10),
        idle: Duration::from_millis(50),
        ..PATIENT
    };
    let server = Server::raw(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun").await.ok();
        std::future::pending::<()>().await;
    })
    .await;
    let error = unguarded()
        .get(&server.url("/"), 1000, &impatient)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::TimedOut), "{error:?}");
}

#[tokio::test]
async fn who_sends_a_byte_at_a_time_is_stopped_when_the_time_is_over() {
    let drip = async |mut stream: TcpStream, head: &'static [u8]| {
        stream.write_all(head).await.ok();
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while stream.write_all(b"x").await.is_ok() {
            pause.tick().await;
        }
    };
    let hurried = Limits {
        total: Duration::from_millis(300),
        idle: Duration::from_mins(10),
        ..PATIENT
    };
    let body = Server::raw(move |stream| drip(stream, b"HTTP/1.1 200 OK\r\n\r\n")).await;
    let head = Server::raw(move |stream| drip(stream, b"HTTP/1.1 200 OK\r\nx: ")).await;
    let nothing = Server::raw(async |_stream| std::future::pending::<()>().await).await;
    for server in [body, head, nothing] {
        let error = unguarded()
            .get(&server.url("/"), 1 << 20, &hurried)
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::TimedOut), "{error:?}");
    }
}

#[tokio::test]
async fn redirects_do_not_buy_more_time() {
    let server = Server::raw(async |mut stream| {
        let mut pause = tokio::time::interval(Duration::from_millis(150));
        pause.tick().await; // the first one is at once
        pause.tick().await;
        stream
            .write_all(redirect_to("/again").as_bytes())
            .await
            .ok();
    })
    .await;
    let hurried = Limits {
        total: Duration::from_millis(400),
        redirects_max: 100,
        ..PATIENT
    };
    let error = unguarded()
        .get(&server.url("/"), 1000, &hurried)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::TimedOut), "{error:?}");
    assert!(server.connections() < 10);
}

#[tokio::test]
async fn what_is_no_http_is_a_failure() {
    for answer in ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 999999 Odd\r\n\r\n"] {
        let server = Server::saying(answer).await;
        let error = get(&unguarded(), &server.url("/secret?token=abc"))
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::Failed(_)), "{error:?}");
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            words.push_str(&error.to_string());
            cause = error.source();
        }
        assert!(!words.contains("secret"), "{words}");
    }
}

/// A server whose certificate is signed by the authority of the tests.
async fn https() -> Server {
    use_ring();
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tests/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tests/server.key")).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Server::listening(Ipv4Addr::LOCALHOST, move |stream| {
        let accept = acceptor.accept(stream);
        async move {
            // A client that does not trust the certificate goes away.
            let Ok(mut stream) = accept.await else { return };
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
                    .await
                    .ok();
                stream.shutdown().await.ok();
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_certificate_counts_if_its_authority_is_trusted_or_if_nobody_cares() {
    let server = https().await;
    let url = format!("https://{}/", server.address);
    let fetch = async |policy: Policy| get(&Outward::new(&policy).unwrap(), &url).await;

    let error = fetch(policy(true)).await.unwrap_err();
    assert!(matches!(error, FetchError::Failed(_)), "{error:?}");
    let authority = CertificateDer::from_pem_slice(include_bytes!("tests/ca.pem")).unwrap();
    let trusting = Policy {
        extra_ca: vec![authority],
        ..policy(true)
    };
    assert_eq!(fetch(trusting.clone()).await.unwrap().bytes, b"secret");
    let careless = Policy {
        accept_any_certificate: true,
        ..policy(true)
    };
    assert_eq!(fetch(careless).await.unwrap().bytes, b"secret");
    // To trust is not to be let in.
    let refusal = refusal(
        fetch(Policy {
            allow_private: false,
            ..trusting
        })
        .await,
    );
    assert_eq!(refusal, Refusal::Address { address: THIS });
}

#[test]
fn an_authority_that_is_no_certificate_is_an_error() {
    let nonsense = Policy {
        extra_ca: vec![vec![1, 2, 3].into()],
        ..policy(true)
    };
    assert!(Outward::new(&nonsense).is_err());
}
