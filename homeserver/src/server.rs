//! The server: everything built in order, started, and stopped in reverse.
//!
//! [`Server::start`] is the only constructor; `main` and tests differ in the [`Seams`] they hand in.

use std::{ops::Deref, sync::Arc};

use federation::event::ServerKey;
use ruma::{OwnedUserId, RoomVersionId, ServerName, UserId};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use store::{
    CacheSizes, Commit, Store, StoreError,
    keys::{Keyspace, Packed},
    kv::Engine,
};

use crate::{
    accounts::{Accounts, registration},
    api::{
        client::{shared_secret::Nonces, uia::UiaSessions},
        operations::Health,
        server::transaction::Transactions,
    },
    appservices::{self, Appservices, load::RegistrationError},
    config::Config,
    delayed::Delayed,
    ephemeral::{Moments, Typing},
    error::{ApiError, ApiResult},
    http::{
        limits::Limits,
        listen::{Bound, ListenError},
        routes::Routes,
    },
    media::{
        files::{Files, FilesError},
        library::Library,
        outward::{Outward, Policy},
    },
    metrics::Metrics,
    peers::{Peers, transport::Internet},
    presence::Presence,
    reports::Reports,
    rooms::Rooms,
    seams::{Seams, Transport},
    search::Search,
    sync::{Wakeups, sliding::Connections},
    tasks::Tasks,
    upkeep::Upkeep,
};

/// Everything that a handler may need. A clone is another handle of the same server.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of a server, in the order they are built; none knows a later one.
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// Time and randomness.
    pub seams: Seams,
    /// Rows, commits, the log.
    pub store: Store,
    /// This server's name and signing key.
    pub key: ServerKey,
    /// Who has an account.
    pub accounts: Accounts,
    /// Who runs beside the server.
    pub appservices: Appservices,
    /// The last transaction of each other server.
    pub transactions: Transactions,
    /// Open sessions of user-interactive authentication.
    pub uia: UiaSessions,
    /// What other servers answered lately.
    pub asked: crate::asked::Asked,
    /// Rate limits.
    pub limits: Limits,
    /// Other servers.
    pub peers: Peers,
    /// Rooms: sending, joining, creating.
    pub rooms: Rooms,
    /// Held while keys of devices change.
    pub key_turn: crate::keys::KeyTurn,
    /// Whose devices are being fetched from their server.
    pub fetching: crate::keys::remote::Fetching,
    /// Held while account data is read, changed and written.
    pub account_data_turns: crate::account_data::Turns,
    /// Push rules, counts, pushers.
    pub push: crate::push::Push,
    /// Uploaded files, and the way out.
    pub media: Library,
    /// Numbers for what is only in memory.
    pub moments: Moments,
    /// Who types where.
    pub typing: Typing,
    /// Events that wait for their time.
    pub delayed: Delayed,
    /// How far messages can be searched.
    pub search: Search,
    /// What users reported.
    pub reports: Reports,
    /// Who is online.
    pub presence: Presence,
    /// What changes of accounts have still to do in rooms.
    pub upkeep: Upkeep,
    /// Nonces of registration with the shared secret.
    pub nonces: Nonces,
    /// Who waits for what in `/sync`.
    pub wakeups: Wakeups,
    /// What each connection of sliding sync was told.
    pub connections: Connections,
    /// What other servers are sent.
    pub outgoing: crate::peers::sender::Outgoing,
    /// What other servers said that cannot be shown yet.
    pub early: crate::peers::edus::Early,
    /// What is counted and measured.
    pub metrics: Metrics,
    /// Whether the store could write lately.
    pub health: Health,
    /// Everything that runs in the background.
    pub tasks: Tasks,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Deref for Parts {
    type Target = Seams;

    fn deref(&self) -> &Seams {
        &self.seams
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store belongs to a server of another name.
    #[error(
        "the data directory belongs to the server `{stored}`, the configuration says `{configured}`: \
         a server cannot change its name"
    )]
    Name {
        /// The name in the store.
        stored: String,
        /// The name in the configuration.
        configured: String,
    },
    /// The directory of uploads cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The registration file of an application service cannot be used.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The user of an application service cannot be made; the log says why.
    #[error("the users of the application services cannot be made")]
    Appservices,
    /// How far other servers have been told cannot be read; the log says why.
    #[error("how far other servers have been told cannot be read")]
    Federation,
    /// A part of the configuration that is only seen when it is used.
    #[error("{0}")]
    Config(String),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Its parts.
    pub app: App,
    /// What answers requests.
    pub router: axum::Router,
    /// What it answers.
    pub routes: Vec<crate::http::routes::Route>,
}

