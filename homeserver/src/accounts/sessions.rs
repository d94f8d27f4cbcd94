//! Access tokens, refresh tokens, and the sessions they stand for.
//!
//! Tokens are stored as SHA-256 hashes, so that a copy of the store logs nobody in.
//! Spec: client-server API, "Using access tokens", "Refreshing access tokens", "Soft logout".

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::{
    Commit,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
};

use super::Accounts;
use crate::{
    error::{ApiError, ApiResult},
    seams::Entropy,
};

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

const TOKENS: Table<TokenRow> = Table::new(Keyspace::TOKEN);
const REFRESH_TOKENS: Table<RefreshRow> = Table::new(Keyspace::REFRESH_TOKEN);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TokenRow {
    user: UserNum,
    device: OwnedDeviceId,
    /// When it stops working, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    /// The refresh token that was given with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh: Option<TokenHash>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RefreshRow {
    user: UserNum,
    device: OwnedDeviceId,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    /// What it was exchanged for. It works again until one of these is used, so that a lost answer
    /// does not end the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<(TokenHash, TokenHash)>,
}

/// A device that is logged in.
#[derive(Debug)]
pub struct Session {
    /// Whose.
    pub user: UserNum,
    /// Whose, in full.
    pub user_id: OwnedUserId,
    /// Which device.
    pub device: OwnedDeviceId,
    /// When its access token stops working, in milliseconds since the epoch.
    pub expires_ms: Option<u64>,
    /// The hash of its access token.
    pub token: TokenHash,
    refresh: Option<TokenHash>,
    /// Whether its first use ends the tokens before it.
    supersedes: AtomicBool,
}

/// Tokens that end in commits which readers do not see yet: until then their rows must not be
/// taken into memory again.
#[derive(Debug, Default)]
pub(super) struct Ending(Mutex<(u64, Vec<Weak<()>>)>);

impl Ending {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Weak<()>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tokens have ended or are ending.
    fn count(&self) -> u64 {
        self.lock().0
    }
}

/// What a client gets when it logs in or refreshes.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The access token.
    pub access_token: String,
    /// The refresh token, if the client can use one.
    pub refresh_token: Option<String>,
    /// How long the access token works, in milliseconds; for ever without.
    pub expires_in_ms: Option<u64>,
}

/// How long tokens live, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Access tokens of clients that can refresh them.
    pub access_ms: u64,
    /// Refresh tokens; for ever without.
    pub refresh_ms: Option<u64>,
}

/// The hash of a token.
pub fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

fn device_token_key(user: UserNum, device: &DeviceId, kind: Keyspace, token: TokenHash) -> Packed {
    Packed::key(Keyspace::DEVICE_TOKEN)
        .user(user)
        .text(device.as_str())
        .u8(kind.0)
        .raw(&token)
}

impl Accounts {
    /// The session of an access token.
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN`, as a soft logout when the token has only expired.
    pub fn session(&self, token: &str, now_ms: u64) -> ApiResult<Arc<Session>> {
        let token = hash(token);
        let session = match self.sessions.get(&token) {
            Some(session) => session,
            None => self.load_session(token)?,
        };
        if session.expires_ms.is_some_and(|expires| expires <= now_ms) {
            return Err(ApiError::unknown_token(true));
        }
        Ok(session)
    }

    fn load_session(&self, token: TokenHash) -> ApiResult<Arc<Session>> {
        let ended_before = self.ending.count();
        let row = self
            .store
            .get(TOKENS, TOKENS.key().raw(&token))?
            .ok_or_else(|| ApiError::unknown_token(false))?;
        let supersedes = row.refresh.is_some()
            && self
                .store
                .get_raw(Packed::key(Keyspace::SUPERSEDES).raw(&token))?
                .is_some();
        let session = Arc::new(Session {
            user: row.user,
            user_id: self.store.user_id(row.user)?,
            device: row.device,
            expires_ms: row.expires_ms,
            token,
            refresh: row.refresh,
            supersedes: AtomicBool::new(supersedes),
        });
        let mut ending = self.ending.lock();
        let (ended, unpublished) = &mut *ending;
        unpublished.retain(|commit| commit.strong_count() > 0);
        if *ended == ended_before && unpublished.is_empty() {
            self.sessions.insert(token, session.clone());
        }
        Ok(session)
    }

    /// Gives a device new tokens. Its old ones stay as they are.
    pub fn issue_tokens(
        &self,
        commit: &mut Commit,
        user: UserNum,
        device: &DeviceId,
        entropy: &Entropy,
        now_ms: u64,
        lifetimes: Option<Lifetimes>,
    ) -> NewSession {
        let access_token = format!("ghs_{}", entropy.text(40));
        let refresh_token = lifetimes.map(|_| format!("ghr_{}", entropy.text(40)));
        let refresh = refresh_token.as_deref().map(hash);
        let expires_in_ms = lifetimes.map(|lifetimes| lifetimes.access_ms);
        let token = hash(&access_token);
        let row = TokenRow {
            user,
            device: device.to_owned(),
            expires_ms: expires_in_ms.map(|ms| now_ms + ms),
            refresh,
        };
        commit.put(TOKENS, TOKENS.key().raw(&token), &row);
        commit.put_raw(
            device_token_key(user, device, Keyspace::TOKEN, token),
            Packed::new(),
        );
        if let Some(refresh) = refresh {
            let row = RefreshRow {
                user,
                device: device.to_owned(),
                expires_ms: lifetimes
                    .and_then(|lifetimes| lifetimes.refresh_ms)
                    .map(|ms| now_ms + ms),
                next: None,
            };
            commit.put(REFRESH_TOKENS, REFRESH_TOKENS.key().raw(&refresh), &row);
            commit.put_raw(
                device_token_key(user, device, Keyspace::REFRESH_TOKEN, refresh),
                Packed::new(),
            );
        }
        NewSession {
            access_token,
            refresh_token,
            expires_in_ms,
        }
    }

    /// Exchanges a refresh token. The old access token and the used refresh token end when one of
    /// the new ones is used.
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN` when it is not known, expired, or was exchanged and superseded.
    pub async fn refresh(
        &self,
        refresh_token: &str,
        entropy: &Entropy,
        now_ms: u64,
        lifetimes: Lifetimes,
    ) -> ApiResult<NewSession> {
        let old = hash(refresh_token);
        let _refreshing = self.refreshing.lock().await;
        let mut row = self
            .store
            .get(REFRESH_TOKENS, REFRESH_TOKENS.key().raw(&old))?
            .ok_or_else(|| ApiError::unknown_token(false))?;
        if row.expires_ms.is_some_and(|expires| expires <= now_ms) {
            return Err(ApiError::unknown_token(true));
        }
        let mut commit = Commit::new();
        // This token is used: what it was given for ends.
        self.end_superseded(&mut commit, row.user, &row.device, old)?;
        if let Some((access, refresh)) = row.next.take() {
            // The answer to the first exchange was lost: what it gave out was never used.
            self.drop_token(&mut commit, row.user, &row.device, Keyspace::TOKEN, access);
            self.drop_token(
                &mut commit,
                row.user,
                &row.device,
                Keyspace::REFRESH_TOKEN,
                refresh,
            );
        }
        let new = self.issue_tokens(
            &mut commit,
            row.user,
            &row.device,
            entropy,
            now_ms,
            Some(lifetimes),
        );
        let new_refresh = new.refresh_token.as_deref().map(hash);
        row.next = new_refresh.map(|refresh| (hash(&new.access_token), refresh));
        commit.put(REFRESH_TOKENS, REFRESH_TOKENS.key().raw(&old), &row);
        commit.put_raw(
            Packed::key(Keyspace::SUPERSEDES).raw(&hash(&new.access_token)),
            Packed::new().raw(&old),
        );
        if let Some(new_refresh) = new_refresh {
            commit.put_raw(
                Packed::key(Keyspace::SUPERSEDES).raw(&new_refresh),
                Packed::new().raw(&old),
            );
        }
        self.store.commit(commit).await?;
        Ok(new)
    }

