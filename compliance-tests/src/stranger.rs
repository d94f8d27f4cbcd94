//! A server that is driven by hand: it has a name and a key, answers what the test adds, and may lie.
//!
//! Requests are signed by ruma's code, not by this project's: two implementations that must agree.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use axum::{Json, Router, body::Body, routing::get};
use http::{Method, Request, header};
use ruma::{
    CanonicalJsonObject, OwnedServerName, RoomVersionId, ServerName,
    api::{
        auth_scheme::AuthScheme as _,
        federation::authentication::{ServerSignatures, XMatrixSigningInput},
    },
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, hash_and_sign_event, reference_hash, sign_json},
};
use serde_json::{Value, json};

use crate::{Network, Reply, World, client, network::seed, segment};

/// For how long a stranger's answer about its keys counts, in milliseconds: a day.
const VALID_MS: u64 = 24 * 60 * 60 * 1_000;

/// A server of a network that only does what a test tells it to.
#[derive(Clone)]
pub struct Stranger {
    network: Network,
    name: OwnedServerName,
    pair: Arc<Ed25519KeyPair>,
    routes: Arc<Mutex<Router>>,
    number: Arc<AtomicU64>,
}

impl Stranger {
    pub(crate) fn new(network: Network, name: &str) -> Self {
        let name = ServerName::parse(name).expect("a valid server name");
        let stranger = Self {
            pair: Arc::new(key_pair(seed(&name), "stranger")),
            routes: Arc::default(),
            number: Arc::default(),
            network,
            name,
        };
        stranger.serve(stranger.keys_router());
        stranger
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Its key.
    pub fn key_pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    /// The ID of its key.
    pub fn key_id(&self) -> String {
        format!("ed25519:{}", self.pair.version())
    }

    /// Its public key in base64.
    pub fn public_key(&self) -> String {
        Base64::<Standard, _>::new(self.pair.public_key()).encode()
    }

    /// The same server with another key. What it serves stays as it is, the answer about its keys included.
    #[must_use]
    pub fn with_key(&self, seed: u8, version: &str) -> Self {
        Self {
            pair: Arc::new(key_pair([seed; 32], version)),
            ..self.clone()
        }
    }

    /// Adds routes to what it answers; a path that it answers already, its keys for one, is answered by the newest.
    ///
    /// # Panics
    /// When a handler of another test thread has panicked.
    pub fn serve(&self, routes: Router) {
        let mut all = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *all);
        *all = routes.fallback_service(before);
        self.network.serve(&self.name, all.clone());
    }

    /// Answers every request with this method and path alike.
    pub fn answer(&self, method: Method, path: &str, status: u16, body: Value) {
        let status = http::StatusCode::from_u16(status).expect("a status");
        let filter = axum::routing::MethodFilter::try_from(method).expect("a usual method");
        let handler = move || std::future::ready((status, Json(body.clone())));
        self.serve(Router::new().route(path, axum::routing::on(filter, handler)));
    }

    /// Signs every invite of a user of its own that it is sent, as a server does that takes it.
    ///
    /// # Panics
    /// When it is sent what is no invite.
    pub fn take_invites(&self) {
        let stranger = self.clone();
        let take = move |Json(body): Json<Value>| {
            let version: RoomVersionId =
                serde_json::from_value(body["room_version"].clone()).expect("a room version");
            let (_, event) = stranger.sign_event(body["event"].clone(), &version);
            std::future::ready(Json(json!({ "event": event })))
        };
        let path = "/_matrix/federation/v2/invite/{room_id}/{event_id}";
        self.serve(Router::new().route(path, axum::routing::put(take)));
    }

    /// What it says its keys are, unsigned: for a test to change and sign.
    pub fn keys(&self) -> Value {
        json!({
            "server_name": self.name,
            "valid_until_ts": self.network.now_ms() + VALID_MS,
            "verify_keys": { self.key_id(): { "key": self.public_key() } },
            "old_verify_keys": {},
        })
    }

    fn keys_router(&self) -> Router {
        let stranger = self.clone();
        let keys = move || std::future::ready(Json(stranger.sign(stranger.keys())));
        Router::new().route("/_matrix/key/v2/server", get(keys))
    }

