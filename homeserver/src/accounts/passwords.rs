//! Password hashes: Argon2id in PHC form.

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
};

use crate::config::HashCost;

/// Hashes a password. Takes tens of milliseconds: call it through `seams::heavy`.
///
/// `salt` is 16 random bytes.
pub fn hash(password: &str, salt: [u8; 16], cost: HashCost) -> String {
    hasher(cost)
        .hash_password_with_salt(password.as_bytes(), &salt)
        .expect(
            "the configuration allows only costs that Argon2 takes, and the salt is long enough",
        )
        .to_string()
}

/// Whether a password is the one that was hashed. As slow as [`hash`].
pub fn verify(password: &str, hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        return false;
    };
    Argon2::default()
        .verify_password(password.as_bytes(), &hash)
        .is_ok()
}

fn hasher(cost: HashCost) -> Argon2<'static> {
    let params = Params::new(cost.memory_kib, cost.passes, 1, None)
        .expect("the configuration allows only costs that Argon2 takes");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}
