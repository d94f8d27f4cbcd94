//! Several servers in one process: a request from one to another is a call of the other's router.
//!
//! A test can [`cut`](Network::cut) two servers apart, [lose replies](Network::lose_replies), and see
//! [what was asked](Network::requests). Every server of a network goes by the same clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use homeserver::{
    config::Config,
    seams::{Lost, Outgoing, Transport},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruma::{OwnedServerName, ServerName};
use tower::ServiceExt as _;

use crate::{Stranger, World, world::BEGINNING_MS};

/// Servers that reach each other, and nobody else. A clone is another handle of the same network.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now_ms: Arc<AtomicU64>,
    /// Whether this is none: requests go over real connections.
    internet: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    routers: BTreeMap<OwnedServerName, Router>,
    /// Pairs that do not reach each other, the smaller name first.
    cuts: BTreeSet<(String, String)>,
    /// How many answers to requests of the first to the second will be lost.
    losses: BTreeMap<(String, String), usize>,
    /// What was asked by the first of the second, also if it did not arrive.
    requests: BTreeMap<(String, String), Vec<String>>,
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// A network without servers.
    pub fn new() -> Self {
        Self::with(false)
    }

    /// No network: who is linked to it uses real connections.
    pub(crate) fn internet() -> Self {
        Self::with(true)
    }

    fn with(internet: bool) -> Self {
        Self(Arc::new(Inner {
            now_ms: Arc::new(AtomicU64::new(BEGINNING_MS)),
            internet,
            state: Mutex::default(),
        }))
    }

    /// A server of this name that federates with all others.
    pub async fn server(&self, name: &str) -> World {
        self.server_with(name, |_| {}).await
    }

    /// The same with a changed configuration.
    pub async fn server_with(&self, name: &str, change: impl FnOnce(&mut Config)) -> World {
        World::of_network(self.link(name), change).await
    }

    /// The same with rows on disk, so that it can be [restarted](World::restart).
    pub async fn server_on_disk(&self, name: &str, change: impl FnOnce(&mut Config)) -> World {
        World::of_network_on_disk(self.link(name), change).await
    }

    /// A server that does and says only what the test tells it to.
    pub fn stranger(&self, name: &str) -> Stranger {
        Stranger::new(self.clone(), name)
    }

    /// What is asked of `name` is answered by `router` from now on.
    pub fn serve(&self, name: &ServerName, router: Router) {
        self.state().routers.insert(name.to_owned(), router);
    }

    /// `name` is not there any more.
    pub fn remove(&self, name: &str) {
        self.state().routers.retain(|server, _| server != name);
    }

    /// Two servers do not reach each other from now on.
    pub fn cut(&self, one: &str, other: &str) {
        self.state().cuts.insert(pair(one, other));
    }

    /// Two servers reach each other again. Who has just failed to reach the other may wait for a while before it tries.
    pub fn heal(&self, one: &str, other: &str) {
        self.state().cuts.remove(&pair(one, other));
    }

    /// The next `count` requests of `from` reach `to`, and their answers are lost.
    pub fn lose_replies(&self, from: &str, to: &str, count: usize) {
        let pair = (from.to_owned(), to.to_owned());
        self.state().losses.insert(pair, count);
    }

    /// What `from` has asked of `to`, in order: `GET /_matrix/…`, with the query.
    pub fn requests(&self, from: &str, to: &str) -> Vec<String> {
        let pair = (from.to_owned(), to.to_owned());
        self.state()
            .requests
            .get(&pair)
            .cloned()
            .unwrap_or_default()
    }

    /// How many requests of `from` to `to` had `part` in their method or target.
    pub fn count(&self, from: &str, to: &str, part: &str) -> usize {
        let requests = self.requests(from, to);
        requests
            .iter()
            .filter(|request| request.contains(part))
            .count()
    }

    /// Milliseconds since the epoch, on every server's clock.
    pub fn now_ms(&self) -> u64 {
        self.0.now_ms.load(Ordering::Relaxed)
    }

    /// Lets time pass on every server's clock.
    pub fn pass_ms(&self, ms: u64) {
        self.0.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn link(&self, name: &str) -> Arc<Link> {
        Arc::new(Link {
            name: ServerName::parse(name).expect("a valid server name"),
            network: self.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request; gives who answers it, and whether the answer is lost.
    fn route(&self, from: &str, outgoing: &Outgoing) -> Option<(Router, bool)> {
        let to = outgoing.server.as_str();
        let directed = (from.to_owned(), to.to_owned());
        let mut state = self.state();
        let (method, target) = (outgoing.request.method(), outgoing.request.uri());
        let requests = state.requests.entry(directed.clone()).or_default();
        requests.push(format!("{method} {target}"));
        if state.cuts.contains(&pair(from, to)) {
            return None;
        }
        let router = state.routers.get(&outgoing.server)?.clone();
        let losses = state.losses.entry(directed).or_default();
        let lost = *losses > 0;
        *losses = losses.saturating_sub(1);
        Some((router, lost))
    }
}

/// The whole answer of a router.
pub(crate) async fn answered(
    router: Router,
    request: http::Request<Body>,
    bytes_max: usize,
) -> Result<http::Response<Bytes>, Lost> {
    let response = router.oneshot(request).await;
    let (parts, body) = response.expect("a router does not fail").into_parts();
    let body = Limited::new(body, bytes_max).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Lost::TooLarge { bytes_max }
        } else {
            Lost::BrokeOff(error.to_string())
        }
    })?;
    Ok(http::Response::from_parts(parts, body.to_bytes()))
}

