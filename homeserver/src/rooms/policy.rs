//! The policy server of a room, which is asked to sign every event before that is sent, and those of other
//! servers that come without its signature.
//!
//! Its word does not decide what is allowed, only what is shown.
//! Spec: server-server API, "Policy Servers".

use std::time::Duration;

use federation::event::Pdu;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, SigningKeyAlgorithm,
    api::federation::policy::sign_event,
    events::room::policy::{POLICY_SERVER_ED25519_SIGNING_KEY_ID, RoomPolicyEventContent},
    room_version_rules::RoomVersionRules,
    signatures::verify_policy_server_signature,
};
use serde_json::value::RawValue;

use super::{Turn, served};
use crate::{
    error::{ApiError, ApiResult},
    peers::{self, Limits, PeerError},
    server::App,
};

/// Who signs for a room, and with which key.
pub type Policy = RoomPolicyEventContent;

/// How long it may take to decide, and how much it may say. A sender waits for it.
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    bytes_max: 64 * 1024,
};

impl Turn {
    /// The policy server whose signature an event needs, if the room uses one now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn policy_for(&self, pdu: &Pdu) -> ApiResult<Option<Policy>> {
        if pdu.is_state("m.room.policy", "") {
            return Ok(None);
        }
        let Some(event) = self.state_event("m.room.policy", "")? else {
            return Ok(None);
        };
        let policy: Option<Policy> = event.content_as();
        let has_key = |policy: &Policy| {
            let keys = &policy.public_keys;
            keys.contains_key(&SigningKeyAlgorithm::Ed25519)
        };
        let Some(policy) = policy.filter(has_key) else {
            return Ok(None);
        };
        // A room cannot make a server that is not in it work for it.
        let joined = served::is_joined(&self.app, &self.head, &policy.via)?;
        Ok(joined.then_some(policy))
    }
}

/// Whether an event carries the signature of the room's policy server.
pub fn has_signed(policy: &Policy, pdu: &Pdu, rules: &RoomVersionRules) -> bool {
    serde_json::from_str(pdu.json())
        .is_ok_and(|object| verify_policy_server_signature(policy, &object, rules).is_ok())
}

/// An event with the signature of the room's policy server, which is asked for it.
///
/// # Errors
/// What the policy server says against it; 502 when it cannot be asked, or signs with another key than the
/// room names.
pub async fn ask(
    app: &App,
    policy: &Policy,
    pdu: &Pdu,
    rules: &RoomVersionRules,
) -> ApiResult<Pdu> {
    let json = RawValue::from_string(pdu.json().to_owned());
    let json = json.map_err(|error| ApiError::internal(&error))?;
    let request = sign_event::v1::Request::new(json);
    let answer = peers::ask_within(app, &policy.via, request, LIMITS).await;
    let answer = answer.map_err(|error| match error {
        PeerError::Refused {
            status,
            errcode,
            message,
            ..
        } if status.is_client_error() => ApiError::new(status, errcode, message),
        error => ApiError::bad_gateway(format!("the room's policy server: {error}")),
    })?;
    let signed = answer.ed25519_signature(&policy.via);
    let signed = signed.and_then(|signature| with_signature(pdu, policy, signature, rules));
    signed
        .filter(|signed| has_signed(policy, signed, rules))
        .ok_or_else(|| {
            ApiError::bad_gateway("the room's policy server did not sign with the room's key")
        })
}

/// The same event with one signature more.
fn with_signature(
    pdu: &Pdu,
    policy: &Policy,
    signature: &str,
    rules: &RoomVersionRules,
) -> Option<Pdu> {
    let mut object: CanonicalJsonObject = serde_json::from_str(pdu.json()).ok()?;
    let CanonicalJsonValue::Object(signatures) = object.get_mut("signatures")? else {
        return None;
    };
    let by_server = signatures
        .entry(policy.via.to_string())
        .or_insert_with(|| CanonicalJsonObject::new().into());
    let CanonicalJsonValue::Object(by_server) = by_server else {
        return None;
    };
    let key_id = POLICY_SERVER_ED25519_SIGNING_KEY_ID.to_owned();
    by_server.insert(key_id, signature.into());
    Pdu::from_canonical(&object, rules).ok()
}
