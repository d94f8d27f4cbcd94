//! Checks 1 to 3 on an event that another server gave: its size and shape, its signatures, its content hash.
//!
//! The keys are handed in: [`required`] says which are needed, [`crate::wire::keyring`] which count.
//!
//! Spec: server-server API, "Checks performed on receipt of a PDU", "Validating hashes and signatures on received
//! events".

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName,
    canonical_json::{RedactedBecause, redact},
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::{
        PublicKeyMap, VerificationError, Verified, required_server_signatures_to_verify_event,
        verify_event,
    },
};

use super::PDU_BYTES_MAX;
use crate::wire::keyring::{Want, is_ed25519, signatures_by};

/// How many signatures of one server are looked at. One is usual, two while it changes its key.
const SIGNATURES_MAX: usize = 16;

/// Why an event is dropped.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// See [`PDU_BYTES_MAX`].
    #[error("the event is {bytes} bytes, the limit is {PDU_BYTES_MAX}")]
    TooLarge {
        /// The length of its canonical JSON without `unsigned`.
        bytes: usize,
    },
    /// A field that must be there is not, or is something else.
    #[error("`{0}` is missing or malformed")]
    Field(&'static str),
    /// Somebody who must sign it did not.
    #[error("the event is not signed by `{0}`")]
    Unsigned(OwnedServerName),
    /// A signature is wrong, no key counts, or a field cannot be read.
    #[error(transparent)]
    Signature(#[from] VerificationError),
    /// It cannot be redacted.
    #[error("the event cannot be redacted: {0}")]
    Redaction(String),
}

/// Whose keys an event needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    /// For each server that must have signed it, the keys that it did so with.
    pub servers: BTreeMap<OwnedServerName, Want>,
}

/// Whose keys are needed to verify an event. Nobody's for an invite that a third party made.
///
/// # Errors
/// When it is too large, lacks what every event has, or somebody's signature is missing: then no key helps.
pub fn required(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<Required, Unverified> {
    check_size(object)?;
    let at_ms = match object.get("origin_server_ts") {
        // A time before the epoch is no later than any key's end.
        Some(CanonicalJsonValue::Integer(at)) => u64::try_from(i64::from(*at)).unwrap_or(0),
        _ => return Err(Unverified::Field("origin_server_ts")),
    };
    let rules = rules_of(object, rules);
    let servers = required_server_signatures_to_verify_event(object, &rules.signatures)?;
    let mut required = BTreeMap::new();
    for server in servers {
        let signatures = signatures_by(object, &server, is_ed25519);
        let key_ids: BTreeSet<String> = signatures.into_keys().take(SIGNATURES_MAX).collect();
        if key_ids.is_empty() {
            return Err(Unverified::Unsigned(server));
        }
        let want = Want {
            key_ids,
            at_ms: rules.enforce_key_validity.then_some(at_ms),
            current: false,
        };
        required.insert(server, want);
    }
    Ok(Required { servers: required })
}

/// Verifies an event with `keys`, which count for it, and gives it without `unsigned`: redacted, when its content is
/// not the one that was signed.
///
/// # Errors
/// When it must be dropped.
pub fn verify(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
    keys: &BTreeMap<OwnedServerName, BTreeMap<String, Vec<u8>>>,
) -> Result<CanonicalJsonObject, Unverified> {
    check_size(object)?;
    let rules = rules_of(object, rules);
    // What remains: by those who must sign, with keys that count, in the alphabet that ruma reads.
    let mut known = PublicKeyMap::new();
    let mut signatures = CanonicalJsonObject::new();
    for (server, keys) in keys {
        let by_server = signatures_by(object, server, |key_id| keys.contains_key(key_id));
        signatures.insert(server.to_string(), by_server.into());
        let keys = keys
            .iter()
            .map(|(key_id, key)| (key_id.clone(), Base64::new(key.clone())));
        known.insert(server.to_string(), keys.collect());
    }
    let mut event = object.clone();
    event.remove("unsigned");
    let mut checked = event.clone();
    checked.insert("signatures".to_owned(), signatures.into());
    match verify_event(&known, &checked, &rules)? {
        Verified::All => Ok(event),
        Verified::Signatures => redact(event, &rules.redaction, None::<RedactedBecause>)
            .map_err(|error| Unverified::Redaction(error.to_string())),
    }
}

/// Exactly [`PDU_BYTES_MAX`] bytes pass.
fn check_size(object: &CanonicalJsonObject) -> Result<(), Unverified> {
    let mut bytes = 0;
    for (key, value) in object.iter().filter(|(key, _)| *key != "unsigned") {
        // The two texts, a colon, and a comma or the first brace.
        bytes += json_bytes(key) + json_bytes(value) + 2;
    }
    // The last brace, or both.
    bytes += if bytes == 0 { 2 } else { 1 };
    if bytes > PDU_BYTES_MAX {
        return Err(Unverified::TooLarge { bytes });
    }
    Ok(())
}

fn json_bytes(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("canonical JSON can be written to a counter");
    count.0
}

/// The rules for one event: ruma asks every event with an authorising user for that server's signature, the
/// specification only joins.
fn rules_of(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> RoomVersionRules {
    let text = |value: Option<&CanonicalJsonValue>, expected| {
        value.and_then(CanonicalJsonValue::as_str) == Some(expected)
    };
    let content = object
        .get("content")
        .and_then(CanonicalJsonValue::as_object);
    let is_join = text(object.get("type"), "m.room.member")
        && content.is_some_and(|content| text(content.get("membership"), "join"));
    let mut rules = rules.clone();
    rules.signatures.check_join_authorised_via_users_server &= is_join;
    rules
}

#[cfg(test)]
mod tests;
