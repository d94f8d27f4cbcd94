use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use federation::wire::discovery::Srv;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{lookup::WellKnownAnswer, *};
use crate::media::outward::{Outward, Policy};

const MINUTE_MS: u64 = 60 * 1_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// What the world knows, and how often it was asked.
#[derive(Clone, Default)]
pub(in crate::peers) struct Table(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    addresses: BTreeMap<String, Vec<&'static str>>,
    srv: BTreeMap<String, Vec<Srv>>,
    well_known: BTreeMap<String, WellKnownAnswer>,
    asked: Vec<String>,
}

impl Table {
    fn with(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.0.lock().unwrap());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }

    fn name(&self, name: &str, addresses: &[&'static str]) {
        self.with(|world| drop(world.addresses.insert(name.to_owned(), addresses.to_vec())));
    }

    fn delegate(&self, host: &str, body: &str, cache_control: Option<&str>) {
        let answer = WellKnownAnswer {
            body: body.as_bytes().to_vec(),
            cache_control: cache_control.map(str::to_owned),
            expires_in_ms: None,
        };
        self.with(|world| drop(world.well_known.insert(host.to_owned(), answer)));
    }

    pub(super) fn addresses(&self, name: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        let mut world = self.0.lock().unwrap();
        world.asked.push(name.to_owned());
        let found = world.addresses.get(name);
        let found = found.ok_or(std::io::ErrorKind::NotFound)?.iter();
        Ok(found
            .map(|address| SocketAddr::new(address.parse().unwrap(), port))
            .collect())
    }

    pub(super) fn srv(&self, name: &str) -> Vec<Srv> {
        let mut world = self.0.lock().unwrap();
        world.asked.push(name.to_owned());
        world.srv.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn well_known(&self, host: &str) -> Option<WellKnownAnswer> {
        let mut world = self.0.lock().unwrap();
        world.asked.push(format!("well-known {host}"));
        world.well_known.get(host).cloned()
    }
}

struct Test {
    table: Table,
    now_ms: Arc<AtomicU64>,
    resolver: Resolver,
}

fn test(allow_private: bool) -> Test {
    let (table, now_ms) = (
        Table::default(),
        Arc::new(AtomicU64::new(1_000_000_000_000)),
    );
    let known = ("known:8448", "127.0.0.1:99");
    let resolver = Resolver::new(
        Lookup::Table(table.clone()),
        BTreeMap::from([(known.0.try_into().unwrap(), known.1.parse().unwrap())]),
        allow_private,
        Clock::Simulated(now_ms.clone()),
        Entropy::from_seed([1; 32]),
    );
    Test {
        table,
        now_ms,
        resolver,
    }
}

impl Test {
    async fn resolve(&self, name: &str) -> Result<Place, String> {
        self.resolver
            .resolve(&ServerName::parse(name).unwrap())
            .await
    }

    async fn addresses(&self, name: &str) -> Vec<String> {
        let place = self.resolve(name).await.unwrap();
        place.addresses.iter().map(ToString::to_string).collect()
    }

    fn pass_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_server_is_found_by_what_its_host_delegates_to() {
    let test = test(false);
    test.table
        .delegate("a.example", r#"{"m.server":"b.example:443"}"#, None);
    test.table
        .name("b.example", &["8.8.8.8", "2001:4860:4860::8888"]);
    let place = test.resolve("a.example").await.unwrap();
    assert_eq!(place.host_header, "b.example:443");
    assert_eq!(place.certificate_for, Host::Name("b.example".to_owned()));
    assert_eq!(
        test.addresses("a.example").await,
        ["8.8.8.8:443", "[2001:4860:4860::8888]:443"]
    );
    let asked = test.table.asked();
    assert_eq!(asked, ["well-known a.example", "b.example", "b.example"]);
}

#[tokio::test]
async fn the_targets_of_srv_records_are_tried_in_their_order_and_those_that_are_not_there_are_left_out()
 {
    let test = test(false);
    let srv = |priority, target: &str, port| Srv {
        priority,
        weight: 1,
        target: target.to_owned(),
        port,
    };
    let records = vec![
        srv(2, "y.example.", 2),
        srv(1, "x.example.", 1),
        srv(3, "gone.example.", 3),
    ];
    test.table.with(|world| {
        world
            .srv
            .insert("_matrix-fed._tcp.a.example".to_owned(), records);
    });
    test.table.name("x.example", &["8.8.8.8"]);
    test.table.name("y.example", &["1.1.1.1"]);
    let place = test.resolve("a.example").await.unwrap();
    assert_eq!(place.host_header, "a.example");
    assert_eq!(place.certificate_for, Host::Name("a.example".to_owned()));
    assert_eq!(
        test.addresses("a.example").await,
        ["8.8.8.8:1", "1.1.1.1:2"]
    );
}

#[tokio::test]
async fn no_name_and_no_number_leads_to_an_address_that_is_not_public() {
    let test = test(false);
    test.table.name(
        "inside.example",
        &["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1"],
    );
    test.table.name("both.example", &["192.168.0.1", "8.8.8.8"]);
    test.table
        .delegate("a.example", r#"{"m.server":"inside.example:443"}"#, None);
    test.table
        .delegate("b.example", r#"{"m.server":"127.0.0.1:6379"}"#, None);
    for name in [
        "inside.example",
        "inside.example:8448",
        "127.0.0.1",
        "127.0.0.1:8448",
        "[::1]",
        "[::ffff:127.0.0.1]:8448",
        "10.1.2.3",
        "169.254.169.254:80",
        "a.example",
        "b.example",
    ] {
        assert_eq!(
            test.resolve(name).await,
            Err("it has no public address".to_owned()),
            "{name}"
        );
    }
    assert_eq!(test.addresses("both.example:1").await, ["8.8.8.8:1"]);
    assert_eq!(test.addresses("8.8.8.8").await, ["8.8.8.8:8448"]);
    let gone = test.resolve("gone.example").await;
    assert!(gone.unwrap_err().starts_with("gone.example: "));
}

#[tokio::test]
async fn a_test_rig_may_reach_private_addresses_and_say_itself_where_a_server_is() {
    let test = test(true);
    test.table.name("inside.example", &["127.0.0.1"]);
    assert_eq!(test.addresses("inside.example").await, ["127.0.0.1:8448"]);
    test.table.asked();
    let place = test.resolve("known:8448").await.unwrap();
    assert_eq!(place.host_header, "known:8448");
    assert_eq!(place.certificate_for, Host::Name("known".to_owned()));
    assert_eq!(place.addresses, ["127.0.0.1:99".parse().unwrap()]);
    assert_eq!(test.table.asked(), Vec::<String>::new());
}

#[tokio::test] // "24 hours … 48 hours … up to an hour"
async fn what_a_host_delegates_to_is_remembered_and_so_is_that_it_does_not() {
    let test = test(false);
    test.table.name("b.example", &["8.8.8.8"]);
    test.table.name("a.example", &["1.1.1.1"]);
    let asked = || {
        test.table
            .asked()
            .iter()
            .filter(|asked| asked.starts_with("well-known"))
            .count()
    };
    test.table
        .delegate("a.example", r#"{"m.server":"b.example:1"}"#, None);
    for (wait_ms, expected) in [(0, 1), (24 * HOUR_MS - 1, 0), (1, 1)] {
        test.pass_ms(wait_ms);
        assert_eq!(test.addresses("a.example").await, ["8.8.8.8:1"]);
        assert_eq!(asked(), expected, "{wait_ms}");
    }
    test.pass_ms(24 * HOUR_MS);
    test.table.delegate(
        "a.example",
        r#"{"m.server":"b.example:1"}"#,
        Some("max-age=999999999"),
    );
    for (wait_ms, expected) in [(0, 1), (48 * HOUR_MS - 1, 0), (1, 1)] {
        test.pass_ms(wait_ms);
        test.addresses("a.example").await;
        assert_eq!(asked(), expected, "{wait_ms}");
    }
    test.pass_ms(48 * HOUR_MS);
    test.table
        .delegate("a.example", "rubbish", Some("max-age=999999999"));
    let minutes = [
        (0, 1),
        (5, 1),
        (9, 0),
        (1, 1),
        (20, 1),
        (40, 1),
        (59, 0),
        (1, 1),
        (60, 1),
    ];
    for (wait, expected) in minutes {
        test.pass_ms(wait * MINUTE_MS);
        assert_eq!(test.addresses("a.example").await, ["1.1.1.1:8448"]);
        assert_eq!(asked(), expected, "{wait}");
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_for_a_while_delegates_to_where_it_did_for_up_to_two_days() {
    let test = test(false);
    test.table.name("b.example", &["8.8.8.8"]);
    test.table.name("a.example", &["1.1.1.1"]);
    test.table
        .delegate("a.example", r#"{"m.server":"b.example:1"}"#, None);
    assert_eq!(test.addresses("a.example").await, ["8.8.8.8:1"]);
    test.table.with(|world| world.well_known.clear());
    test.pass_ms(47 * HOUR_MS);
    assert_eq!(test.addresses("a.example").await, ["8.8.8.8:1"]);
    test.pass_ms(HOUR_MS);
    assert_eq!(test.addresses("a.example").await, ["1.1.1.1:8448"]);
}

#[tokio::test]
async fn the_answers_that_are_remembered_are_bounded() {
    let test = test(false);
    for number in 0..WELL_KNOWN_MAX + 5 {
        drop(test.resolve(&format!("s{number}.example")).await);
    }
    assert_eq!(test.resolver.well_known_answers().len(), WELL_KNOWN_MAX);
}

/// A web server that answers every request by what `answer` makes of its number; gives its address.
async fn web(answer: impl Fn(usize) -> Vec<u8> + Send + 'static, drip: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let number = AtomicUsize::new(0);
    #[expect(clippy::disallowed_methods, reason = "a test has no task set")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4_096];
            drop(stream.read(&mut head).await);
            let bytes = answer(number.fetch_add(1, Ordering::Relaxed));
            if drip {
                for byte in bytes {
                    if stream.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            } else {
                drop(stream.write_all(&bytes).await);
            }
        }
    });
    address
}

/// A lookup whose well-known answers come over HTTP.
fn lookup() -> Lookup {
    drop(rustls::crypto::ring::default_provider().install_default());
    let policy = Policy {
        allow_private: true,
        ..Policy::default()
    };
    Lookup::System {
        outward: Outward::new(&policy).unwrap(),
        scheme: "http",
        timeout: std::time::Duration::from_mins(1),
        dns: None,
    }
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

const GOOD: &str = r#"{"m.server":"b.example"}"#;

#[tokio::test] // "30x redirects should be followed, however redirection loops should be avoided"
async fn a_well_known_answer_is_found_behind_five_redirects_and_no_more() {
    for (redirects, found) in [
        (0, true),
        (1, true),
        (5, true),
        (6, false),
        (usize::MAX, false),
    ] {
        let answer = move |number| {
            if number < redirects {
                reply("302 Found", "Location: /elsewhere?x\r\n", "")
            } else {
                reply("200 OK", "Cache-Control: max-age=600\r\n", GOOD)
            }
        };
        let address = web(answer, false).await;
        let answer = lookup().well_known(&address, 0).await;
        let body = answer.as_ref().and_then(|answer| delegated(&answer.body));
        assert_eq!(body.is_some(), found, "{redirects}");
        if let Some(answer) = answer {
            assert_eq!(answer.cache_control.as_deref(), Some("max-age=600"));
        }
    }
}

#[tokio::test] // "If the response is invalid (bad JSON, missing properties, non-200 response, etc), skip to step 4"
async fn what_is_no_good_answer_is_none() {
    let large = "x".repeat(50 * 1024 + 1);
    for bytes in [
        reply("404 Not Found", "", GOOD),
        reply("500 Oops", "", GOOD),
        reply("204 No Content", "", ""),
        reply("302 Found", "", GOOD),
        reply("302 Found", "Location: ftp://b.example/\r\n", GOOD),
        // Off the scheme that is asked for: where that is HTTPS, HTTP must not answer for it.
        reply("302 Found", "Location: https://127.0.0.1:1/\r\n", GOOD),
        reply("200 OK", "", &large),
        b"HTTP/1.1 200 OK\r\n\r\n"
            .iter()
            .chain(large.as_bytes())
            .copied()
            .collect(),
        b"rubbish\r\n\r\n".to_vec(),
        Vec::new(),
    ] {
        let address = web(move |_| bytes.clone(), false).await;
        assert!(lookup().well_known(&address, 0).await.is_none());
    }
    assert!(lookup().well_known("127.0.0.1:1", 0).await.is_none());
}

#[tokio::test] // Cache control
async fn the_expires_header_is_read_against_the_clock() {
    let headers = "Expires: Thu, 01 Jan 1970 01:00:00 GMT\r\n";
    let address = web(move |_| reply("200 OK", headers, GOOD), false).await;
    for (now_ms, expected) in [(0, HOUR_MS), (HOUR_MS - 1, 1), (HOUR_MS + 1, 0)] {
        let answer = lookup().well_known(&address, now_ms).await.unwrap();
        assert_eq!(answer.expires_in_ms, Some(expected));
    }
}

#[tokio::test]
async fn an_answer_that_drips_is_given_up() {
    // A byte every second: all of it would take a minute and a half.
    let address = web(|_| reply("200 OK", "", GOOD), true).await;
    let mut lookup = lookup();
    if let Lookup::System { timeout, .. } = &mut lookup {
        *timeout = std::time::Duration::from_millis(300);
    }
    let answer = tokio::time::timeout(
        std::time::Duration::from_secs(30),
        lookup.well_known(&address, 0),
    );
    assert!(answer.await.unwrap().is_none());
}
