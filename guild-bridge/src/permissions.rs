//! Who may do what in a channel: the published algorithm of guilds, as one pure function.
//!
//! What Matrix servers enforce is compiled from its answers; nothing here knows of Matrix.

use std::ops::{BitAnd, BitOr, Not};

use serde::{Deserialize, Serialize};

/// A set of permissions, one bit each. The bits are those of exported guilds, so that an import
/// keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Permissions(u64);

impl Permissions {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Every permission, also those without a name here.
    pub const ALL: Self = Self(u64::MAX);
    /// Has all others, whatever a channel says.
    pub const ADMINISTRATOR: Self = Self(1 << 3);
    /// See the channel.
    pub const VIEW_CHANNEL: Self = Self(1 << 10);
    /// Send messages.
    pub const SEND_MESSAGES: Self = Self(1 << 11);
    /// Remove messages of others.
    pub const MANAGE_MESSAGES: Self = Self(1 << 13);
    /// Read what was said before.
    pub const READ_MESSAGE_HISTORY: Self = Self(1 << 16);

    /// From bits, as an exported guild has them.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Permissions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Permissions {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Permissions {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// What a channel changes for everyone, a role or a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overwrite {
    /// Granted here; wins over `deny`.
    pub allow: Permissions,
    /// Taken away here.
    pub deny: Permissions,
}

impl Overwrite {
    fn apply(self, permissions: Permissions) -> Permissions {
        (permissions & !self.deny) | self.allow
    }
}

/// Everything that decides what a member may do in a channel.
#[derive(Clone, Debug, Default)]
pub struct Grants<'a> {
    /// Whether the member owns the guild.
    pub owner: bool,
    /// Whether the member is timed out.
    pub timed_out: bool,
    /// What everyone in the guild may do.
    pub everyone: Permissions,
    /// What each role of the member adds.
    pub roles: &'a [Permissions],
    /// What the channel changes for everyone.
    pub everyone_overwrite: Overwrite,
    /// What the channel changes for each role of the member.
    pub role_overwrites: &'a [Overwrite],
    /// What the channel changes for the member.
    pub member_overwrite: Overwrite,
}

/// What a member may do in a channel.
///
/// Everyone's permissions and those of the member's roles; the owner and administrators have all;
/// then the channel's overwrites: everyone's, those of the roles together, the member's own. A
/// timeout leaves only seeing the channel and reading its history, except to administrators.
pub fn effective(grants: &Grants<'_>) -> Permissions {
    let base = grants
        .roles
        .iter()
        .fold(grants.everyone, |sum, role| sum | *role);
    if grants.owner || base.contains(Permissions::ADMINISTRATOR) {
        return Permissions::ALL;
    }
    let roles = grants
        .role_overwrites
        .iter()
        .fold(Overwrite::default(), |sum, role| Overwrite {
            allow: sum.allow | role.allow,
            deny: sum.deny | role.deny,
        });
    let here = grants.everyone_overwrite.apply(base);
    let here = grants.member_overwrite.apply(roles.apply(here));
    if grants.timed_out {
        return here & (Permissions::VIEW_CHANNEL | Permissions::READ_MESSAGE_HISTORY);
    }
    here
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: Permissions = Permissions::VIEW_CHANNEL;
    const SEND: Permissions = Permissions::SEND_MESSAGES;

    fn deny(deny: Permissions) -> Overwrite {
        Overwrite {
            deny,
            ..Overwrite::default()
        }
    }

    fn allow(allow: Permissions) -> Overwrite {
        Overwrite {
            allow,
            ..Overwrite::default()
        }
    }

    #[test]
    fn roles_add_to_what_everyone_may() {
        let grants = Grants {
            everyone: VIEW,
            roles: &[SEND],
            ..Grants::default()
        };
        assert_eq!(effective(&grants), VIEW | SEND);
    }

    #[test]
    fn a_later_overwrite_wins_over_an_earlier_one() {
        let mut grants = Grants {
            everyone: VIEW | SEND,
            everyone_overwrite: deny(SEND),
            ..Grants::default()
        };
        assert_eq!(effective(&grants), VIEW);
        grants.role_overwrites = &[
            Overwrite {
                allow: Permissions::NONE,
                deny: SEND,
            },
            Overwrite {
                allow: SEND,
                deny: Permissions::NONE,
            },
        ];
        assert_eq!(effective(&grants), VIEW | SEND, "among roles an allow wins");
        grants.member_overwrite = deny(SEND);
        assert_eq!(effective(&grants), VIEW);
    }

    #[test]
    fn no_channel_takes_anything_from_an_administrator_or_the_owner() {
        let overwrite = deny(Permissions::ALL);
        let admin = Grants {
            roles: &[Permissions::ADMINISTRATOR],
            member_overwrite: overwrite,
            timed_out: true,
            ..Grants::default()
        };
        assert_eq!(effective(&admin), Permissions::ALL);
        let owner = Grants {
            owner: true,
            member_overwrite: overwrite,
            ..Grants::default()
        };
        assert_eq!(effective(&owner), Permissions::ALL);
    }

    #[test]
    fn a_timeout_leaves_reading() {
        let grants = Grants {
            everyone: VIEW | SEND,
            member_overwrite: allow(
                Permissions::READ_MESSAGE_HISTORY | Permissions::MANAGE_MESSAGES,
            ),
            timed_out: true,
            ..Grants::default()
        };
        assert_eq!(effective(&grants), VIEW | Permissions::READ_MESSAGE_HISTORY);
    }
}
