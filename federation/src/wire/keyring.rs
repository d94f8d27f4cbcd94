//! The keys of a server: what it published, and which of them count for what and when.
//!
//! Never fetches: [`Published`] checks what came, [`ServerKeys`] is what is kept of it.
//!
//! A current key (`verify_keys`) counts for requests and events, an old one (`old_verify_keys`, or one that the
//! server no longer names) only for events of its time. A server that has lost a key can say so; so nobody's
//! word counts for longer than [`VALID_MS_MAX`].
//!
//! Spec: server-server API, "Retrieving server keys"; room version 5, "Signing key validity period".

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName,
    serde::{Base64, base64::Standard},
    signatures::{PublicKeyMap, PublicKeySet, VerificationError, verify_json},
};
use serde::{Deserialize, Serialize};

use super::lenient_base64;

/// How long an answer counts at most, in milliseconds: 7 days, whatever it says of itself.
///
/// Spec: room version 5, "Signing key validity period".
pub const VALID_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1_000;

/// How many keys of one server are read and kept.
pub const KEYS_MAX: usize = 32;

/// The longest ID of a key, in bytes.
pub const KEY_ID_BYTES_MAX: usize = 255;

/// The largest answer, in bytes of JSON.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The length of an ed25519 key in bytes.
const KEY_BYTES: usize = 32;

/// One key of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The public key.
    pub key: Base64<Standard, Vec<u8>>,
    /// Until when it counts, in milliseconds since the epoch.
    pub valid_until_ms: u64,
    /// Whether the server still signs with it.
    pub current: bool,
}

/// Why an answer does not say what a server's keys are.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Larger than [`ANSWER_BYTES_MAX`].
    #[error("the keys are more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    /// Not canonical JSON.
    #[error("the keys are not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that must be there is not, or is something else.
    #[error("`{0}` is missing or malformed")]
    Field(&'static str),
    /// Of another server than was asked.
    #[error("these are the keys of `{0}`")]
    OtherServer(String),
    /// More than [`KEYS_MAX`].
    #[error("more than {KEYS_MAX} keys")]
    TooMany,
    /// Not signed by one of the keys in it.
    #[error("the keys are not signed: {0}")]
    Signature(#[from] VerificationError),
}

/// What a server published, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The server.
    pub server_name: OwnedServerName,
    /// Its keys by their IDs.
    pub keys: BTreeMap<String, Key>,
    /// Until when it counts, in milliseconds since the epoch, as it says itself: for passing on.
    pub valid_until_ms: u64,
    /// All of it.
    pub object: CanonicalJsonObject,
}

impl Published {
    /// Checks what `server_name` or a notary answered at `now_ms`: shape, name, and the server's own signature by a
    /// key that is in it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn check(server_name: &ServerName, json: &[u8], now_ms: u64) -> Result<Self, KeyError> {
        if json.len() > ANSWER_BYTES_MAX {
            return Err(KeyError::TooLarge);
        }
        Self::check_object(server_name, serde_json::from_slice(json)?, now_ms)
    }

    /// As [`check`](Self::check), for one of several in an answer.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn check_object(
        server_name: &ServerName,
        object: CanonicalJsonObject,
        now_ms: u64,
    ) -> Result<Self, KeyError> {
        let name = object
            .get("server_name")
            .and_then(CanonicalJsonValue::as_str);
        let name = name.ok_or(KeyError::Field("server_name"))?;
        if name != server_name.as_str() {
            return Err(KeyError::OtherServer(name.chars().take(255).collect()));
        }
        let valid_until_ms =
            milliseconds(object.get("valid_until_ts")).ok_or(KeyError::Field("valid_until_ts"))?;
        let until_ms = valid_until_ms.min(now_ms.saturating_add(VALID_MS_MAX));
        let mut keys = BTreeMap::new();
        for (key_id, _, key) in listed(&object, "verify_keys") {
            let key = Key {
                key,
                valid_until_ms: until_ms,
                current: true,
            };
            keys.insert(key_id.to_owned(), key);
        }
        let public: BTreeMap<String, Vec<u8>> = keys
            .iter()
            .map(|(key_id, key)| (key_id.clone(), key.key.as_bytes().to_vec()))
            .collect();
        for (key_id, entry, key) in listed(&object, "old_verify_keys") {
            let Some(expired_ms) = milliseconds(entry.get("expired_ts")) else {
                continue;
            };
            let old = Key {
                key,
                // A key cannot be both; and an old one that is still to expire is no older than a current one.
                valid_until_ms: expired_ms.min(until_ms),
                current: false,
            };
            keys.entry(key_id.to_owned()).or_insert(old);
        }
        if keys.len() > KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        verify_signed(&object, server_name, &public)?;
        Ok(Self {
            server_name: server_name.to_owned(),
            keys,
            valid_until_ms,
            object,
        })
    }
}

/// The ed25519 keys in a map of an answer; others are passed over.
fn listed<'a>(
    object: &'a CanonicalJsonObject,
    field: &str,
) -> impl Iterator<Item = (&'a str, &'a CanonicalJsonObject, Base64<Standard, Vec<u8>>)> {
    let map = object.get(field).and_then(CanonicalJsonValue::as_object);
    map.into_iter().flatten().filter_map(|(key_id, entry)| {
        let entry = entry.as_object()?;
        let key = lenient_base64(entry.get("key")?.as_str()?)?;
        let fits = is_ed25519(key_id) && key.len() == KEY_BYTES;
        fits.then(|| (key_id.as_str(), entry, Base64::new(key)))
    })
}