impl Server {
    /// Opens the store and starts everything but the listeners.
    ///
    /// # Errors
    /// When the store does not open, or the configuration cannot be used.
    pub async fn start(config: Config, seams: Seams, engine: Engine) -> Result<Self, StartError> {
        let sizes = CacheSizes::default();
        let store = Store::open(engine, &config.data.directory, sizes)?;
        Self::start_upon(store, config, seams).await
    }

    /// Starts everything but the listeners upon a store that is open.
    ///
    /// # Errors
    /// When the store is not this server's, or the configuration cannot be used.
    pub async fn start_upon(
        store: Store,
        config: Config,
        seams: Seams,
    ) -> Result<Self, StartError> {
        // One TLS provider in the process; a second server in it finds the first one's.
        drop(rustls::crypto::ring::default_provider().install_default());
        let key = server_key(&config.server.name, &store, &seams).await?;
        registration::offer_first_admin(&store, &seams).await?;
        let registrations = appservices::load::load(&config.appservices, &config.server.name)?;
        let media = library(&config)?;
        let to_services = outward(&config, true)?;
        let transport = match &seams.transport {
            Some(transport) => transport.clone(),
            None => internet(&config, &seams)?,
        };
        let app = App(Arc::new(Parts {
            accounts: Accounts::new(store.clone()),
            appservices: Appservices::new(registrations, to_services),
            transactions: Transactions::default(),
            uia: UiaSessions::default(),
            asked: crate::asked::Asked::default(),
            limits: Limits::default(),
            peers: Peers::new(transport),
            rooms: Rooms::new(store.clone()),
            key_turn: crate::keys::KeyTurn::default(),
            fetching: crate::keys::remote::Fetching::default(),
            account_data_turns: crate::account_data::Turns::default(),
            push: crate::push::Push::default(),
            media,
            moments: Moments::from(seams.clock.now_ms()),
            typing: Typing::default(),
            delayed: Delayed::default(),
            search: Search::default(),
            reports: Reports::default(),
            presence: Presence::default(),
            upkeep: Upkeep::default(),
            nonces: Nonces::default(),
            wakeups: Wakeups::default(),
            connections: Connections::default(),
            outgoing: crate::peers::sender::Outgoing::default(),
            early: crate::peers::edus::Early::default(),
            metrics: Metrics::default(),
            health: Health::default(),
            tasks: Tasks::default(),
            config,
            seams,
            store,
            key,
        }));
        app.tasks.spawn("wakeups", crate::sync::wake(app.clone()));
        app.tasks
            .spawn("delayed events", crate::delayed::send_due(app.clone()));
        app.tasks.spawn(
            "overtaken events",
            crate::delayed::cancel_overtaken(app.clone()),
        );
        app.tasks
            .spawn("search index", crate::search::index(app.clone()));
        app.tasks.spawn("guests", crate::guests::watch(app.clone()));
        app.tasks.spawn("upkeep", crate::upkeep::run(app.clone()));
        app.tasks
            .spawn("later", crate::rooms::later::run(app.clone()));
        app.tasks
            .spawn("housekeeping", crate::accounts::keep_house(app.clone()));
        app.tasks
            .spawn("remote media", crate::media::remote::tidy(app.clone()));
        app.tasks
            .spawn("counts", crate::push::unread::write(app.clone()));
        app.push.pushers.load(&app.store)?;
        app.tasks
            .spawn("pushes", crate::push::deliver::run(app.clone()));
        app.tasks
            .spawn("room upgrades", crate::upgrades::follow(app.clone()));
        if app.config.presence.enabled {
            app.tasks
                .spawn("presence", crate::presence::watch(app.clone()));
        }
        if crate::peers::sender::is_on(&app) {
            let sender = crate::peers::sender::begin(&app).await;
            let sender = sender.map_err(|_| StartError::Federation)?;
            app.tasks.spawn("federation", sender);
        }
        start_appservices(&app)
            .await
            .map_err(|_| StartError::Appservices)?;
        let typing = crate::api::client::reading::expire_typing(app.clone());
        app.tasks.spawn("typing", typing);
        let mut routes = Routes::new(app.clone());
        crate::api::routes(&mut routes);
        let list = routes.list();
        app.metrics.measure(routes.measured());
        let router = crate::http::listen::with_cors(routes.into_router());
        Ok(Self {
            app,
            router,
            routes: list,
        })
    }