    /// Signs any JSON object, beside the signatures it has.
    ///
    /// # Panics
    /// When it is not an object of canonical JSON.
    pub fn sign(&self, json: Value) -> Value {
        let mut object = canonical(json);
        sign_json(self.name(), &*self.pair, &mut object).expect("an object can be signed");
        serde_json::to_value(object).expect("JSON")
    }

    /// Hashes and signs an event; gives its ID, too.
    ///
    /// # Panics
    /// When it is no event, or the room version has no rules.
    pub fn sign_event(&self, event: Value, version: &RoomVersionId) -> (String, Value) {
        let rules = version.rules().expect("a known room version");
        let mut object = canonical(event);
        hash_and_sign_event(self.name(), &*self.pair, &mut object, &rules.redaction)
            .expect("an event can be signed");
        let hash = reference_hash(&object, &rules).expect("an event has a hash");
        let event = serde_json::to_value(object).expect("JSON");
        (format!("${hash}"), event)
    }

    /// The `Authorization` header of a request to `destination`.
    ///
    /// # Panics
    /// When the path is none.
    pub fn authorization(
        &self,
        destination: &str,
        method: &Method,
        path: &str,
        body: &[u8],
    ) -> String {
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().expect("a path");
        let destination = ServerName::parse(destination).expect("a server name");
        let input = XMatrixSigningInput::new(self.name.clone(), destination, &self.pair);
        ServerSignatures::add_authentication(&mut request, input).expect("a signed request");
        let header = &request.headers()[header::AUTHORIZATION];
        header.to_str().expect("ASCII").to_owned()
    }

    /// A signed request.
    pub async fn ask(
        &self,
        world: &World,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Reply {
        let body = body
            .map(|body| serde_json::to_vec(&body).expect("JSON"))
            .unwrap_or_default();
        let authorization = self.authorization(world.name(), &method, path, &body);
        let router = world.server().router.clone();
        ask_with(router, method, path, Some(&authorization), body).await
    }

    /// Lets a user of its own join a room by way of `world`; gives the ID of the join, and the join and the
    /// answer to it.
    ///
    /// # Panics
    /// When it is not let in.
    pub async fn join(
        &self,
        world: &World,
        room_id: &str,
        user_id: &str,
        version: &RoomVersionId,
    ) -> (String, Value, Value) {
        let (room, user) = (segment(room_id), segment(user_id));
        let make = format!("/_matrix/federation/v1/make_join/{room}/{user}?ver={version}");
        let proposed = self.ask(world, Method::GET, &make, None).await.ok();
        let (id, event) = self.sign_event(proposed["event"].clone(), version);
        let send = format!("/_matrix/federation/v2/send_join/{room}/{}", segment(&id));
        let body = Some(event.clone());
        let answer = self.ask(world, Method::PUT, &send, body).await.ok();
        (id, event, answer)
    }

    /// Sends a transaction with these PDUs and EDUs, under a new ID.
    pub async fn transact(&self, world: &World, pdus: Vec<Value>, edus: Vec<Value>) -> Reply {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let path = format!("/_matrix/federation/v1/send/{number}");
        let body = json!({
            "origin": self.name, "origin_server_ts": self.network.now_ms(), "pdus": pdus, "edus": edus,
        });
        self.ask(world, Method::PUT, &path, Some(body)).await
    }
}

impl std::fmt::Debug for Stranger {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Stranger").field(&self.name).finish()
    }
}

/// A request with any `Authorization`, or none.
async fn ask_with(
    router: Router,
    method: Method,
    path: &str,
    authorization: Option<&str>,
    body: Vec<u8>,
) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Body::from(body)).expect("a valid request");
    client::send(router, request).await
}

fn canonical(json: Value) -> CanonicalJsonObject {
    serde_json::from_value(json).expect("an object of canonical JSON")
}

/// The key pair of a seed. A PKCS#8 document of an Ed25519 key is a fixed header and the seed (RFC 8410, 7).
fn key_pair(seed: [u8; 32], version: &str) -> Ed25519KeyPair {
    let header = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let document: Vec<u8> = header.into_iter().chain(seed).collect();
    Ed25519KeyPair::from_der(&document, version.to_owned()).expect("every seed is a key")
}
