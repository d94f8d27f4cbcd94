//! What was acknowledged survives `kill -9` at any moment.
//!
//! Rounds against the real binary over one data directory: devices send, the process is killed at a
//! random moment, starts again, and every acknowledged event must be there once. `KILL_ROUNDS` sets how
//! many (3 without), `KILL_ENGINE` the engine.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test of a real process on a real clock, which should end at the first surprise"
)]

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use reqwest::{Client, Method};
use serde_json::{Value, json};

/// Devices that send at a time.
const SENDERS: usize = 4;

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(30);

struct Running {
    child: Child,
    base: String,
}

impl Running {
    /// Starts the server over `data`, and says how long it took to answer.
    async fn start(data: &Path, engine: &str, client: &Client) -> (Self, Duration) {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = data.join("guildhall.toml");
        std::fs::write(
            &config,
            format!(
                "server.name = \"hs1\"\nregistration.mode = \"open\"\ntesting.rate_limits_off = true\n\
                 testing.cheap_password_hashing = true\n[data]\ndirectory = \"{}\"\nengine = \"{engine}\"\n\
                 [[listeners]]\naddress = \"127.0.0.1:{port}\"\n",
                data.join("data").display()
            ),
        )
        .unwrap();
        let begun = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_guildhall"));
        command
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let running = Self {
            child: command.spawn().unwrap(),
            base: format!("http://127.0.0.1:{port}"),
        };
        while begun.elapsed() < START_MAX {
            if client
                .get(format!("{}/_matrix/client/versions", running.base))
                .send()
                .await
                .is_ok()
            {
                return (running, begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the server did not start within {START_MAX:?}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

async fn call(
    client: &Client,
    base: &str,
    method: Method,
    path: &str,
    token: &str,
    body: &Value,
) -> Option<Value> {
    let request = client
        .request(method, format!("{base}/_matrix/client/v3{path}"))
        .bearer_auth(token)
        .json(body);
    let response = request.send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    response.json().await.ok()
}

/// Event ID by body, for what was acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

async fn send_until_killed(
    client: Client,
    base: String,
    token: String,
    room: String,
    name: String,
    acknowledged: Acknowledged,
) {
    for number in 0.. {
        let body = format!("{name}-{number}");
        let path = format!("/rooms/{room}/send/m.room.message/{body}");
        let content = json!({ "msgtype": "m.text", "body": body });
        let Some(reply) = call(&client, &base, Method::PUT, &path, &token, &content).await else {
            return;
        };
        let event_id = reply["event_id"].as_str().unwrap().to_owned();
        acknowledged.lock().unwrap().insert(body, event_id);
    }
}

/// Everything said in a room since a token: event IDs by body, with how often each stands there.
async fn said(
    client: &Client,
    base: &str,
    token: &str,
    room: &str,
    until: Option<&str>,
) -> (BTreeMap<String, Vec<String>>, String) {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut from = String::new();
    let mut newest = None;
    loop {
        let to = until
            .map(|until| format!("&to={until}"))
            .unwrap_or_default();
        let page = call(
            client,
            base,
            Method::GET,
            &format!("/rooms/{room}/messages?dir=b&limit=1000{from}{to}"),
            token,
            &json!({}),
        )
        .await
        .expect("a page of messages");
        newest = newest.or_else(|| page["start"].as_str().map(str::to_owned));
        for event in page["chunk"].as_array().unwrap() {
            if let Some(body) = event["content"]["body"].as_str() {
                found
                    .entry(body.to_owned())
                    .or_default()
                    .push(event["event_id"].as_str().unwrap().to_owned());
            }
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return (found, newest.unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_event_is_there_once_after_a_kill() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let rounds: usize = std::env::var("KILL_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(3);
    let engine = std::env::var("KILL_ENGINE").unwrap_or_else(|_| "sled".to_owned());
    let data = tempfile::tempdir().unwrap();
    let client = Client::new();
    let (mut server, _) = Running::start(data.path(), &engine, &client).await;
    let registration = json!({ "username": "alice", "password": "password of alice", "auth": { "type": "m.login.dummy" } });
    let reply = call(
        &client,
        &server.base,
        Method::POST,
        "/register",
        "",
        &registration,
    )
    .await
    .unwrap();
    let token = reply["access_token"].as_str().unwrap().to_owned();
    let reply = call(
        &client,
        &server.base,
        Method::POST,
        "/createRoom",
        &token,
        &json!({}),
    )
    .await
    .unwrap();
    let room = reply["room_id"].as_str().unwrap().to_owned();
    let (mut since, mut total, mut slowest) = (None, 0, Duration::ZERO);
    for round in 0..rounds {
        let acknowledged = Acknowledged::default();
        let mut senders = tokio::task::JoinSet::new();
        for sender in 0..SENDERS {
            let (client, base, token) = (client.clone(), server.base.clone(), token.clone());
            let name = format!("r{round}s{sender}");
            senders.spawn(send_until_killed(
                client,
                base,
                token,
                room.clone(),
                name,
                acknowledged.clone(),
            ));
        }
        // Spread over the life of a group of commits; 7,919 is a prime.
        tokio::time::sleep(Duration::from_micros(
            50_000 + (round as u64 * 7_919 * 31) % 400_000,
        ))
        .await;
        server.kill();
        senders.join_all().await;
        let started;
        (server, started) = Running::start(data.path(), &engine, &client).await;
        slowest = slowest.max(started);
        let (found, newest) = said(&client, &server.base, &token, &room, since.as_deref()).await;
        let acknowledged = acknowledged.lock().unwrap();
        total += acknowledged.len();
        for (body, event_id) in acknowledged.iter() {
            assert_eq!(
                found.get(body),
                Some(&vec![event_id.clone()]),
                "{body} in round {round}"
            );
        }
        for (body, ids) in &found {
            assert_eq!(
                ids.len(),
                1,
                "{body} is there more than once in round {round}"
            );
        }
        since = Some(newest);
    }
    server.kill();
    assert!(
        total > rounds,
        "hardly anything was acknowledged: {total} in {rounds} rounds"
    );
    assert!(slowest < Duration::from_secs(5), "a start took {slowest:?}");
    eprintln!("{rounds} kills, {total} events acknowledged, none lost, slowest start {slowest:?}");
}
