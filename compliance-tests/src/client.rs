//! A small Matrix client over a router in this process.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// What a server answered.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Reply {
    /// The body as JSON; `null` when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The JSON of an answer that must be 200.
    ///
    /// # Panics
    /// When it is anything else.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(
            self.status,
            StatusCode::OK,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self.json()
    }

    /// Status and errcode.
    pub fn error(&self) -> (u16, String) {
        let errcode = self.json()["errcode"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (self.status.as_u16(), errcode)
    }

    /// That the answer is this error.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn fails(self, status: u16, errcode: &str) {
        assert_eq!(
            self.error(),
            (status, errcode.to_owned()),
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
    }
}

pub(crate) async fn request(
    router: Router,
    method: Method,
    path: &str,
    token: Option<&str>,
    content_type: &str,
    body: Vec<u8>,
) -> Reply {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, content_type);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Body::from(body)).expect("a valid request");
    send(router, request).await
}

/// Any request.
pub(crate) async fn send(router: Router, request: Request<Body>) -> Reply {
    let response = router
        .oneshot(request)
        .await
        .expect("a router does not fail");
    let (parts, body) = response.into_parts();
    let bytes = body
        .collect()
        .await
        .expect("a whole body")
        .to_bytes()
        .to_vec();
    Reply {
        status: parts.status,
        headers: parts.headers,
        bytes,
    }
}

/// A device of a user.
#[derive(Debug)]
pub struct Client {
    router: Router,
    /// The user.
    pub user_id: String,
    /// The device.
    pub device_id: String,
    /// The access token.
    pub token: String,
    txn: AtomicU64,
}

/// Percent-encodes one segment of a path.
pub fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string");
        }
    }
    out
}

impl Client {
    pub(crate) fn new(router: Router, reply: &Value) -> Self {
        let text = |key: &str| reply[key].as_str().unwrap_or_default().to_owned();
        Self {
            router,
            user_id: text("user_id"),
            device_id: text("device_id"),
            token: text("access_token"),
            txn: AtomicU64::new(0),
        }
    }

    /// A request; `path` is what follows `/_matrix/client`, or a whole path.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let path = if path.starts_with("/_") {
            path.to_owned()
        } else {
            format!("/_matrix/client{path}")
        };
        let body = body
            .map(|body| serde_json::to_vec(&body).expect("JSON"))
            .unwrap_or_default();
        request(
            self.router.clone(),
            method,
            &path,
            Some(&self.token),
            "application/json",
            body,
        )
        .await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Reply {
        self.call(Method::GET, path, None).await
    }

    /// `PUT`.
    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// `POST`.
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Reply {
        self.call(Method::DELETE, path, None).await
    }

    /// Creates a room and returns its ID.
    ///
    /// # Panics
    /// When that fails.
    pub async fn create_room(&self, body: Value) -> String {
        let reply = self.post("/v3/createRoom", body).await.ok();
        reply["room_id"].as_str().expect("a room ID").to_owned()
    }

    /// Creates a room that anybody may join.
    pub async fn public_room(&self) -> String {
        self.create_room(json!({ "preset": "public_chat" })).await
    }

    /// Joins a room.
    pub async fn join(&self, room_id: &str) -> Reply {
        self.post(&format!("/v3/join/{}", segment(room_id)), json!({}))
            .await
    }

    /// Leaves a room.
    pub async fn leave(&self, room_id: &str) -> Reply {
        self.post(&format!("/v3/rooms/{}/leave", segment(room_id)), json!({}))
            .await
    }

    /// Invites somebody.
    pub async fn invite(&self, room_id: &str, user_id: &str) -> Reply {
        self.post(
            &format!("/v3/rooms/{}/invite", segment(room_id)),
            json!({ "user_id": user_id }),
        )
        .await
    }

    /// Sends an event of any type, with a new transaction ID.
    pub async fn send(&self, room_id: &str, kind: &str, content: Value) -> Reply {
        let txn = self.txn.fetch_add(1, Ordering::Relaxed);
        self.put(
            &format!("/v3/rooms/{}/send/{kind}/txn-{txn}", segment(room_id)),
            content,
        )
        .await
    }

    /// Sends a text and returns its event ID.
    ///
    /// # Panics
    /// When that fails.
    pub async fn say(&self, room_id: &str, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        let reply = self.send(room_id, "m.room.message", content).await.ok();
        reply["event_id"].as_str().expect("an event ID").to_owned()
    }

    /// Sets a piece of state.
    pub async fn set_state(
        &self,
        room_id: &str,
        kind: &str,
        state_key: &str,
        content: Value,
    ) -> Reply {
        self.put(
            &format!(
                "/v3/rooms/{}/state/{kind}/{}",
                segment(room_id),
                segment(state_key)
            ),
            content,
        )
        .await
    }

    /// Reads a piece of state.
    pub async fn state(&self, room_id: &str, kind: &str, state_key: &str) -> Reply {
        self.get(&format!(
            "/v3/rooms/{}/state/{kind}/{}",
            segment(room_id),
            segment(state_key)
        ))
        .await
    }

    /// `/sync` without waiting, from `since` or from nowhere; `query` is appended as it is.
    ///
    /// # Panics
    /// When that fails.
    pub async fn sync(&self, since: Option<&str>, query: &str) -> Value {
        let since = since
            .map(|since| format!("since={since}&"))
            .unwrap_or_default();
        self.get(&format!("/v3/sync?{since}timeout=0&{query}"))
            .await
            .ok()
    }

    /// The newest events of a room, newest first.
    ///
    /// # Panics
    /// When that fails.
    pub async fn messages(&self, room_id: &str, query: &str) -> Value {
        self.get(&format!(
            "/v3/rooms/{}/messages?dir=b&{query}",
            segment(room_id)
        ))
        .await
        .ok()
    }
}

/// The `event_id` of every event in a list.
pub fn event_ids(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .filter_map(|event| event["event_id"].as_str().map(str::to_owned))
        .collect()
}