/// Whether a key ID is of the one algorithm there is, and of a bearable length.
pub fn is_ed25519(key_id: &str) -> bool {
    key_id.len() <= KEY_ID_BYTES_MAX
        && key_id
            .strip_prefix("ed25519:")
            .is_some_and(|version| !version.is_empty())
}

fn milliseconds(value: Option<&CanonicalJsonValue>) -> Option<u64> {
    match value? {
        CanonicalJsonValue::Integer(number) => u64::try_from(i64::from(*number)).ok(),
        _ => None,
    }
}

/// That `entity` signed `object` with one of `keys`, and made no wrong signature with another.
///
/// Signatures by keys that are not in `keys`, and those of others, are passed over.
///
/// # Errors
/// When it did not.
///
/// Spec: appendices, "Checking for a Signature".
pub fn verify_signed(
    object: &CanonicalJsonObject,
    entity: &ServerName,
    keys: &BTreeMap<String, Vec<u8>>,
) -> Result<(), VerificationError> {
    let mut object = object.clone();
    let signatures = signatures_by(&object, entity, |key_id| keys.contains_key(key_id));
    object.insert(
        "signatures".to_owned(),
        CanonicalJsonObject::from([(entity.to_string(), signatures.into())]).into(),
    );
    let keys: PublicKeySet = keys
        .iter()
        .map(|(key_id, key)| (key_id.clone(), Base64::new(key.clone())))
        .collect();
    verify_json(&PublicKeyMap::from([(entity.to_string(), keys)]), &object)
}

/// The signatures of `entity` on `object` by the keys that `wanted` picks, in the alphabet that ruma reads.
pub(crate) fn signatures_by(
    object: &CanonicalJsonObject,
    entity: &ServerName,
    wanted: impl Fn(&str) -> bool,
) -> CanonicalJsonObject {
    let signatures = object
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object)
        .and_then(|signatures| signatures.get(entity.as_str()))
        .and_then(CanonicalJsonValue::as_object);
    let signatures = signatures.into_iter().flatten();
    signatures
        .filter(|(key_id, _)| wanted(key_id))
        .map(|(key_id, signature)| {
            let decoded = signature.as_str().and_then(lenient_base64);
            let signature = match decoded {
                Some(bytes) => Base64::<Standard, _>::new(bytes).encode().into(),
                None => signature.clone(),
            };
            (key_id.clone(), signature)
        })
        .collect()
}

/// One thing that a server has signed: any of these keys will do, if it counts at this time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// The IDs of the keys it is signed with.
    pub key_ids: BTreeSet<String>,
    /// When it was signed, in milliseconds since the epoch; `None` where the room version does not ask.
    pub at_ms: Option<u64>,
    /// Whether only a key will do that the server signs with still.
    pub current: bool,
}

/// What is known of the keys of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerKeys {
    /// The keys by their IDs: those of the last answer, and of earlier ones.
    pub keys: BTreeMap<String, Key>,
    /// When the last answer came, in milliseconds since the epoch.
    pub fetched_ms: u64,
    /// Until when the last answer counts by its own word, in milliseconds since the epoch.
    pub valid_until_ms: u64,
}

impl ServerKeys {
    /// Takes what a server published, as it came at `now_ms`, in place of what it published before.
    ///
    /// Keys that it no longer names are kept as old ones: events that they signed are still around.
    pub fn renew(&mut self, published: &Published, now_ms: u64) {
        for key in self.keys.values_mut() {
            key.current = false;
        }
        self.keys.extend(published.keys.clone());
        while self.keys.len() > KEYS_MAX {
            let unnamed = self.keys.iter();
            let unnamed = unnamed.filter(|(key_id, _)| !published.keys.contains_key(*key_id));
            let oldest = unnamed.min_by_key(|(_, key)| key.valid_until_ms);
            let Some(oldest) = oldest.map(|(key_id, _)| key_id.clone()) else {
                break;
            };
            self.keys.remove(&oldest);
        }
        self.fetched_ms = now_ms;
        self.valid_until_ms = published.valid_until_ms;
    }

    /// Takes the keys of an answer that is older than the last one: a notary may remember what the server forgot.
    pub fn remember(&mut self, published: &Published) {
        for (key_id, key) in &published.keys {
            if self.keys.len() >= KEYS_MAX {
                break;
            }
            self.keys.entry(key_id.clone()).or_insert(Key {
                current: false,
                ..key.clone()
            });
        }
    }

    /// The key with this ID, if it counts for `want`.
    fn key(&self, key_id: &str, want: &Want) -> Option<&Key> {
        let key = self.keys.get(key_id)?;
        let in_time = want.at_ms.is_none_or(|at_ms| at_ms <= key.valid_until_ms);
        (in_time && (key.current || !want.current)).then_some(key)
    }

    /// The keys that count for `want`, by their IDs.
    pub fn fitting<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        want.key_ids.iter().filter_map(|key_id| {
            let key = self.key(key_id, want)?;
            Some((key_id.as_str(), key.key.as_bytes()))
        })
    }

    /// Whether there is a key for `want`.
    pub fn satisfies(&self, want: &Want) -> bool {
        want.key_ids
            .iter()
            .any(|key_id| self.key(key_id, want).is_some())
    }
}

#[cfg(test)]
mod tests;