    /// Ends what a session's tokens superseded, now that one of them is used.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn first_use(&self, session: &Session) -> ApiResult<()> {
        if !session.supersedes.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let _refreshing = self.refreshing.lock().await;
        let mut commit = Commit::new();
        self.end_superseded(&mut commit, session.user, &session.device, session.token)?;
        if let Some(refresh) = session.refresh {
            commit.delete(Packed::key(Keyspace::SUPERSEDES).raw(&refresh));
        }
        // The caller is answered only when the old tokens work no more.
        self.store.commit(commit).await?;
        Ok(())
    }

    /// Ends the refresh token that `token` supersedes, and the access token given with it.
    fn end_superseded(
        &self,
        commit: &mut Commit,
        user: UserNum,
        device: &DeviceId,
        token: TokenHash,
    ) -> ApiResult<()> {
        let key = || Packed::key(Keyspace::SUPERSEDES).raw(&token);
        let Some(old) = self.store.get_raw(key())? else {
            return Ok(());
        };
        commit.delete(key());
        let Ok(old) = TokenHash::try_from(&*old) else {
            return Ok(());
        };
        self.drop_token(commit, user, device, Keyspace::REFRESH_TOKEN, old);
        for token in self.tokens_of(user, device, Keyspace::TOKEN)? {
            let row = self.store.get(TOKENS, TOKENS.key().raw(&token))?;
            if row.is_some_and(|row| row.refresh == Some(old)) {
                self.drop_token(commit, user, device, Keyspace::TOKEN, token);
            }
        }
        Ok(())
    }

    /// Ends every token of a device.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn end_session(
        &self,
        commit: &mut Commit,
        user: UserNum,
        device: &DeviceId,
    ) -> ApiResult<()> {
        for kind in [Keyspace::TOKEN, Keyspace::REFRESH_TOKEN] {
            for token in self.tokens_of(user, device, kind)? {
                self.drop_token(commit, user, device, kind, token);
            }
        }
        Ok(())
    }

    fn tokens_of(
        &self,
        user: UserNum,
        device: &DeviceId,
        kind: Keyspace,
    ) -> ApiResult<Vec<TokenHash>> {
        let prefix = Packed::key(Keyspace::DEVICE_TOKEN)
            .user(user)
            .text(device.as_str())
            .u8(kind.0);
        let mut tokens = Vec::new();
        self.store.visit(&prefix, Direction::Ascending, |key, _| {
            let mut parts = Unpack::key(key);
            let hash = parts
                .user()
                .and_then(|_| parts.text())
                .and_then(|_| parts.u8())
                .and_then(|_| parts.hash());
            tokens.extend(hash);
            Ok(true)
        })?;
        Ok(tokens)
    }

    fn drop_token(
        &self,
        commit: &mut Commit,
        user: UserNum,
        device: &DeviceId,
        kind: Keyspace,
        token: TokenHash,
    ) {
        commit.delete(Packed::key(kind).raw(&token));
        commit.delete(Packed::key(Keyspace::SUPERSEDES).raw(&token));
        commit.delete(device_token_key(user, device, kind, token));
        let until_published = Arc::new(());
        let mut ending = self.ending.lock();
        ending.0 += 1;
        ending.1.push(Arc::downgrade(&until_published));
        commit.hold(until_published);
        self.sessions.remove(&token);
    }
}
