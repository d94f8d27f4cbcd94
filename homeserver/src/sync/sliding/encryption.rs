//! What sliding sync tells for end-to-end encryption: messages to the device, devices, keys.
//!
//! Spec: MSC3885, MSC3884.

use std::sync::Arc;

use super::{
    connection::Told,
    extensions::Asked,
    request::{Extensions, ToDevice},
};
use crate::{
    error::ApiResult,
    http::Caller,
    keys::{
        self,
        lists::{self, DeviceLists},
    },
    server::App,
    sync::Token,
    to_device,
};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

/// The part of an answer that is about encryption.
#[derive(Debug, Default, Serialize)]
pub(super) struct Encryption {
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device: Option<Messages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2ee: Option<Keys>,
}

#[derive(Debug, Serialize)]
struct Messages {
    next_batch: String,
    events: Vec<Box<RawValue>>,
}

#[derive(Debug, Serialize)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<DeviceLists>,
    #[serde(flatten)]
    left: Arc<Value>,
    /// Whether the client does not know that already.
    #[serde(skip)]
    news: bool,
}

impl Encryption {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.to_device
            .as_ref()
            .is_none_or(|messages| messages.events.is_empty())
            && self.e2ee.as_ref().is_none_or(|keys| !keys.news)
    }
}

/// Deletes the messages that the device says it has.
///
/// # Errors
/// `M_INVALID_PARAM` when `since` is no token of this server; when the store cannot be written.
pub(super) async fn acknowledge(app: &App, caller: &Caller, asked: &ToDevice) -> ApiResult<()> {
    if let (Some(device), Some(since)) = (&caller.device, &asked.since) {
        let since = Token::parse(app, since)?.position();
        to_device::acknowledge(&app.store, caller.user, device, since).await?;
    }
    Ok(())
}

/// All that is wanted; `told` becomes what the client has been told then.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn answer(
    asked: &Asked<'_>,
    wanted: &Extensions,
    told: &mut Told,
) -> ApiResult<Encryption> {
    let mut encryption = Encryption::default();
    let Some(device) = asked.device else {
        return Ok(encryption);
    };
    let (app, until) = (asked.look.app, asked.look.until.position());
    if wanted.to_device.enabled == Some(true) {
        let since = match &wanted.to_device.since {
            Some(since) => Token::parse(app, since)?.position(),
            None => 0,
        };
        let (events, upto) = to_device::pending(&app.store, asked.user, device, since, until)?;
        encryption.to_device = Some(Messages {
            next_batch: Token::new(upto, 0).to_string(),
            events,
        });
    }
    if wanted.e2ee.is_on() {
        let counts = keys::counts(&app.store, asked.user, device)?;
        let left = json!({
            "device_one_time_keys_count": counts.one_time,
            "device_unused_fallback_key_types": counts.unused_fallback,
        });
        let changed = match told.devices {
            // What is known of the log since `pos` serves only who was told up to there.
            Some(since) if asked.since.map(Token::position) == Some(since) => {
                asked.touched.device_lists(app, asked.user, since, until)?
            }
            Some(since) => lists::between(app, asked.user, since, until, None, true)?,
            None => DeviceLists::default(),
        };
        told.devices = Some(until);
        let news = !changed.is_empty() || told.keys.as_deref() != Some(&left);
        let left = Arc::new(left);
        told.keys = Some(left.clone());
        encryption.e2ee = Some(Keys {
            device_lists: (!changed.is_empty()).then_some(changed),
            left,
            news,
        });
    }
    Ok(encryption)
}