    /// Binds every listener of the configuration and begins to serve.
    ///
    /// # Errors
    /// When an address cannot be had, or a certificate cannot be used.
    pub async fn listen(&self) -> Result<Listening, ListenError> {
        let mut bound = Vec::new();
        for listener in &self.app.config.listeners {
            bound.push(Bound::bind(listener.clone()).await?);
        }
        let addresses = bound.iter().map(Bound::address).collect();
        let mut set = tokio::task::JoinSet::new();
        for listener in bound {
            set.spawn(listener.serve(self.app.clone(), self.router.clone()));
        }
        Ok(Listening { set, addresses })
    }

    /// Tells the admin how to begin: where clients connect, and how the first admin registers.
    ///
    /// # Errors
    /// When the store cannot be read.
    #[expect(
        clippy::print_stdout,
        reason = "this is for whoever started the process, not for the log"
    )]
    pub fn greet(&self) -> Result<(), StoreError> {
        let url = self.app.config.public_base_url();
        println!("Guildhall serves {} at {url}", self.app.server_name());
        println!("  In Element, Cinny or another Matrix client, choose {url} as the homeserver.");
        if let Some(token) = registration::first_admin_token(&self.app.store)? {
            println!(
                "  Nobody administers this server yet: register with the token {token} to do so."
            );
        }
        Ok(())
    }

    /// Stops everything that runs in the background and waits for it.
    pub async fn stop(self) {
        self.app.tasks.stop().await;
    }
}

/// Listeners that serve.
#[derive(Debug)]
pub struct Listening {
    set: tokio::task::JoinSet<()>,
    /// The addresses that are served.
    pub addresses: Vec<std::net::SocketAddr>,
}

impl Listening {
    /// Waits until every listener has ended, after the server was told to stop.
    pub async fn ended(mut self) {
        while self.set.join_next().await.is_some() {}
    }
}

/// The engine that a configuration asks for.
pub fn engine(config: &Config) -> Engine {
    let cache_bytes = config.data.cache_bytes();
    match config.data.engine {
        crate::config::Engine::Sled => Engine::Sled { cache_bytes },
        crate::config::Engine::Fjall => Engine::Fjall { cache_bytes },
    }
}

impl App {
    /// This server's name.
    pub fn server_name(&self) -> &ServerName {
        self.key.server_name()
    }

    /// Whether a user has (or would have) an account here.
    pub fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.server_name()
    }

    /// The ID of the local user with this localpart.
    ///
    /// # Errors
    /// `M_INVALID_USERNAME` when there can be no such user.
    pub fn local_user_id(&self, localpart: &str) -> ApiResult<OwnedUserId> {
        UserId::parse(format!("@{localpart}:{}", self.server_name()))
            .map_err(|_| ApiError::invalid_username("the user name cannot be part of a user ID"))
    }

    /// The version of a room whose creator names none.
    pub fn default_room_version(&self) -> RoomVersionId {
        self.config.rooms.default_version.clone()
    }
}

