//! A world: one server, its clock, its seed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use homeserver::{
    config::{Config, RegistrationMode},
    seams::{Clock, Entropy, Seams},
    server::Server,
};
use http::Method;
use serde_json::{Value, json};
use store::kv::Engine;

use crate::{Client, Network, Reply, client, network::Link};

/// When every world and network begins, in milliseconds since the epoch.
pub(crate) const BEGINNING_MS: u64 = 1_800_000_000_000;

/// Names the engine of every world: `sled` or `fjall`. Without it worlds are in memory.
const ENGINE_VARIABLE: &str = "COMPLIANCE_ENGINE";

/// How much an engine on disk keeps in memory, in bytes.
const CACHE_BYTES: u64 = 8 << 20;

/// The engine that the environment names.
///
/// # Panics
/// When there is no engine of that name.
fn engine() -> Engine {
    match std::env::var(ENGINE_VARIABLE).as_deref() {
        Err(_) | Ok("memory") => Engine::Memory,
        Ok("sled") => Engine::Sled {
            cache_bytes: CACHE_BYTES,
        },
        Ok("fjall") => Engine::Fjall {
            cache_bytes: CACHE_BYTES,
        },
        Ok(other) => panic!("{ENGINE_VARIABLE} names no engine: {other}"),
    }
}

/// The engine of a world whose rows are on disk whatever the environment says.
fn engine_on_disk() -> Engine {
    match engine() {
        Engine::Memory => Engine::Sled {
            cache_bytes: CACHE_BYTES,
        },
        engine => engine,
    }
}

/// `change`, for a server that federates.
fn federating(change: impl FnOnce(&mut Config)) -> impl FnOnce(&mut Config) {
    |config| {
        config.federation.enabled = true;
        change(config);
    }
}

/// A server that lives in this process and nowhere else.
#[derive(Debug)]
pub struct World {
    server: Server,
    now_ms: Arc<AtomicU64>,
    /// The way to the other servers of its network; there are none in a network of its own.
    link: Arc<Link>,
    /// Where uploads go, and rows if they are on disk.
    directory: tempfile::TempDir,
}

impl World {
    /// A server called `hs1` with open registration, without rate limits.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// The same with a changed configuration.
    ///
    /// # Panics
    /// When the server does not start.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::start(directory, engine(), Network::new().link("hs1"), change).await
    }

    /// A server of a network, with its name, that federates.
    pub(crate) async fn of_network(link: Arc<Link>, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::start(directory, engine(), link, federating(change)).await
    }

    /// The same with rows on disk.
    pub(crate) async fn of_network_on_disk(
        link: Arc<Link>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::start(directory, engine_on_disk(), link, federating(change)).await
    }

    /// A server that federates over real connections, also to addresses of this machine.
    pub async fn on_the_internet(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let link = Network::internet().link(name);
        Self::start(directory, engine(), link, federating(change)).await
    }

    /// The same with rows on disk, so that it can be [restarted](Self::restart).
    ///
    /// # Panics
    /// When the server does not start.
    pub async fn on_disk(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::start(
            directory,
            engine_on_disk(),
            Network::new().link("hs1"),
            change,
        )
        .await
    }

    /// Stops the server and starts it on the same rows. Its configuration is the usual one with `change`; in a network
    /// it federates.
    ///
    /// # Panics
    /// When the server does not start.
    pub async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let federates = self.server.app.config.federation.enabled;
        let change = |config: &mut Config| {
            config.federation.enabled = federates;
            change(config);
        };
        let Self {
            server,
            directory,
            link,
            ..
        } = self;
        // The network must not hold on to what is about to be opened again.
        link.unserve();
        server.stop().await;
        Self::start(directory, engine_on_disk(), link, change).await
    }

    async fn start(
        directory: tempfile::TempDir,
        engine: Engine,
        link: Arc<Link>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let now_ms = link.now_ms();
        let mut config = Config::default();
        config.data.directory = directory.path().to_owned();
        config.server.name = link.name().to_owned();
        config.registration.mode = RegistrationMode::Open;
        config.testing.rate_limits_off = true;
        config.testing.cheap_password_hashing = true;
        config.testing.allow_private_addresses = true;
        config.rooms.public_list_needs_login = false;
        change(&mut config);
        let seams = Seams {
            clock: Clock::Simulated(now_ms.clone()),
            entropy: Entropy::from_seed(link.seed()),
            transport: link.transport(),
            inline: true,
        };
        let server = Server::start(config, seams, engine)
            .await
            .expect("the server starts");
        link.serve(server.router.clone());
        Self {
            server,
            now_ms,
            link,
            directory,
        }
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        self.link.name().as_str()
    }

    /// Lets time pass on the server's clock, which is that of all servers of its network.
    pub fn pass_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// A request with an access token or none.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Reply {
        let body = body
            .map(|body| serde_json::to_vec(body).expect("JSON"))
            .unwrap_or_default();
        client::request(
            self.server.router.clone(),
            method,
            path,
            token,
            "application/json",
            body,
        )
        .await
    }

    /// A request with any body.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        content_type: &str,
        body: Vec<u8>,
    ) -> Reply {
        client::request(
            self.server.router.clone(),
            method,
            path,
            token,
            content_type,
            body,
        )
        .await
    }

    /// Makes a user an admin of the server.
    ///
    /// # Panics
    /// When the store cannot be written.
    pub async fn make_admin(&self, client: &Client) {
        let app = &self.server().app;
        let user_id = (&*client.user_id).try_into().expect("a user ID");
        let user = app.store.find_user(user_id).expect("the store reads");
        let changed = app
            .accounts
            .change_user(user.expect("a user"), |row| row.admin = true)
            .await;
        changed.expect("the store writes");
    }

    /// Registers a user with the password `password-of-NAME`.
    ///
    /// # Panics
    /// When registration fails.
    pub async fn register(&self, name: &str) -> Client {
        let body = json!({
            "username": name,
            "password": format!("password-of-{name}"),
            "auth": { "type": "m.login.dummy" },
        });
        let reply = self
            .request(
                Method::POST,
                "/_matrix/client/v3/register",
                None,
                Some(&body),
            )
            .await
            .ok();
        Client::new(self.server.router.clone(), &reply)
    }

    /// Logs a registered user in on another device.
    ///
    /// # Panics
    /// When the login fails.
    pub async fn log_in(&self, name: &str) -> Client {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": format!("password-of-{name}"),
        });
        let reply = self
            .request(Method::POST, "/_matrix/client/v3/login", None, Some(&body))
            .await
            .ok();
        Client::new(self.server.router.clone(), &reply)
    }
}
