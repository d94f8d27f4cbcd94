//! Sections `[registration]`, `[passwords]` and `[sessions]`: getting an account, and staying logged in.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{Between, FilePath, Secret, optional, plain};

/// How people get accounts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Who may register. Default: nobody; in development: this machine.
    pub mode: RegistrationMode,
    /// Whether people may look around as guests, without an account. Default: no.
    pub guests: bool,
    /// Lets admin tools that know it create accounts (`/_synapse/admin/v1/register`). Default: none, they cannot.
    pub shared_secret: Option<Secret>,
    /// A file with this secret; it is in `shared_secret` once loaded.
    #[serde(deserialize_with = "optional::<FilePath, _, _>")]
    pub shared_secret_file: Option<PathBuf>,
}

/// Who may register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistrationMode {
    /// Nobody; admins create the accounts.
    #[default]
    Closed,
    /// Everyone, without any proof.
    Open,
    /// Whoever has a registration token; admins make these.
    Token,
    /// Everyone whose client runs on this machine. Behind a proxy this is decided by the forwarded address.
    OpenLoopback,
}

/// What passwords must be like, and how they are hashed: Argon2id, one lane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passwords {
    /// Characters a password must have. Default: 8.
    #[serde(deserialize_with = "plain::<Between<1, 128>, _, _>")]
    pub length_min: usize,
    /// Memory for each hash. Default: 19 MB.
    #[serde(deserialize_with = "plain::<Between<7, 1024>, _, _>")]
    pub hash_memory_mb: u32,
    /// Passes over this memory. Default: 2. Together they must reach [`Passwords::MB_PASSES_MIN`].
    #[serde(deserialize_with = "plain::<Between<1, 100>, _, _>")]
    pub hash_passes: u32,
}

impl Passwords {
    /// The least product of memory and passes: that of the weakest setting in OWASP's Password Storage Cheat Sheet
    /// (7 MB, 5 passes). What hashes cheaper is guessed cheaper, should the hashes ever get out.
    pub const MB_PASSES_MIN: u32 = 35;

    pub(super) fn hash_cost(&self) -> HashCost {
        HashCost {
            memory_kib: self.hash_memory_mb * 1024,
            passes: self.hash_passes,
        }
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            length_min: 8,
            hash_memory_mb: 19,
            hash_passes: 2,
        }
    }
}

/// What one password hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl HashCost {
    /// The least that Argon2 allows with one lane; takes microseconds and protects nothing.
    pub const CHEAPEST: Self = Self {
        memory_kib: 8,
        passes: 1,
    };
}

/// How long tokens live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Access tokens of sessions that can refresh them; those of other sessions live until logout. Default: 300 s.
    #[serde(deserialize_with = "plain::<Between<10, { 10 * YEAR_SECONDS }>, _, _>")]
    pub access_token_lifetime_seconds: u64,
    /// Refresh tokens that are not used. Default: none, they live until logout.
    #[serde(deserialize_with = "optional::<Between<60, { 10 * YEAR_SECONDS }>, _, _>")]
    pub refresh_token_lifetime_seconds: Option<u64>,
    /// The single-use token by which a logged-in device logs in another one. Default: 120 s.
    #[serde(deserialize_with = "plain::<Between<10, 3600>, _, _>")]
    pub login_token_lifetime_seconds: u64,
    /// The time to complete an action that asks for the password again. Default: 900 s.
    #[serde(deserialize_with = "plain::<Between<60, 86_400>, _, _>")]
    pub interactive_auth_lifetime_seconds: u64,
    /// `OpenID` tokens, by which users show other services who they are. Default: 3600 s.
    #[serde(deserialize_with = "plain::<Between<60, 86_400>, _, _>")]
    pub openid_token_lifetime_seconds: u64,
}

const YEAR_SECONDS: u64 = 365 * 86_400;

impl Default for Sessions {
    fn default() -> Self {
        Self {
            access_token_lifetime_seconds: 300,
            refresh_token_lifetime_seconds: None,
            login_token_lifetime_seconds: 120,
            interactive_auth_lifetime_seconds: 900,
            openid_token_lifetime_seconds: 3600,
        }
    }
}
