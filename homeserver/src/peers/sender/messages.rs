//! Messages to devices of other servers' users: rows until the server has taken them.
//!
//! Spec: server-server API, "Send-to-device messaging".

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, UserId};
use serde::Serialize;
use serde_json::value::RawValue;
use store::{
    Commit,
    keys::{Keyspace, Packed},
    log::Change,
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
    to_device::Messages,
};

/// How large one EDU of messages gets, in bytes; what is larger is several. One message alone may be larger.
const EDU_BYTES_MAX: usize = 64 << 10;

/// How many letters and digits the ID of a message has; 119 bits, so that none ever returns.
const ID_CHARS: usize = 20;

type Contents<'a> = BTreeMap<&'a OwnedUserId, BTreeMap<&'a OwnedDeviceId, &'a RawValue>>;

#[derive(Serialize)]
struct Content<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    kind: &'a str,
    message_id: String,
    messages: &'a Contents<'a>,
}

/// Keeps the messages for users of other servers, for their servers. How many devices they are for, `*` being
/// one.
///
/// # Errors
/// When they cannot be written as JSON.
pub fn keep(
    app: &App,
    commit: &mut Commit,
    sender: &UserId,
    kind: &str,
    messages: &Messages,
) -> ApiResult<usize> {
    let mut waiting: BTreeMap<OwnedServerName, (usize, Contents<'_>)> = BTreeMap::new();
    let mut count = 0;
    for (user_id, devices) in messages.iter().filter(|(id, _)| !app.is_local(id)) {
        let server = user_id.server_name();
        for (device, content) in devices {
            count += 1;
            let bytes = content.get().len() + user_id.as_str().len() + device.as_str().len();
            let of_server = waiting.entry(server.to_owned()).or_default();
            if of_server.0 > 0 && of_server.0 + bytes > EDU_BYTES_MAX {
                let (_, full) = std::mem::take(of_server);
                put(app, commit, server.to_owned(), (sender, kind), &full)?;
            }
            of_server.0 += bytes;
            let of_user = of_server.1.entry(user_id).or_default();
            of_user.insert(device, content);
        }
    }
    for (server, (_, rest)) in waiting {
        put(app, commit, server, (sender, kind), &rest)?;
    }
    Ok(count)
}

fn put(
    app: &App,
    commit: &mut Commit,
    server: OwnedServerName,
    (sender, kind): (&UserId, &str),
    messages: &Contents<'_>,
) -> ApiResult<()> {
    let content = Content {
        sender,
        kind,
        message_id: app.entropy.text(ID_CHARS),
        messages,
    };
    let json = serde_json::to_vec(&content).map_err(|error| ApiError::internal(&error))?;
    let key = Packed::key(Keyspace::DESTINATION_MESSAGE)
        .text(server.as_str())
        .position();
    let entry = commit.log(Change::ToServer { server });
    commit.put_raw_at(entry, key, Packed::new().raw(&json));
    Ok(())
}