pub(crate) fn pair(one: &str, other: &str) -> (String, String) {
    let (small, large) = if one < other {
        (one, other)
    } else {
        (other, one)
    };
    (small.to_owned(), large.to_owned())
}

/// The way of one server to the others.
#[derive(Debug)]
pub(crate) struct Link {
    name: OwnedServerName,
    network: Network,
}

impl Link {
    pub(crate) fn name(&self) -> &ServerName {
        &self.name
    }

    /// The way of the server's requests; `None` is the internet.
    pub(crate) fn transport(self: &Arc<Self>) -> Option<Arc<dyn Transport>> {
        let link: Arc<dyn Transport> = self.clone();
        (!self.network.0.internet).then_some(link)
    }

    pub(crate) fn now_ms(&self) -> Arc<AtomicU64> {
        self.network.0.now_ms.clone()
    }

    /// Another for each name, so that no two servers have the same keys.
    pub(crate) fn seed(&self) -> [u8; 32] {
        seed(&self.name)
    }

    pub(crate) fn serve(&self, router: Router) {
        self.network.serve(&self.name, router);
    }

    pub(crate) fn unserve(&self) {
        self.network.remove(self.name.as_str());
    }
}

/// 32 bytes that follow from a name.
pub(crate) fn seed(name: &ServerName) -> [u8; 32] {
    let mut seed = [7_u8; 32];
    for (index, byte) in name.as_bytes().iter().enumerate() {
        let place = &mut seed[index % 32];
        *place = place.wrapping_mul(31).wrapping_add(*byte);
    }
    seed
}

impl Transport for Link {
    fn send(&self, outgoing: Outgoing) -> BoxFuture<'_, Result<http::Response<Bytes>, Lost>> {
        async move {
            let Some((router, lost)) = self.network.route(self.name.as_str(), &outgoing) else {
                return Err(Lost::Unreachable("there is no way to it".to_owned()));
            };
            let request = outgoing.request.map(Body::from);
            let answer = answered(router, request, outgoing.bytes_max);
            let answer = tokio::time::timeout(outgoing.timeout, answer).await;
            let answer = answer.map_err(|_| Lost::TimedOut)?;
            if lost {
                return Err(Lost::BrokeOff("the answer is lost".to_owned()));
            }
            answer
        }
        .boxed()
    }
}
