//! Section `[limits]`: sizes, times, quotas, and how often one user or one address may do something.
//!
//! Not here, because it is the protocol's and not the admin's: the 65,536 bytes of an event.

use serde::{Deserialize, Serialize};

use super::{
    MB,
    values::{Between, Frequency, optional, plain},
};

/// Sizes, times, quotas and rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The body of a request that is not an upload. Default: 8 MB.
    #[serde(deserialize_with = "plain::<Between<1, 1024>, _, _>")]
    pub request_body_mb: u64,
    /// One uploaded file. Default: 100 MB.
    #[serde(deserialize_with = "plain::<Between<1, 1_048_576>, _, _>")]
    pub upload_mb: u64,
    /// All files of one user. Default: none, no quota.
    #[serde(deserialize_with = "optional::<Between<1, 1_073_741_824>, _, _>")]
    pub uploads_per_user_mb: Option<u64>,
    /// All files of all users. Default: none, no quota.
    #[serde(deserialize_with = "optional::<Between<1, 1_073_741_824>, _, _>")]
    pub uploads_total_mb: Option<u64>,
    /// How long a `/sync` without news waits, whatever the client asks for. Default: 120 s.
    #[serde(deserialize_with = "plain::<Between<1, 3600>, _, _>")]
    pub sync_wait_seconds_max: u64,
    /// How long the body of a request may take to arrive. Default: 30 s.
    #[serde(deserialize_with = "plain::<Between<1, 3600>, _, _>")]
    pub body_read_seconds_max: u64,
    /// How long an uploaded file may take to arrive. Default: 900 s.
    #[serde(deserialize_with = "plain::<Between<1, 86_400>, _, _>")]
    pub upload_read_seconds_max: u64,
    /// Open connections on all listeners together. Default: 8192.
    #[serde(deserialize_with = "plain::<Between<1, 1_048_576>, _, _>")]
    pub connections_max: usize,
    /// `[limits.per_user]`: rates of one user.
    pub per_user: PerUser,
    /// `[limits.per_address]`: rates of one IP address.
    pub per_address: PerAddress,
}

impl Limits {
    /// The body of a request that is not an upload, in bytes.
    pub fn request_body_bytes(&self) -> u64 {
        self.request_body_mb * MB
    }

    /// One uploaded file, in bytes.
    pub fn upload_bytes(&self) -> u64 {
        self.upload_mb * MB
    }

    /// All files of one user, in bytes; `None` for no quota.
    pub fn uploads_per_user_bytes(&self) -> Option<u64> {
        self.uploads_per_user_mb.map(|mb| mb * MB)
    }

    /// All files of all users, in bytes; `None` for no quota.
    pub fn uploads_total_bytes(&self) -> Option<u64> {
        self.uploads_total_mb.map(|mb| mb * MB)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body_mb: 8,
            upload_mb: 100,
            uploads_per_user_mb: None,
            uploads_total_mb: None,
            sync_wait_seconds_max: 120,
            body_read_seconds_max: 30,
            upload_read_seconds_max: 900,
            connections_max: 8192,
            per_user: PerUser::default(),
            per_address: PerAddress::default(),
        }
    }
}

/// How often something may happen: `burst` times at once, and from then on `per_second` times a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How many times a second in the long run.
    #[serde(deserialize_with = "plain::<Frequency, _, _>")]
    pub per_second: f64,
    /// How many times at once, after a rest.
    #[serde(deserialize_with = "plain::<Between<1, 1_000_000>, _, _>")]
    pub burst: u32,
}

impl Rate {
    const fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second, burst }
    }
}

/// What one user may do how often, on all devices together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerUser {
    /// Events of every kind sent to rooms. Default: 5 per second, burst 50.
    pub messages: Rate,
    /// Joining rooms, and knocking. Default: 1 per second, burst 100: a space with all its rooms at once.
    pub joins: Rate,
    /// Inviting people. Default: 0.3 per second, burst 30.
    pub invites: Rate,
    /// Creating and upgrading rooms. Default: 0.1 per second, burst 20.
    pub room_creations: Rate,
    /// Uploading files. Default: 1 per second, burst 30.
    pub uploads: Rate,
    /// Failed logins, and other wrong passwords, for this account from anywhere. Default: 0.1 per second, burst 10.
    pub failed_logins: Rate,
    /// Searching messages, users and rooms. Default: 1 per second, burst 20.
    pub searches: Rate,
    /// Asking for URL previews. Default: 2 per second, burst 30.
    pub url_previews: Rate,
    /// Changing the profile, which reaches every room of the user. Default: 0.2 per second, burst 10.
    pub profile_changes: Rate,
    /// Reporting events, rooms and users. Default: 0.1 per second, burst 10.
    pub reports: Rate,
    /// Making, restarting and cancelling delayed events. Default: 1 per second, burst 20.
    pub delayed_events: Rate,
}

impl Default for PerUser {
    fn default() -> Self {
        Self {
            messages: Rate::new(5.0, 50),
            joins: Rate::new(1.0, 100),
            invites: Rate::new(0.3, 30),
            room_creations: Rate::new(0.1, 20),
            uploads: Rate::new(1.0, 30),
            failed_logins: Rate::new(0.1, 10),
            searches: Rate::new(1.0, 20),
            url_previews: Rate::new(2.0, 30),
            profile_changes: Rate::new(0.2, 10),
            reports: Rate::new(0.1, 10),
            delayed_events: Rate::new(1.0, 20),
        }
    }
}

/// What may come from one IP address how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerAddress {
    /// Logins, whether they succeed or not. Default: 0.5 per second, burst 20.
    pub logins: Rate,
    /// Registrations, and asking whether a name is free. Default: 0.1 per second, burst 10.
    pub registrations: Rate,
    /// Everything else that works without an access token. Default: 20 per second, burst 200.
    pub anonymous_requests: Rate,
}

impl Default for PerAddress {
    fn default() -> Self {
        Self {
            logins: Rate::new(0.5, 20),
            registrations: Rate::new(0.1, 10),
            anonymous_requests: Rate::new(20.0, 200),
        }
    }
}
