//! The deterministic simulation of federation: several whole servers in one thread, in which one seed decides
//! everything – who does what and when, what the network loses, who crashes.
//!
//! [`run`] makes a world by its seed, lets its users live through bad weather, then heals everything, waits until
//! all is quiet, and [checks](crate::checks) what must be true. Time is tokio's paused clock: it jumps to the next
//! timer when everybody waits, so that hours pass in milliseconds.
//!
//! What it catches was tried by breaking the server on purpose:
//!
//! | Broken | Caught by |
//! |---|---|
//! | a transaction that failed is not sent again | "was given up", in 8 of the first 8 seeds |
//! | a commit is acknowledged, and only some are flushed | acknowledged events, access tokens and positions that are gone: 13 of the first 14 seeds |
//! | an event is accepted that the state before it does not allow | "shows … which is not allowed": 2 of the first 14 seeds; only every third has a liar |
//!
//! What no server can promise, and it does not ask for: what the users of a server sent before all of them left, and
//! one came again, need not arrive, as nothing is built upon it any more. What it may still find: who joins a room
//! leaves out of its state what is signed with a key that neither its server nor a notary tells then. All servers are
//! notaries of each other, so that this is rare.
//!
//! Reading order: [`host`] (a server that crashes) → [`internet`] (what happens to requests) → [`user`] and
//! [`workload`] (what clients do) → [`liar`] (a server that does not keep to the rules) → [`trace`].

mod chance;
pub(crate) mod host;
mod internet;
mod liar;
mod trace;
pub(crate) mod user;
pub(crate) mod workload;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ruma::ServerName;
use tokio::task::JoinSet;

use self::{
    chance::Chance,
    host::Host,
    internet::{Internet, Weather},
    liar::Liar,
    trace::Trace,
    user::User,
    workload::Room,
};
use crate::world::BEGINNING_MS;

/// The names of the servers.
const SERVERS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// The names of the users; each has those of its server.
const USERS: [&str; 3] = ["ann", "bob", "cyn"];

/// The name of the server that does not keep to the rules.
const LIAR: &str = "liar";

/// For how long everything is left alone in the end, so that whoever waits for something has it. Waits grow with the
/// time that something fails, and that is less; destinations are told that all is well again.
const QUIET: Duration = Duration::from_mins(20);

/// How long what is said in the end may take to be everywhere.
const HEARD: Duration = Duration::from_secs(20);

/// How often each server says something in the end: the first time brings what the others miss, the others bring
/// what those had to say to that.
const LAST_WORDS: usize = 3;

/// How far a server's clock may be wrong, in milliseconds: two minutes.
const SKEW_MS_MAX: u64 = 120_000;

/// What a seed has come to.
#[derive(Debug)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// The same for the same seed, whenever it is run.
    pub digest: u64,
    /// What happened, step by step.
    pub trace: Vec<String>,
    /// What must not have happened.
    pub problems: Vec<String>,
}

/// Runs the simulation of one seed, on this thread.
///
/// # Panics
/// When a server does not start.
pub fn run(seed: u64) -> Run {
    trace::watch_panics();
    drop(trace::panics());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    let (trace, mut problems) = runtime.block_on(async {
        let simulation = Arc::new(Simulation::begin(seed).await);
        simulation.clone().live().await;
        simulation.heal().await;
        simulation.have_last_words().await;
        simulation.check();
        simulation.end().await
    });
    problems.extend(trace::panics());
    Run {
        seed,
        digest: trace::digest(&trace),
        trace,
        problems,
    }
}

/// What the seed decides at once.
#[derive(Clone, Copy, Debug)]
struct Plan {
    servers: usize,
    users: usize,
    rooms: u64,
    /// How much each user does.
    actions: u64,
    weather: Weather,
    /// Whether a server takes part that does not keep to the rules.
    lies: bool,
    /// How often something breaks.
    disasters: u64,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut chance = Chance::of(seed, "plan");
        Self {
            servers: *chance.pick(&[2, 3, 3, 4]),
            users: *chance.pick(&[1, 2, 2, 3]),
            rooms: chance.between(1, 2),
            actions: chance.between(8, 20),
            weather: Weather {
                lost: *chance.pick(&[0, 5, 15, 30]),
                unanswered: *chance.pick(&[0, 5, 15, 30]),
                twice: *chance.pick(&[0, 5, 20]),
                slow: *chance.pick(&[0, 3, 10]),
            },
            lies: chance.percent(35),
            disasters: chance.between(0, 6),
        }
    }
}

