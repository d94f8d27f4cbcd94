//! The way between the servers of a simulation: slow, lossy, and cut at times, as the seed says.
//!
//! A request may be lost, its answer may be, it may come twice, and nobody learns which of it was. What becomes of
//! the transactions is written down: one that was sent is sent until it is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use homeserver::seams::{Lost, Outgoing, Transport};
use http::Method;
use tokio::task::JoinSet;

use super::{chance::Chance, host::Host, trace::Trace};
use crate::network::{answered, pair};

/// How many requests of a hundred each misfortune meets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// The request does not arrive.
    pub(crate) lost: u64,
    /// The answer does not.
    pub(crate) unanswered: u64,
    /// The request arrives twice.
    pub(crate) twice: u64,
    /// It takes seconds.
    pub(crate) slow: u64,
}

/// Everything between the servers.
#[derive(Debug)]
pub(crate) struct Internet {
    seed: u64,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<String, Arc<Host>>,
    /// Those that are driven by hand.
    strangers: BTreeMap<String, Router>,
    weather: Weather,
    /// Pairs that do not reach each other, the smaller name first.
    cuts: BTreeSet<(String, String)>,
    /// How many requests each has sent to each other.
    counts: BTreeMap<(String, String), u64>,
    /// Second copies on their way.
    copies: JoinSet<()>,
    transactions: BTreeMap<Transaction, Tried>,
}

/// A transaction of one process: who sent it, its how-manieth start, to whom, under which path.
type Transaction = (String, u64, String, String);

/// What became of a transaction that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    InVain,
    Answered,
    Refused(u16),
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there_ms: u64,
    back_ms: u64,
    lost: bool,
    unanswered: bool,
    twice_ms: Option<u64>,
    /// Whether the sender of what is lost learns of it at once, after a while, or never.
    manner: u64,
}

impl Internet {
    pub(crate) fn new(seed: u64, trace: Arc<Trace>) -> Self {
        Self {
            seed,
            trace,
            state: Mutex::default(),
        }
    }

    /// A server can be reached from now on, when it runs.
    pub(crate) fn add(&self, host: &Arc<Host>) {
        let name = host.name().to_owned();
        self.state().hosts.insert(name, host.clone());
    }

    /// What is asked of `name` is answered by `router`.
    pub(crate) fn serve(&self, name: &str, router: Router) {
        self.state().strangers.insert(name.to_owned(), router);
    }

    /// Lets go of all servers.
    pub(crate) fn clear(&self) {
        *self.state() = State::default();
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Two servers do not reach each other from now on, or do again.
    pub(crate) fn cut(&self, one: &str, other: &str, is_cut: bool) {
        let mut state = self.state();
        if is_cut {
            state.cuts.insert(pair(one, other));
        } else {
            state.cuts.remove(&pair(one, other));
        }
    }

    /// The way of one server to the others.
    pub(crate) fn way(self: &Arc<Self>, from: &str) -> Arc<dyn Transport> {
        Arc::new(Way {
            from: from.to_owned(),
            internet: self.clone(),
        })
    }

    /// Transactions that were not sent until they were answered, though their sender lives, or that were refused.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let state = self.state();
        let tried = state.transactions.iter();
        let unfinished = tried.filter_map(|((from, start, to, path), tried)| {
            let lives = state.hosts.get(from).map(|host| host.starts()) == Some(*start);
            let what = match tried {
                Tried::InVain if lives => "was given up".to_owned(),
                Tried::Refused(status) => format!("was refused with {status}"),
                Tried::InVain | Tried::Answered => return None,
            };
            Some(format!("{path} of {from} to {to} {what}"))
        });
        unfinished.collect()
    }

    /// Carries a request of `from`, as fate has it.
    pub(crate) async fn carry(
        self: &Arc<Self>,
        from: &str,
        outgoing: Outgoing,
    ) -> Result<http::Response<Bytes>, Lost> {
        let to = outgoing.server.to_string();
        let line = format!(
            "{from} > {to} {} {}",
            outgoing.request.method(),
            outgoing.request.uri()
        );
        let fate = self.fate(from, &to);
        let transaction = self.transaction(from, &to, &outgoing.request);
        self.tried(transaction.as_ref(), Tried::InVain);
        let timeout = outgoing.timeout;
        let carried = tokio::time::timeout(timeout, self.delivered(from, &to, outgoing, fate));
        let carried = carried.await.unwrap_or(Err(Lost::TimedOut));
        match &carried {
            Ok(response) => {
                let status = response.status().as_u16();
                self.trace.note(format_args!("{line} = {status}"));
                let tried = match status {
                    200 => Tried::Answered,
                    401 | 404 | 408 | 429 | 500.. => Tried::InVain,
                    status => Tried::Refused(status),
                };
                self.tried(transaction.as_ref(), tried);
            }
            Err(lost) => self.trace.note(format_args!("{line} = {lost}")),
        }
        carried
    }

