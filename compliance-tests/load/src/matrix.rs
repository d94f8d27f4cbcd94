//! The few calls of the client-server API that the workload consists of, and the cheapest reading
//! of their answers that works: small answers are parsed, a `/sync` body is only searched.

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::{Value, json};

use crate::conn::{Ask, Conn};
use crate::failure::Failure;

/// How long the server may hold a long-poll. Clients ask for 30 s, but a thousand polls that end and
/// begin anew every 30 s keep Synapse so busy that it is never idle between two messages.
const POLL_MS: u32 = 120_000;

/// Starts the text of every message, followed by the message's [`Mark`] in decimal digits.
const MARK_PREFIX: &str = "mark:";

/// Pages of a room's history that are read.
const PAGES_MAX: usize = 100;

/// Names a message, so that its arrival is seen without knowing its event ID, which a fast server
/// delivers before it has answered the sender.
pub(crate) type Mark = u32;

/// A registered user and its first device.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) id: String,
    bearer: HeaderValue,
}

/// Registers `name` with `m.login.dummy`, in one request where the server lets us.
pub(crate) async fn register(conn: &mut Conn, name: &str) -> Result<User, Failure> {
    const PATH: &str = "/_matrix/client/v3/register";
    let body = |auth: Value| {
        Bytes::from(json!({ "auth": auth, "username": name, "password": "load-9d2f" }).to_string())
    };
    let ask = |auth: Value| Ask {
        method: Method::POST,
        path: PATH,
        bearer: None,
        body: body(auth),
    };
    let first = conn
        .exchange(ask(json!({ "type": "m.login.dummy" })))
        .await?;
    let answer = if first.status == 401 {
        // The server insists on the session that it opens with this answer.
        let session = text(&first.body, "session", PATH)?;
        conn.ask(ask(json!({ "type": "m.login.dummy", "session": session })))
            .await?
    } else if first.status == 200 {
        first.body
    } else {
        return Err(Failure::Status {
            request: format!("POST {PATH}"),
            status: first.status,
            body: String::from_utf8_lossy(&first.body).into_owned(),
        });
    };
    let access_token = text(&answer, "access_token", PATH)?;
    Ok(User {
        id: text(&answer, "user_id", PATH)?,
        bearer: HeaderValue::from_str(&format!("Bearer {access_token}")).map_err(|_| {
            Failure::Answer {
                request: PATH.to_owned(),
                lacks: "access_token",
            }
        })?,
    })
}

/// Creates a public room and returns its ID.
pub(crate) async fn create_room(conn: &mut Conn, user: &User) -> Result<String, Failure> {
    const PATH: &str = "/_matrix/client/v3/createRoom";
    let body = json!({ "preset": "public_chat", "name": "load" });
    let answer = post(conn, user, PATH, &body).await?;
    text(&answer, "room_id", PATH)
}

/// Joins a public room.
pub(crate) async fn join(conn: &mut Conn, user: &User, room: &str) -> Result<(), Failure> {
    let path = format!("/_matrix/client/v3/rooms/{}/join", encoded(room));
    post(conn, user, &path, &json!({})).await?;
    Ok(())
}

/// Joins a public room by way of the server of `via`, one of its members.
pub(crate) async fn join_from_afar(
    conn: &mut Conn,
    user: &User,
    room: &str,
    via: &User,
) -> Result<(), Failure> {
    let (_, server) = via.id.split_once(':').ok_or_else(|| Failure::Answer {
        request: "/register".to_owned(),
        lacks: "user_id",
    })?;
    let (room, server) = (encoded(room), encoded(server));
    let path = format!("/_matrix/client/v3/join/{room}?via={server}&server_name={server}");
    post(conn, user, &path, &json!({})).await?;
    Ok(())
}

/// Sends the message that `mark` names.
pub(crate) async fn send(
    conn: &mut Conn,
    user: &User,
    room: &str,
    mark: Mark,
) -> Result<(), Failure> {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/load{mark}",
        encoded(room)
    );
    let body = format!(
        r#"{{"msgtype":"m.text","body":"{MARK_PREFIX}{mark} the quick brown fox jumps over the lazy dog"}}"#
    );
    conn.ask(Ask {
        method: Method::PUT,
        path: &path,
        bearer: Some(&user.bearer),
        body: body.into(),
    })
    .await?;
    Ok(())
}

/// Stores the filter that Element Web syncs with and returns its ID. That one asks for 20 events a room.
pub(crate) async fn store_filter(
    conn: &mut Conn,
    user: &User,
    events: u32,
) -> Result<String, Failure> {
    let path = format!("/_matrix/client/v3/user/{}/filter", encoded(&user.id));
    let filter = json!({ "room": {
        "timeline": { "limit": events },
        "state": { "lazy_load_members": true },
    }});
    let answer = post(conn, user, &path, &filter).await?;
    text(&answer, "filter_id", &path)
}