/// A world of several servers.
#[derive(Debug)]
pub(crate) struct Simulation {
    seed: u64,
    plan: Plan,
    trace: Arc<Trace>,
    internet: Arc<Internet>,
    hosts: Vec<Arc<Host>>,
    users: Vec<Arc<User>>,
    rooms: Mutex<Vec<Room>>,
    /// What was said where, for those who redact.
    said: Mutex<Vec<(String, String)>>,
    liar: Option<Arc<Liar>>,
    following: Mutex<JoinSet<()>>,
}

impl Simulation {
    /// Servers with users, some in rooms already, while all is well.
    async fn begin(seed: u64) -> Self {
        let plan = Plan::of(seed);
        let mut chance = Chance::of(seed, "begin");
        let trace = Arc::new(Trace::new(host::paced(BEGINNING_MS)));
        trace.note(format_args!("seed {seed}: {plan:?}"));
        let internet = Arc::new(Internet::new(seed, trace.clone()));
        let mut hosts = Vec::new();
        let mut users = Vec::new();
        for name in &SERVERS[..plan.servers] {
            let at_ms = BEGINNING_MS - SKEW_MS_MAX + chance.between(0, 2 * SKEW_MS_MAX);
            let host = Arc::new(Host::new(seed, name, at_ms));
            internet.add(&host);
            host.start(internet.way(name)).await;
            for user in &USERS[..plan.users] {
                let user = User::register(host.clone(), trace.clone(), user).await;
                users.push(Arc::new(user));
            }
            hosts.push(host);
        }
        let liar = plan.lies.then(|| Liar::new(seed, &internet, &trace));
        let simulation = Self {
            seed,
            plan,
            trace,
            internet,
            hosts,
            users,
            rooms: Mutex::default(),
            said: Mutex::default(),
            liar: liar.map(Arc::new),
            following: Mutex::default(),
        };
        for _ in 0..plan.rooms {
            let creator = chance.pick(&simulation.users).clone();
            workload::create(&simulation, &creator, &mut chance).await;
        }
        for room in simulation.rooms() {
            for user in &simulation.users {
                if chance.percent(70) {
                    workload::join(&simulation, user, &room, &mut chance).await;
                }
            }
        }
        simulation
    }

    /// Users live, things break.
    async fn live(self: Arc<Self>) {
        for user in &self.users {
            let chance = Chance::of(self.seed, &format!("{} syncs", user.id));
            let following = user.clone().follow(chance);
            self.following().spawn(following);
        }
        self.internet.set_weather(self.plan.weather);
        let mut lives = JoinSet::new();
        for user in &self.users {
            let chance = Chance::of(self.seed, &format!("{} lives", user.id));
            let actions = self.plan.actions;
            lives.spawn(workload::live(self.clone(), user.clone(), chance, actions));
        }
        if let Some(liar) = &self.liar {
            lives.spawn(liar.clone().live(self.clone()));
        }
        lives.spawn(self.clone().have_disasters());
        while lives.join_next().await.is_some() {}
    }

    /// Breaks something now and then: the way between two servers, all ways of one, or a server.
    async fn have_disasters(self: Arc<Self>) {
        let mut chance = Chance::of(self.seed, "disasters");
        for _ in 0..self.plan.disasters {
            let pause_ms = chance.between(1, 60_000);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let host = chance.pick(&self.hosts).clone();
            let gone = Duration::from_millis(*chance.pick(&[500, 5_000, 60_000, 200_000]));
            if chance.percent(50) {
                self.crash(&host, gone).await;
            } else {
                let others = if chance.percent(50) {
                    self.others(host.name())
                } else {
                    vec![chance.pick(&self.others(host.name())).clone()]
                };
                self.cut(host.name(), &others, true);
                tokio::time::sleep(gone).await;
                self.cut(host.name(), &others, false);
            }
        }
    }

    /// Crashes a server, and starts it again some time later; whoever comes when it is down leaves that to others.
    pub(crate) async fn crash(&self, host: &Host, gone: Duration) {
        if host.crash().await {
            let name = host.name();
            self.trace
                .note(format_args!("{name} has crashed for {gone:?}"));
            tokio::time::sleep(gone).await;
            self.trace.note(format_args!("{name} starts"));
            host.start(self.internet.way(name)).await;
        }
    }

