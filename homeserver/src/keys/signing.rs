//! Cross-signing: the keys by which users vouch for their devices and for each other.
//!
//! A key is kept as its user uploaded it; signatures that came later are rows of their own and are
//! added when the key is asked for. Each is checked before it is kept, so that nobody can fill up the
//! keys of another with rubbish. Spec: client-server API, "Cross-signing".

use std::collections::BTreeMap;

use ruma::{
    OwnedUserId, UserId,
    canonical_json::{CanonicalJsonObject, try_from_json_map},
    serde::Base64,
    signatures::{PublicKeyMap, verify_json},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
};

use super::{
    DEVICE_KEYS,
    lists::{self, What},
    of_device, remote,
};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many signatures one request may bring.
const SIGNATURES_MAX: usize = 1_000;

const KEYS: Table<Key> = Table::new(Keyspace::CROSS_SIGNING_KEY);
const SIGNATURES: Table<String> = Table::new(Keyspace::KEY_SIGNATURE);

/// A cross-signing key as its user uploaded it.
pub type Key = Map<String, Value>;

/// What a cross-signing key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Stands for the user; signs the two others.
    Master,
    /// Signs the user's own devices.
    SelfSigning,
    /// Signs the master keys of other users.
    UserSigning,
}

impl Usage {
    /// The name in `usage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// The keys of one upload.
#[derive(Debug, Default, Deserialize)]
pub struct SigningKeys {
    #[serde(rename = "master_key")]
    master: Option<Key>,
    #[serde(rename = "self_signing_key")]
    own: Option<Key>,
    #[serde(rename = "user_signing_key")]
    others: Option<Key>,
}

impl SigningKeys {
    fn each(&self) -> impl Iterator<Item = (Usage, &Key)> {
        [
            (Usage::Master, &self.master),
            (Usage::SelfSigning, &self.own),
            (Usage::UserSigning, &self.others),
        ]
        .into_iter()
        .filter_map(|(usage, key)| key.as_ref().map(|key| (usage, key)))
    }
}

fn at(user: UserNum, usage: Usage) -> Packed {
    KEYS.key().user(user).text(usage.as_str())
}

/// A user's key; `None` when they uploaded none.
///
/// # Errors
/// When the store cannot be read.
pub fn key_of(store: &Store, user: UserNum, usage: Usage) -> ApiResult<Option<Key>> {
    Ok(store.get(KEYS, at(user, usage))?)
}

/// The ID (`ed25519:…`) and the public key, in base64, of a cross-signing key.
pub(crate) fn public_key(key: &Key) -> Option<(&str, &str)> {
    let keys = key.get("keys")?.as_object()?;
    let (id, value) = keys.iter().next().filter(|_| keys.len() == 1)?;
    let value = value.as_str()?;
    (id.strip_prefix("ed25519:") == Some(value)).then_some((id.as_str(), value))
}

/// Whether an upload replaces keys, for which a user has to authenticate again.
///
/// The first upload does not, nor does one that says only what is known. Spec: client-server API,
/// "`POST /keys/device_signing/upload`".
///
/// # Errors
/// When the store cannot be read.
pub fn replaces(store: &Store, user: UserNum, keys: &SigningKeys) -> ApiResult<bool> {
    if key_of(store, user, Usage::Master)?.is_none() {
        return Ok(false);
    }
    for (usage, key) in keys.each() {
        let known = key_of(store, user, usage)?;
        if known.as_ref().and_then(public_key) != public_key(key) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keeps a user's cross-signing keys. With another master key, what was signed under the old one is gone.
///
/// # Errors
/// `M_INVALID_PARAM` for a key of another user, usage or shape, `M_MISSING_PARAM` without a master
/// key, `M_INVALID_SIGNATURE` for a key that the master key did not sign.
pub async fn upload(
    app: &App,
    user: UserNum,
    user_id: &UserId,
    keys: &SigningKeys,
) -> ApiResult<()> {
    let _turn = app.key_turn.lock(user).await;
    let store = &app.store;
    let stored = key_of(store, user, Usage::Master)?;
    let master = keys.master.as_ref().or(stored.as_ref());
    let master =
        master.ok_or_else(|| ApiError::missing_param("there is no master key: `master_key`"))?;
    for (usage, key) in keys.each() {
        let is_for = |value: &Value| {
            value
                .as_array()
                .is_some_and(|list| list.contains(&usage.as_str().into()))
        };
        let of_user = key.get("user_id").and_then(Value::as_str) == Some(user_id.as_str());
        if !of_user || !key.get("usage").is_some_and(is_for) || public_key(key).is_none() {
            return Err(ApiError::invalid_param(format!(
                "the {} key needs your `user_id`, its `usage`, and one Ed25519 key that is named by itself",
                usage.as_str()
            )));
        }
        if usage != Usage::Master {
            let (id, public) = public_key(master)
                .ok_or_else(|| ApiError::invalid_param("the master key has no public key"))?;
            check(key, user_id, id, public)?;
        }
    }
    let mut commit = Commit::new();
    if stored.as_ref().and_then(public_key) != public_key(master) {
        forget_signatures(store, &mut commit, user, None)?;
        for usage in [Usage::SelfSigning, Usage::UserSigning] {
            commit.delete(at(user, usage));
        }
    }
    for (usage, key) in keys.each() {
        commit.put(KEYS, at(user, usage), key);
    }
    lists::note(store, &mut commit, user, What::SigningKeys)?;
    store.commit(commit).await?;
    Ok(())
}

/// Deletes the signatures of one key of a user, or of all.
///
/// # Errors
/// When the store cannot be read.
pub fn forget_signatures(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    key: Option<&str>,
) -> ApiResult<()> {
    let mut prefix = SIGNATURES.key().user(user);
    if let Some(key) = key {
        prefix = prefix.text(key);
    }
    store.visit(&prefix, Direction::Ascending, |key, _| {
        commit.delete(Packed::new().raw(key));
        Ok(true)
    })?;
    Ok(())
}

fn invalid(message: &'static str) -> ApiError {
    ApiError::new(
        http::StatusCode::BAD_REQUEST,
        "M_INVALID_SIGNATURE",
        message,
    )
}

/// Checks that `signed` carries a good signature by one key of `signer`, and returns it.
fn check(signed: &Key, signer: &UserId, key_id: &str, public: &str) -> ApiResult<String> {
    let signature = signed
        .get("signatures")
        .and_then(|all| all.get(signer.as_str())?.get(key_id)?.as_str())
        .ok_or_else(|| invalid("the signature of the key that should sign is missing"))?
        .to_owned();
    let mut alone = signed.clone();
    let only = json!({ signer.as_str(): { key_id: &signature } });
    alone.insert("signatures".to_owned(), only);
    let object: CanonicalJsonObject =
        try_from_json_map(alone).map_err(|_| invalid("what is signed is no canonical JSON"))?;
    let public = Base64::parse(public).map_err(|_| invalid("the key that signs is no base64"))?;
    let keys = BTreeMap::from([(key_id.to_owned(), public)]);
    let map = PublicKeyMap::from([(signer.to_string(), keys)]);
    verify_json(&map, &object).map_err(|_| invalid("the signature is wrong"))?;
    Ok(signature)
}

/// Adds the signatures that came later and that `viewer` may see: the owner's and their own.
///
/// # Errors
/// When the store cannot be read.
pub fn add_signatures(
    app: &App,
    key: &mut Key,
    (owner, name): (UserNum, &str),
    viewer: Option<UserNum>,
) -> ApiResult<()> {
    let mut found: Vec<(UserNum, String, String)> = Vec::new();
    let prefix = SIGNATURES.key().user(owner).text(name);
    app.store
        .visit(&prefix, Direction::Ascending, |key, value| {
            let mut parts = Unpack::key(key);
            let signer = parts.user().and(parts.text()).and(parts.user());
            if let (Some(signer), Some(id), Ok(signature)) =
                (signer, parts.text(), serde_json::from_slice(value))
                && (signer == owner || Some(signer) == viewer)
            {
                found.push((signer, id, signature));
            }
            Ok(true)
        })?;
    for (signer, id, signature) in found {
        let signer = app.store.user_id(signer)?;
        let all = key.entry("signatures").or_insert_with(|| json!({}));
        if let Some(all) = all.as_object_mut()
            && let Some(by) = all
                .entry(signer.as_str())
                .or_insert_with(|| json!({}))
                .as_object_mut()
        {
            by.insert(id, signature.into());
        }
    }
    Ok(())
}

/// Takes away every signature but those of `user_id`: whom others have verified is their own affair.
pub fn keep_own_signatures(key: &mut Key, user_id: &UserId) {
    if let Some(Value::Object(all)) = key.get_mut("signatures") {
        all.retain(|signer, _| signer == user_id.as_str());
    }
}

/// The master and the self-signing key of a user, as other servers may see them.
///
/// # Errors
/// When the store cannot be read.
pub fn told(app: &App, user_id: &UserId) -> ApiResult<(Option<Key>, Option<Key>)> {
    let mut found = query(app, std::iter::once(&user_id.to_owned()), None)?;
    let own = |mut key: Key| {
        keep_own_signatures(&mut key, user_id);
        key
    };
    Ok((
        found.master.remove(user_id).map(own),
        found.own.remove(user_id).map(own),
    ))
}

/// Cross-signing keys by user.
#[derive(Debug, Default, serde::Serialize)]
pub struct Found {
    /// By which users vouch for their other keys.
    #[serde(rename = "master_keys")]
    pub master: BTreeMap<OwnedUserId, Key>,
    /// By which users vouch for their devices.
    #[serde(rename = "self_signing_keys")]
    pub own: BTreeMap<OwnedUserId, Key>,
    /// Only the asking user's own: whom one has verified is one's own affair.
    #[serde(rename = "user_signing_keys")]
    others: BTreeMap<OwnedUserId, Key>,
}

/// The cross-signing keys of local users, as `viewer` sees them.
///
/// # Errors
/// When the store cannot be read.
pub fn query<'a>(
    app: &App,
    asked: impl Iterator<Item = &'a OwnedUserId>,
    viewer: Option<UserNum>,
) -> ApiResult<Found> {
    let mut found = Found::default();
    for user_id in asked.filter(|user_id| app.is_local(user_id)) {
        let Some(user) = app.store.find_user(user_id)? else {
            continue;
        };
        if let Some(mut key) = key_of(&app.store, user, Usage::Master)? {
            if let Some(name) = public_key(&key).map(|(_, public)| public.to_owned()) {
                add_signatures(app, &mut key, (user, &name), viewer)?;
            }
            found.master.insert(user_id.clone(), key);
        }
        if let Some(key) = key_of(&app.store, user, Usage::SelfSigning)? {
            found.own.insert(user_id.clone(), key);
        }
        if Some(user) == viewer
            && let Some(key) = key_of(&app.store, user, Usage::UserSigning)?
        {
            found.others.insert(user_id.clone(), key);
        }
    }
    Ok(found)
}

/// Signed keys by user and by device, or by public key.
pub type Signed = BTreeMap<OwnedUserId, BTreeMap<String, Key>>;

/// What was refused, and why, by the same names.
pub type Failures = BTreeMap<OwnedUserId, BTreeMap<String, Value>>;

/// Keeps the good ones of the signatures that a user made, and tells what is wrong with the others.
///
/// # Errors
/// `M_TOO_LARGE` for too many.
pub async fn sign(
    app: &App,
    user: UserNum,
    user_id: &UserId,
    signed: &Signed,
) -> ApiResult<Failures> {
    if signed.values().map(BTreeMap::len).sum::<usize>() > SIGNATURES_MAX {
        return Err(ApiError::too_large(format!(
            "one request brings at most {SIGNATURES_MAX} signatures"
        )));
    }
    let _turn = app.key_turn.lock(user).await;
    let mut commit = Commit::new();
    let mut failures = Failures::new();
    for (whose, keys) in signed {
        let owner = app.store.find_user(whose)?;
        let mut kept = Vec::new();
        for (name, object) in keys {
            let unknown = || ApiError::not_found("there is no such key to sign");
            let result = match owner {
                None => Err(unknown()),
                Some(owner) => sign_one(app, (user, user_id), owner, name, object),
            };
            match (result, owner) {
                (Ok((key_id, signature)), Some(owner)) => {
                    let row = SIGNATURES.key().user(owner).text(name).user(user);
                    commit.put(SIGNATURES, row.text(&key_id), &signature);
                    kept.push(name.as_str());
                }
                (Err(error), _) => {
                    let told = json!({ "errcode": error.errcode, "error": error.message });
                    let of_user = failures.entry(whose.clone()).or_default();
                    of_user.insert(name.clone(), told);
                }
                (Ok(_), None) => {}
            }
        }
        match owner.filter(|_| !kept.is_empty()) {
            Some(owner) if owner == user => {
                let master = master_name(&app.store, user)?;
                let whats = kept.into_iter().map(|name| {
                    if master.as_deref() == Some(name) {
                        What::SigningKeys
                    } else {
                        What::Device(name.into())
                    }
                });
                lists::note_all(&app.store, &mut commit, user, whats)?;
            }
            Some(owner) => lists::note_for(&app.store, &mut commit, owner, user)?,
            None => {}
        }
    }
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(failures)
}

/// The public part of a user's master key.
fn master_name(store: &Store, user: UserNum) -> ApiResult<Option<String>> {
    let master = key_of(store, user, Usage::Master)?;
    let name = master.as_ref().and_then(public_key);
    Ok(name.map(|(_, public)| public.to_owned()))
}

/// Checks one signature: by which key it was made, and itself.
fn sign_one(
    app: &App,
    (user, user_id): (UserNum, &UserId),
    owner: UserNum,
    name: &str,
    object: &Key,
) -> ApiResult<(String, String)> {
    let store = &app.store;
    let unknown = || ApiError::not_found("there is no such key to sign");
    let master = match key_of(store, owner, Usage::Master)? {
        Some(master) => Some(master),
        // A user of another server: theirs is known while a room is shared.
        None => remote::master_key(store, owner)?,
    };
    let is_master = master
        .as_ref()
        .and_then(public_key)
        .is_some_and(|(_, public)| public == name);
    if is_master {
        same_content(master.as_ref(), object)?;
        if owner != user {
            return by_key(store, user, user_id, Usage::UserSigning, object);
        }
        return by_device(store, user, user_id, object);
    }
    let device_keys = if owner == user {
        store.get(
            DEVICE_KEYS,
            of_device(Keyspace::DEVICE_KEYS, user, name.into()),
        )?
    } else {
        None
    };
    same_content(Some(&device_keys.ok_or_else(unknown)?), object)?;
    by_key(store, user, user_id, Usage::SelfSigning, object)
}

/// That what was signed is the key that is known, whatever its signatures.
fn same_content(known: Option<&Key>, signed: &Key) -> ApiResult<()> {
    let bare = |key: &Key| {
        let mut key = key.clone();
        key.remove("signatures");
        key.remove("unsigned");
        key
    };
    if known.map(bare) == Some(bare(signed)) {
        return Ok(());
    }
    Err(invalid("what is signed is not the key that is known here"))
}

fn by_key(
    store: &Store,
    user: UserNum,
    user_id: &UserId,
    usage: Usage,
    object: &Key,
) -> ApiResult<(String, String)> {
    let key = key_of(store, user, usage)?;
    let (id, public) = key
        .as_ref()
        .and_then(public_key)
        .ok_or_else(|| ApiError::not_found("you have no key to sign this with"))?;
    let signature = check(object, user_id, id, public)?;
    Ok((id.to_owned(), signature))
}

/// The first good signature by a device of the user.
fn by_device(
    store: &Store,
    user: UserNum,
    user_id: &UserId,
    object: &Key,
) -> ApiResult<(String, String)> {
    let made = object
        .get("signatures")
        .and_then(|all| all.get(user_id.as_str())?.as_object());
    let mut result = Err(invalid("no device of yours signed this"));
    for id in made.into_iter().flatten().map(|(id, _)| id) {
        let Some(device) = id.strip_prefix("ed25519:") else {
            continue;
        };
        let row = of_device(Keyspace::DEVICE_KEYS, user, device.into());
        let Some(keys) = store.get(DEVICE_KEYS, row)? else {
            continue;
        };
        let public = keys.get("keys").and_then(|keys| keys.get(id)?.as_str());
        if let Some(public) = public {
            result = check(object, user_id, id, public).map(|signature| (id.clone(), signature));
            if result.is_ok() {
                break;
            }
        }
    }
    result
}