    async fn delivered(
        self: &Arc<Self>,
        from: &str,
        to: &str,
        outgoing: Outgoing,
        fate: Fate,
    ) -> Result<http::Response<Bytes>, Lost> {
        tokio::time::sleep(Duration::from_millis(fate.there_ms)).await;
        if fate.lost || !self.reaches(from, to) {
            return Err(fate.loss(true).await);
        }
        if let Some(after_ms) = fate.twice_ms {
            self.send_again(to, outgoing.clone(), after_ms);
        }
        let bytes_max = outgoing.bytes_max;
        let request = outgoing.request.map(Body::from);
        let answer = self.ask(to, request, bytes_max).await;
        let Some(answer) = answer else {
            return Err(fate.loss(false).await);
        };
        tokio::time::sleep(Duration::from_millis(fate.back_ms)).await;
        if fate.unanswered || !self.reaches(from, to) {
            return Err(fate.loss(false).await);
        }
        answer
    }

    async fn ask(
        &self,
        to: &str,
        request: http::Request<Body>,
        bytes_max: usize,
    ) -> Option<Result<http::Response<Bytes>, Lost>> {
        let (host, stranger) = {
            let state = self.state();
            let stranger = state.strangers.get(to).cloned();
            (state.hosts.get(to).cloned(), stranger)
        };
        match (host, stranger) {
            (Some(host), _) => host.call(request, bytes_max).await,
            (None, Some(router)) => Some(answered(router, request, bytes_max).await),
            (None, None) => None,
        }
    }

    /// Sends a second copy, whose answer nobody waits for.
    fn send_again(self: &Arc<Self>, to: &str, outgoing: Outgoing, after_ms: u64) {
        if *outgoing.request.method() == Method::POST {
            return;
        }
        let (internet, to) = (self.clone(), to.to_owned());
        let mut state = self.state();
        while state.copies.try_join_next().is_some() {}
        state.copies.spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let request = outgoing.request.map(Body::from);
            drop(internet.ask(&to, request, outgoing.bytes_max).await);
        });
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let state = self.state();
        let there = state.hosts.get(to).is_none_or(|host| host.is_up());
        there && !state.cuts.contains(&pair(from, to))
    }

    /// What becomes of the next request: it follows from how many there were before between these two.
    fn fate(&self, from: &str, to: &str) -> Fate {
        let mut state = self.state();
        let weather = state.weather;
        let count = state.counts.entry((from.to_owned(), to.to_owned()));
        let count = count.and_modify(|count| *count += 1).or_insert(0);
        let mut chance = Chance::of(self.seed, &format!("{from} {to} {count}"));
        let slow = if chance.percent(weather.slow) {
            20_000
        } else {
            60
        };
        Fate {
            there_ms: chance.between(1, slow),
            back_ms: chance.between(1, slow),
            lost: chance.percent(weather.lost),
            unanswered: chance.percent(weather.unanswered),
            twice_ms: chance
                .percent(weather.twice)
                .then(|| chance.between(0, slow)),
            manner: chance.between(0, 2),
        }
    }

    /// The name of a transaction, if the request is one of a server that keeps to the rules.
    fn transaction(
        &self,
        from: &str,
        to: &str,
        request: &http::Request<Bytes>,
    ) -> Option<Transaction> {
        let path = request.uri().path();
        let start = self.state().hosts.get(from)?.starts();
        let is_one = path.starts_with("/_matrix/federation/v1/send/");
        is_one.then(|| (from.to_owned(), start, to.to_owned(), path.to_owned()))
    }

    fn tried(&self, transaction: Option<&Transaction>, tried: Tried) {
        if let Some(transaction) = transaction {
            let mut state = self.state();
            state.transactions.insert(transaction.clone(), tried);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fate {
    /// How the sender learns that there is no answer. What was not `unsent` is never said to be.
    async fn loss(self, unsent: bool) -> Lost {
        match self.manner {
            0 if unsent => Lost::Unreachable("nobody is there".to_owned()),
            2 => std::future::pending().await,
            _ => {
                tokio::time::sleep(Duration::from_millis(self.back_ms)).await;
                Lost::BrokeOff("the connection broke off".to_owned())
            }
        }
    }
}

/// The way of one server to the others.
#[derive(Debug)]
struct Way {
    from: String,
    internet: Arc<Internet>,
}

impl Transport for Way {
    fn send(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<http::Response<Bytes>, Lost>> {
        self.internet.carry(&self.from, outgoing).boxed()
    }
}
