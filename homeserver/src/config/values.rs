//! The smallest parts of the configuration: single values that have rules of their own.
//!
//! [`Secret`] and [`Network`] are the types other modules see. The rest are checks: a field holds the plain type and
//! names its check as `deserialize_with = "plain::<Check, _, _>"`, so that the rule stands beside the field. Error
//! texts here are worded to follow "must be".

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use federation::wire::{keyring::is_ed25519, lenient_base64};
use ruma::{
    OwnedServerName, OwnedUserId, RoomVersionId, ServerName, UserId,
    serde::{Base64, base64::Standard},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::Error as _};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// What is shown in place of a secret.
pub(super) const MASK: &str = "********";

/// The name by which `read` knows a secret.
pub(super) const SECRET: &str = "Secret";

/// A secret file may be this large; what is larger is certainly the wrong file.
pub(super) const SECRET_BYTES_MAX: u64 = 4096;

/// Text that must not be seen: masked when printed, and left out of errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret; `None` if it is empty, or the mask that a printed configuration has in its place.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty() && text != MASK).then(|| Self(text.to_owned()))
    }

    /// The secret itself: for comparing and signing, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Secret;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the secret itself as text, not empty and not the mask of a printed configuration")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                inner: D,
            ) -> Result<Secret, D::Error> {
                let text = String::deserialize(inner)?;
                Secret::new(&text)
                    .ok_or_else(|| D::Error::invalid_value(de::Unexpected::Other(MASK), &self))
            }
        }
        deserializer.deserialize_newtype_struct(SECRET, Visitor)
    }
}

/// A range of IP addresses: `10.0.0.0/8`, `::1/128`, or one address without a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads the usual notation.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// Whether `address` lies in this range. IPv4 addresses written as IPv6 (`::ffff:10.0.0.1`) count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let host_bits = 32 - u32::from(self.prefix);
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let host_bits = 128 - u32::from(self.prefix);
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "an IP address or a range such as \"10.0.0.0/8\" or \"fd00::/8\"";
        Self::parse(&text).ok_or_else(|| D::Error::custom(allowed))
    }
}

/// Reads a field through its check `C`.
pub(super) fn plain<'de, C, T, D>(deserializer: D) -> Result<T, D::Error>
where
    C: Deserialize<'de> + Into<T>,
    D: Deserializer<'de>,
{
    C::deserialize(deserializer).map(Into::into)
}

/// Reads a field that may be missing through its check `C`.
pub(super) fn optional<'de, C, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    C: Deserialize<'de> + Into<T>,
    D: Deserializer<'de>,
{
    Ok(Option::<C>::deserialize(deserializer)?.map(Into::into))
}

/// Reads a list, each item through the check `C`.
pub(super) fn list<'de, C, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    C: Deserialize<'de> + Into<T>,
    D: Deserializer<'de>,
{
    Ok(Vec::<C>::deserialize(deserializer)?
        .into_iter()
        .map(Into::into)
        .collect())
}

/// A whole number in a range, both ends allowed.
pub(super) struct Between<const MIN: u64, const MAX: u64>(u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Between<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> de::Visitor<'_> for Visitor<MIN, MAX> {
            type Value = Between<MIN, MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                u64::try_from(number)
                    .ok()
                    .filter(|number| (MIN..=MAX).contains(number))
                    .map(Between)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

impl<const MIN: u64, const MAX: u64> From<Between<MIN, MAX>> for u64 {
    fn from(number: Between<MIN, MAX>) -> Self {
        number.0
    }
}

impl<const MIN: u64, const MAX: u64> From<Between<MIN, MAX>> for u32 {
    fn from(number: Between<MIN, MAX>) -> Self {
        const { assert!(MAX <= u32::MAX as u64, "the range must fit the field") };
        Self::try_from(number.0).expect("the range fits")
    }
}

impl<const MIN: u64, const MAX: u64> From<Between<MIN, MAX>> for usize {
    fn from(number: Between<MIN, MAX>) -> Self {
        const { assert!(MAX <= u32::MAX as u64, "the range must fit the field") };
        Self::try_from(number.0).expect("the range fits")
    }
}

/// How often something may happen in a second.
pub(super) struct Frequency(f64);

impl<'de> Deserialize<'de> for Frequency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Frequency;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(
                    "a number from 0.0001 to 1000000, such as 0.5 for one every two seconds",
                )
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                if (0.0001..=1_000_000.0).contains(&number) {
                    Ok(Frequency(number))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(number), &self))
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                match i32::try_from(number) {
                    Ok(number) => self.visit_f64(number.into()),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }
        }
        deserializer.deserialize_f64(Visitor)
    }
}

impl From<Frequency> for f64 {
    fn from(frequency: Frequency) -> Self {
        frequency.0
    }
}