/// One `/sync`; with `since` it waits for news for up to [`POLL_MS`].
///
/// It does not make the user appear online. A thousand users who come online within seconds, each
/// told of each, keep Synapse busy for a quarter of an hour; that is no part of a message's cost.
pub(crate) async fn sync(
    conn: &mut Conn,
    user: &User,
    filter_id: &str,
    since: Option<&str>,
) -> Result<Bytes, Failure> {
    let filter = encoded(filter_id);
    let (timeout_ms, since) = match since {
        None => (0, String::new()),
        Some(since) => (POLL_MS, format!("&since={}", encoded(since))),
    };
    let path = format!(
        "/_matrix/client/v3/sync?set_presence=offline&filter={filter}&timeout={timeout_ms}{since}"
    );
    get(conn, &path, Some(user)).await
}

/// Answers without a token where the specification asks for none.
pub(crate) async fn get(
    conn: &mut Conn,
    path: &str,
    user: Option<&User>,
) -> Result<Bytes, Failure> {
    conn.ask(Ask {
        method: Method::GET,
        path,
        bearer: user.map(|user| &user.bearer),
        body: Bytes::new(),
    })
    .await
}

/// The marks of all messages of a room, newest first, as a client finds them that scrolls back.
pub(crate) async fn history(
    conn: &mut Conn,
    user: &User,
    room: &str,
) -> Result<Vec<Mark>, Failure> {
    let mut found = Vec::new();
    let mut from = String::new();
    for _ in 0..PAGES_MAX {
        let room = encoded(room);
        let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100{from}");
        let body = get(conn, &path, Some(user)).await?;
        found.extend(marks(&body));
        match text(&body, "end", &path) {
            Ok(end) => from = format!("&from={}", encoded(&end)),
            Err(_) => break,
        }
    }
    Ok(found)
}

/// The `next_batch` of a `/sync` body, found without parsing it.
pub(crate) fn next_batch(body: &[u8]) -> Result<String, Failure> {
    find_next_batch(body).ok_or_else(|| Failure::Answer {
        request: "/sync".to_owned(),
        lacks: "next_batch",
    })
}

/// All marks in a `/sync` body.
pub(crate) fn marks(body: &[u8]) -> impl Iterator<Item = Mark> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    text.match_indices(MARK_PREFIX).filter_map(|(at, prefix)| {
        let digits = text.get(at + prefix.len()..)?;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        digits.get(..end)?.parse().ok()
    })
}

fn find_next_batch(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    // Messages of the workload never hold this, and no other part of a sync answer does.
    let (_, rest) = text.split_once("\"next_batch\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let (token, _) = rest.strip_prefix('"')?.split_once('"')?;
    Some(token.to_owned())
}

async fn post(conn: &mut Conn, user: &User, path: &str, body: &Value) -> Result<Bytes, Failure> {
    conn.ask(Ask {
        method: Method::POST,
        path,
        bearer: Some(&user.bearer),
        body: body.to_string().into(),
    })
    .await
}

fn text(answer: &[u8], key: &'static str, request: &str) -> Result<String, Failure> {
    serde_json::from_slice::<Value>(answer)
        .ok()
        .as_ref()
        .and_then(|answer| answer.get(key)?.as_str())
        .map(str::to_owned)
        .ok_or_else(|| Failure::Answer {
            request: request.to_owned(),
            lacks: key,
        })
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encoded(raw: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(raw.len() + 8);
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a String does not fail");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::{encoded, find_next_batch, marks};

    #[test]
    fn every_mark_of_a_body_is_found() {
        let body =
            br#"{"body":"mark:17 the quick"},{"body":"mark:4000000000 x"},{"body":"mark: 5"}"#;
        assert_eq!(marks(body).collect::<Vec<_>>(), [17, 4_000_000_000]);
        assert_eq!(marks(b"{}").count(), 0);
    }

    #[test]
    fn next_batch_is_found_with_and_without_spaces() {
        assert_eq!(
            find_next_batch(br#"{"next_batch":"s1_2","rooms":{}}"#).as_deref(),
            Some("s1_2")
        );
        assert_eq!(
            find_next_batch(b"{ \"rooms\": {}, \"next_batch\" : \"s3\" }").as_deref(),
            Some("s3")
        );
        assert_eq!(find_next_batch(br#"{"rooms":{}}"#), None);
    }

    #[test]
    fn identifiers_are_percent_encoded() {
        assert_eq!(encoded("!a-b:c.d~e/f"), "%21a-b%3Ac.d~e%2Ff");
    }
}