    fn cut(&self, host: &str, others: &[String], is_cut: bool) {
        let what = if is_cut { "is cut from" } else { "reaches" };
        self.trace.note(format_args!("{host} {what} {others:?}"));
        for other in others {
            self.internet.cut(host, other, is_cut);
        }
    }

    fn others(&self, name: &str) -> Vec<String> {
        let names = self.hosts.iter().map(|host| host.name());
        names
            .filter(|other| *other != name)
            .map(str::to_owned)
            .collect()
    }

    /// The weather is good from now on; whoever waits for that has it soon.
    async fn heal(&self) {
        self.trace.note("all is well again");
        self.internet.set_weather(Weather::default());
        self.following().abort_all();
        tokio::time::sleep(QUIET).await;
        self.reset_waits();
        tokio::time::sleep(HEARD).await;
        self.reset_waits();
        tokio::time::sleep(HEARD).await;
        for unfinished in self.internet.unfinished() {
            self.trace.problem(unfinished);
        }
    }

    /// What an admin does who knows that all others are back.
    fn reset_waits(&self) {
        for host in &self.hosts {
            let app = host.app();
            for other in self.others(host.name()) {
                let other = ServerName::parse(&other).expect("a server name");
                app.outgoing.heard(&other);
            }
        }
    }

    /// Every server says something in every room that it is in: what others have missed so far, they ask for now.
    async fn have_last_words(&self) {
        for number in 0..LAST_WORDS {
            for host in &self.hosts {
                for room in self.rooms() {
                    let joined = crate::checks::joined(&host.app(), &room.id);
                    let mut users = self.users.iter();
                    let user = users.find(|user| joined.contains(&user.id));
                    if let Some(user) = user {
                        let text = format!("last words {number}");
                        let said = user.say(&room.id, &text).await;
                        if said.is_none() {
                            let (id, room) = (&user.id, &room.id);
                            self.trace
                                .problem(format_args!("{id} cannot speak in {room}"));
                        }
                    }
                }
                tokio::time::sleep(HEARD).await;
                for user in &self.users {
                    user.sync(0).await;
                }
            }
        }
        tokio::time::sleep(HEARD).await;
        for user in &self.users {
            while user.sync(0).await {}
        }
    }

    fn check(&self) {
        let world = crate::checks::Checked {
            apps: self.hosts.iter().map(|host| host.app()).collect(),
            rooms: self.rooms().into_iter().map(|room| room.id).collect(),
            users: self.users.clone(),
            liar: self.liar.is_some().then_some(LIAR),
            forbidden: self
                .liar
                .as_ref()
                .map(|liar| liar.never_shown())
                .unwrap_or_default(),
        };
        let found = crate::checks::check(&world);
        for step in found.notes {
            self.trace.note(step);
        }
        for problem in found.problems {
            self.trace.problem(problem);
        }
    }

    /// Stops everything, and gives the trace and the problems.
    async fn end(&self) -> (Vec<String>, Vec<String>) {
        self.following().abort_all();
        self.internet.clear();
        for host in &self.hosts {
            host.crash().await;
        }
        self.trace.take()
    }

    pub(crate) fn users(&self) -> &[Arc<User>] {
        &self.users
    }

    fn following(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.following
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn rooms(&self) -> Vec<Room> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.clone()
    }

    fn add_room(&self, room: Room) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.push(room);
    }

    /// A server has come into a room.
    fn came(&self, room_id: &str, server: &str) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms.iter_mut().find(|room| room.id == room_id);
        if let Some(room) = room.filter(|room| room.via.iter().all(|via| via != server)) {
            room.via.push(server.to_owned());
        }
    }

    fn said(&self, room_id: &str, event_id: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push((room_id.to_owned(), event_id));
    }

    /// Any event that was said in a room.
    fn some_event(&self, room_id: &str, chance: &mut Chance) -> Option<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let of_room: Vec<&String> = said
            .iter()
            .filter_map(|(room, event)| (room == room_id).then_some(event))
            .collect();
        (!of_room.is_empty()).then(|| (*chance.pick(&of_room)).clone())
    }
}