/// Checks that read text: the plain type, what is allowed, and the function that reads it.
macro_rules! text_checks {
    ($($(#[$doc:meta])* $check:ident($plain:ty) = $allowed:literal, $read:expr;)*) => {$(
        $(#[$doc])*
        #[derive(PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $check($plain);

        impl<'de> Deserialize<'de> for $check {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let read: fn(&str) -> Option<$plain> = $read;
                read(&text).map(Self).ok_or_else(|| D::Error::custom($allowed))
            }
        }

        impl From<$check> for $plain {
            fn from(check: $check) -> Self {
                check.0
            }
        }
    )*};
}

text_checks! {
    /// The name of a Matrix server.
    Server(OwnedServerName) = "a server name such as \"example.org\" or \"example.org:8448\", without https://",
        |text| ServerName::parse(text).ok();
    /// An IP address and a port.
    Address(SocketAddr) = "an IP address with a port, such as \"127.0.0.1:8008\" or \"[::]:8448\"",
        |text| text.parse().ok();
    /// The base of other URLs; a slash at its end is dropped.
    BaseUrl(String) = "a URL such as \"https://matrix.example.org\", without ? and #", base_url;
    /// How to reach a person.
    ContactUri(String) = "a link such as \"mailto:admin@example.org\" or \"https://example.org/contact\"",
        |text| url(text, &["mailto", "https", "http", "matrix"]);
    /// A page to read.
    PageUrl(String) = "a URL such as \"https://example.org/help\"", |text| url(text, &["https", "http"]);
    /// An e-mail address. Only what is certainly none is refused.
    Email(String) = "an e-mail address such as \"admin@example.org\"", email;
    /// A Matrix user.
    User(OwnedUserId) = "a Matrix user ID such as \"@admin:example.org\"", |text| UserId::parse(text).ok();
    /// A room version this server can create.
    Version(RoomVersionId) = "a room version from \"6\" to \"12\"", room_version;
    /// A file or a directory.
    FilePath(PathBuf) = "a path, not empty", |text| (!text.is_empty()).then(|| text.into());
    /// A name that people read.
    Label(String) = "a text of 1 to 255 characters without line breaks", label;
    /// What is logged.
    LogFilter(String) = "a level (error, warn, info, debug, trace) or a list such as \"info,homeserver::sync=debug\"",
        log_filter;
    /// An address of a TURN or STUN server.
    TurnUri(String) = "an address such as \"turn:turn.example.org:3478?transport=udp\" or \"turns:…\"", turn_uri;
    /// Server names, without their ports.
    ServerPattern(String) = "a server name without a port, in which * stands for any text and ? for any character, \
        such as \"*.example.org\"", server_pattern;
    /// The ID of a server's signing key.
    SigningKeyId(String) = "the ID of a signing key, such as \"ed25519:a_1\"",
        |text| is_ed25519(text).then(|| text.to_owned());
    /// A public ed25519 key.
    PublicKey(String) = "a public ed25519 key in base64", public_key;
    /// One host, or a domain and all below it.
    HostPattern(String) = "a host such as \"example.org\", or \"*.example.org\" for all hosts below it", host_pattern;
}

fn url(text: &str, schemes: &[&str]) -> Option<String> {
    let url = reqwest::Url::parse(text).ok()?;
    schemes.contains(&url.scheme()).then(|| text.to_owned())
}

fn base_url(text: &str) -> Option<String> {
    let text = url(text, &["https", "http"])?;
    (!text.contains(['?', '#'])).then(|| text.trim_end_matches('/').to_owned())
}

fn email(text: &str) -> Option<String> {
    let (local, domain) = text.rsplit_once('@')?;
    let spaced = text.contains(|char: char| char.is_whitespace() || char.is_control());
    (!local.is_empty() && !domain.is_empty() && !spaced).then(|| text.to_owned())
}

/// Room versions 1 to 5 have rules of their own that this server does not know.
fn room_version(text: &str) -> Option<RoomVersionId> {
    matches!(text, "6" | "7" | "8" | "9" | "10" | "11" | "12")
        .then(|| RoomVersionId::try_from(text).ok())?
}

fn label(text: &str) -> Option<String> {
    let length = text.chars().count();
    ((1..=255).contains(&length) && !text.contains(char::is_control)).then(|| text.to_owned())
}

fn log_filter(text: &str) -> Option<String> {
    // To the parser a word alone is a module, so `level = "loud"` would silence everything else.
    let bare = |part: &&str| {
        part.chars()
            .all(|char| char.is_alphanumeric() || char == '_')
    };
    let levels = |part: &str| part.parse::<LevelFilter>().is_ok();
    let meant = text.split(',').map(str::trim).filter(bare).all(levels);
    let parsed: Result<EnvFilter, _> = EnvFilter::builder().parse(text);
    (!text.trim().is_empty() && meant && parsed.is_ok()).then(|| text.to_owned())
}

fn turn_uri(text: &str) -> Option<String> {
    let (scheme, host) = text.split_once(':')?;
    let known = matches!(scheme, "turn" | "turns" | "stun" | "stuns");
    (known && !host.is_empty() && !host.starts_with('/')).then(|| text.to_owned())
}

fn host_pattern(text: &str) -> Option<String> {
    let host = text.strip_prefix("*.").unwrap_or(text);
    let allowed = |char: char| char.is_ascii_alphanumeric() || ".-:[]".contains(char);
    (!host.is_empty() && host.chars().all(allowed)).then(|| text.to_ascii_lowercase())
}

fn public_key(text: &str) -> Option<String> {
    let bytes = lenient_base64(text)?;
    (bytes.len() == 32).then(|| Base64::<Standard, _>::new(bytes).encode())
}

fn server_pattern(text: &str) -> Option<String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || ".-:[]*?".contains(char);
    // A name is compared without its port, so a pattern with one would never match.
    let ported = text.contains(':') && !(text.starts_with('[') && text.ends_with(']'));
    (!text.is_empty() && !ported && text.chars().all(allowed)).then(|| text.to_ascii_lowercase())
}
