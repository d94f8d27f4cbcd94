//! Rate limits: so much of a kind, by user or by address.
//!
//! The generic cell rate algorithm: one number for each (kind, who), the time at which all of the
//! burst would be free again. Spec: client-server API, "Rate limiting".

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use store::keys::UserNum;

use crate::{
    config::Rate,
    error::{ApiError, ApiResult},
    server::App,
};

/// How many (kind, who) are remembered at most; those with all of their burst free go first.
const ENTRIES_MAX: usize = 100_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doing {
    /// By user: sending an event.
    Message,
    /// By user: joining or knocking on a room.
    Join,
    /// By user: inviting.
    Invite,
    /// By user: creating a room.
    CreateRoom,
    /// By user: uploading media.
    Upload,
    /// By user: making the server fetch a page for a preview.
    Preview,
    /// By user: searching rooms, users or messages.
    Search,
    /// By user: changing the profile.
    Profile,
    /// By user: reporting content.
    Report,
    /// By user: scheduling or restarting a delayed event.
    DelayedEvent,
    /// By user: giving a wrong password.
    FailedLogin,
    /// By address: trying to log in.
    Login,
    /// By address: registering.
    Register,
    /// By address: anything else without an access token.
    Anonymous,
}

fn rate(limits: &crate::config::Limits, doing: Doing) -> Rate {
    let (user, address) = (&limits.per_user, &limits.per_address);
    match doing {
        Doing::Message => user.messages,
        Doing::Join => user.joins,
        Doing::Invite => user.invites,
        Doing::CreateRoom => user.room_creations,
        Doing::Upload => user.uploads,
        Doing::Preview => user.url_previews,
        Doing::Search => user.searches,
        Doing::Profile => user.profile_changes,
        Doing::Report => user.reports,
        Doing::DelayedEvent => user.delayed_events,
        Doing::FailedLogin => user.failed_logins,
        Doing::Login => address.logins,
        Doing::Register => address.registrations,
        Doing::Anonymous => address.anonymous_requests,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    User(UserNum),
    Address(IpAddr),
}

/// When each (kind, who) has all of its burst again, in microseconds since the epoch.
#[derive(Debug, Default)]
pub struct Limits {
    free_at_us: Mutex<BTreeMap<(Doing, Who), u64>>,
    refused: Mutex<BTreeMap<Doing, u64>>,
}

impl Limits {
    /// That a user may do `doing` once more now.
    ///
    /// # Errors
    /// `M_LIMIT_EXCEEDED`, with the time after which it would pass.
    pub fn user(&self, app: &App, doing: Doing, user: UserNum) -> ApiResult<()> {
        self.check(app, doing, Who::User(user))
    }

    /// That `doing` may be done once more now from an address. An IPv6 address counts by its /64.
    ///
    /// # Errors
    /// As [`Limits::user`].
    pub fn address(&self, app: &App, doing: Doing, address: IpAddr) -> ApiResult<()> {
        let network = match address {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            },
            v4 @ IpAddr::V4(_) => v4,
        };
        self.check(app, doing, Who::Address(network))
    }

    fn check(&self, app: &App, doing: Doing, who: Who) -> ApiResult<()> {
        if app.config.testing.rate_limits_off {
            return Ok(());
        }
        let rate = rate(&app.config.limits, doing);
        let now_us = app.clock.now_ms() * 1_000;
        let mut entries = self
            .free_at_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|_, free_at| *free_at > now_us);
            while entries.len() >= ENTRIES_MAX {
                entries.pop_first();
            }
        }
        let free_at = entries.entry((doing, who)).or_insert(0);
        match next(*free_at, now_us, &rate) {
            Ok(next) => {
                *free_at = next;
                Ok(())
            }
            Err(retry_after_ms) => {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused.entry(doing).or_default() += 1;
                Err(ApiError::limit_exceeded(retry_after_ms))
            }
        }
    }

    /// How often each kind was refused.
    pub fn refused(&self) -> Vec<(Doing, u64)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused
            .iter()
            .map(|(doing, count)| (*doing, *count))
            .collect()
    }
}

/// The new time at which all of the burst is free, or after how many milliseconds to try again.
fn next(free_at_us: u64, now_us: u64, rate: &Rate) -> Result<u64, u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are checked to be in 0.0001..=10,000"
    )]
    let cost_us = (1_000_000.0 / rate.per_second) as u64;
    let free_at = free_at_us.max(now_us) + cost_us;
    let allowed_until = now_us + cost_us * u64::from(rate.burst);
    if free_at <= allowed_until {
        Ok(free_at)
    } else {
        Err((free_at - allowed_until).div_ceil(1_000).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let rate = Rate {
            per_second: 2.0,
            burst: 3,
        };
        let mut free_at = 0;
        for _ in 0..3 {
            free_at = next(free_at, 1_000_000, &rate).unwrap();
        }
        assert_eq!(next(free_at, 1_000_000, &rate), Err(500));
        assert_eq!(next(free_at, 1_499_000, &rate), Err(1));
        free_at = next(free_at, 1_500_000, &rate).unwrap();
        assert_eq!(next(free_at, 1_500_000, &rate), Err(500));
    }

    #[test]
    fn a_pause_gives_back_no_more_than_the_burst() {
        let rate = Rate {
            per_second: 1.0,
            burst: 2,
        };
        let later = 1_000_000_000;
        let free_at = next(next(0, later, &rate).unwrap(), later, &rate).unwrap();
        assert_eq!(next(free_at, later, &rate), Err(1_000));
    }
}