/// Makes the users of the application services, and begins to tell each what happens.
async fn start_appservices(app: &App) -> ApiResult<()> {
    appservices::register_senders(app).await?;
    appservices::transactions::forget_others(app).await?;
    for service in app
        .appservices
        .iter()
        .filter(|service| service.url.is_some())
    {
        let teller = appservices::transactions::begin(app, service.clone()).await?;
        app.tasks.spawn("application service", teller.run());
    }
    Ok(())
}

/// The directory of uploads, and the client that fetches pages for users.
fn library(config: &Config) -> Result<Library, StartError> {
    let outward = outward(config, config.testing.allow_private_addresses)?;
    let directory = config.media_directory();
    let files = Files::open(&directory)?;
    let remote_files = Files::open(directory.join("remote"))?;
    Ok(Library::new(files, remote_files, outward))
}

/// A client for outgoing requests that are not federation.
fn outward(config: &Config, allow_private: bool) -> Result<Outward, StartError> {
    let policy = Policy {
        allow_private,
        accept_any_certificate: config.testing.accept_any_certificate,
        ..policy(config)?
    };
    Outward::new(&policy).map_err(|error| StartError::Config(error.to_string()))
}

/// How the outside is reached: only what is public, and proves who it is.
fn policy(config: &Config) -> Result<Policy, StartError> {
    Ok(Policy {
        user_agent: format!("Guildhall/{}", env!("CARGO_PKG_VERSION")),
        allow_private: false,
        extra_ca: extra_ca(config)?,
        accept_any_certificate: false,
    })
}

/// The certificates that a test rig wants trusted.
fn extra_ca(config: &Config) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let Some(file) = &config.testing.extra_ca_file else {
        return Ok(Vec::new());
    };
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| StartError::Config(format!("testing.extra_ca_file: {error}")))
}

/// The way to other servers.
fn internet(config: &Config, seams: &Seams) -> Result<Arc<dyn Transport>, StartError> {
    let policy = Policy {
        allow_private: config.testing.allow_private_addresses,
        ..policy(config)?
    };
    let unusable = |error: &dyn std::fmt::Display| StartError::Config(error.to_string());
    let outward = Outward::new(&policy).map_err(|error| unusable(&error))?;
    let internet = Internet::new(config, seams, outward, policy.extra_ca);
    Ok(Arc::new(internet.map_err(|error| unusable(&error))?))
}

/// The key in the store, made on the first start, after checking that the store is this server's.
async fn server_key(
    name: &ServerName,
    store: &Store,
    seams: &Seams,
) -> Result<ServerKey, StartError> {
    let meta = |what: &str| Packed::key(Keyspace::META).text(what);
    if let Some(stored) = store.get_raw(meta("server name"))? {
        let stored = String::from_utf8_lossy(&stored).into_owned();
        if stored != name.as_str() {
            return Err(StartError::Name {
                stored,
                configured: name.to_string(),
            });
        }
    }
    let stored = store.get_raw(meta("signing key"))?;
    let parsed = stored.as_deref().and_then(|bytes| {
        let (seed, version) = bytes.split_first_chunk::<32>()?;
        Some((*seed, String::from_utf8(version.to_vec()).ok()?))
    });
    if let Some((seed, version)) = parsed {
        return Ok(ServerKey::from_seed(name.to_owned(), &seed, &version));
    }
    let (seed, version) = (
        seams.entropy.bytes(),
        format!("a_{}", seams.entropy.text(6)),
    );
    let mut commit = Commit::new();
    commit.put_raw(meta("server name"), Packed::new().raw(name.as_bytes()));
    commit.put_raw(
        meta("signing key"),
        Packed::new().raw(&seed).raw(version.as_bytes()),
    );
    store.commit(commit).await?;
    Ok(ServerKey::from_seed(name.to_owned(), &seed, &version))
}
