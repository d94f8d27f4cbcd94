//! The whole schema on one page: every keyspace, its key, its value, and how keys are packed.
//!
//! A key is one keyspace byte, then fixed-width big-endian numbers and terminated strings, so that
//! keys sort by their parts. Rooms and users stand in keys by short numbers ([`RoomNum`],
//! [`UserNum`]), events by the 32 bytes of their reference hash.

use std::marker::PhantomData;

use ruma::EventId;
use serde::{Serialize, de::DeserializeOwned};

/// Where the log is: one number for every change that readers learn of, without gaps.
pub type Position = u64;

/// Short number of a room, given on first sight and never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
pub struct RoomNum(pub u64);

/// Short number of a user, given on first sight and never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
pub struct UserNum(pub u64);

/// Number of a state of a room; state 0 is the empty one before the create event.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
pub struct StateId(pub u64);

/// A kind of rows: the first byte of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyspace(pub u8);

macro_rules! keyspaces {
    ($($(#[doc = $doc:literal])+ $name:ident = $byte:literal;)+) => {
        impl Keyspace {
            $($(#[doc = $doc])+ pub const $name: Self = Self($byte);)+

            /// Every keyspace with its name.
            pub const ALL: &'static [(&'static str, Self)] = &[$((stringify!($name), Self($byte))),+];
        }
    };
}

keyspaces! {
    /// name → value: schema number, server key, next numbers.
    META = 0x01;
    /// room ID → room number.
    ROOM_NUM = 0x02;
    /// room number → room ID.
    ROOM_ID = 0x03;
    /// user ID → user number.
    USER_NUM = 0x04;
    /// user number → user ID.
    USER_ID = 0x05;
    /// position → log entry.
    LOG = 0x06;
    /// reader name → position it has dealt with.
    CURSOR = 0x07;

    /// room, order → state ID before, flags, the event's JSON. Live orders are positions;
    /// backfilled ones lie below zero and shrink; those that fill a gap, below 2^62 under zero.
    TIMELINE = 0x10;
    /// event hash → room, order.
    EVENT = 0x11;
    /// room → `RoomRow`: version, extremities, current state.
    ROOM = 0x12;
    /// room, state ID → parent state and what differs from it.
    STATE = 0x13;
    /// room, position → what that position changed in the current state.
    STATE_CHANGE = 0x14;
    /// user, room → `MembershipRow`.
    USER_ROOM = 0x15;
    /// room, event hash of the target, order of the relating event → `RelationRow`.
    RELATION = 0x16;
    /// room, order of a reply in a thread → event ID of the thread's root.
    THREAD = 0x17;
    /// user, device, path and txn ID hashed → event ID.
    TXN = 0x18;
    /// room, event hash of the target, event hash of a redaction that came before it → event ID of the redaction.
    REDACTED = 0x19;
    /// alias → `AliasRow`.
    ALIAS = 0x1a;
    /// room, alias → nothing.
    ROOM_ALIAS = 0x1b;
    /// room → nothing: the room is in the published directory.
    PUBLISHED = 0x1c;
    /// room, user → membership.
    MEMBER = 0x1e;
    /// room, milliseconds, order → nothing: live events by their time.
    EVENT_TIME = 0x1d;
    /// event hash → header, the event's JSON: events outside every timeline.
    ASIDE = 0x1f;
    /// user, room → `OutsideRow`: an invite or a knock, of a room that this server is not in.
    OUTSIDE = 0x0d;
    /// room, position → `GapRow`: where events are missing in a timeline.
    GAP = 0x0e;
    /// room → number of the state that got one last, if that is not the room's own.
    LAST_STATE = 0x0f;

    /// user → `UserRow`.
    USER = 0x20;
    /// user, device → `DeviceRow`.
    DEVICE = 0x21;
    /// hash of an access token → `TokenRow`.
    TOKEN = 0x22;
    /// hash of a refresh token → `RefreshRow`.
    REFRESH_TOKEN = 0x23;
    /// user, device, hash of a token → which table: what to delete with the device.
    DEVICE_TOKEN = 0x24;
    /// hash of a token → hash of the refresh token that it makes useless once it is used.
    SUPERSEDES = 0x2d;
    /// hash of a one-time login token → `LoginTokenRow`.
    LOGIN_TOKEN = 0x25;
    /// user → profile fields.
    PROFILE = 0x26;
    /// user, room or 0, type → position, content.
    ACCOUNT_DATA = 0x27;
    /// user, position → room or 0, type.
    ACCOUNT_DATA_CHANGE = 0x28;
    /// user, filter number → filter.
    FILTER = 0x29;
    /// registration token → `RegistrationTokenRow`.
    REGISTRATION_TOKEN = 0x2a;
    /// hash of an `OpenID` token → `OpenIdRow`.
    OPENID_TOKEN = 0x2b;
    /// user → `Upkeep`: what a change of an account has still to do in its rooms.
    UPKEEP = 0x2e;
    /// user → room with the notices of this server's admins.
    NOTICE_ROOM = 0x2f;
    /// report number → `ReportRow`.
    REPORT = 0x2c;

    /// room, user, receipt type and thread → `ReceiptRow`.
    RECEIPT = 0x30;
    /// room, position → user, receipt type and thread.
    RECEIPT_CHANGE = 0x31;
    /// user, room → `Found`: unread events, up to a position.
    UNREAD = 0x32;
    /// user, hash of app ID and push key → `PusherRow`.
    PUSHER = 0x33;
    /// hash of app ID and push key, user → nothing: who has a pusher for a device.
    PUSHER_KEY = 0x34;
    /// user, room, event hash of a thread's root → position, `Wish`.
    THREAD_SUBSCRIPTION = 0x35;
    /// user, position → room, event ID of the thread's root.
    THREAD_SUBSCRIPTION_CHANGE = 0x36;

    /// user, device → device keys.
    DEVICE_KEYS = 0x40;
    /// user, device, algorithm, upload order → one-time key.
    ONE_TIME_KEY = 0x41;
    /// user, device, algorithm → fallback key.
    FALLBACK_KEY = 0x42;
    /// user, usage → cross-signing key.
    CROSS_SIGNING_KEY = 0x43;
    /// signed user, signed key, signing user, signing key → signature.
    KEY_SIGNATURE = 0x44;
    /// position → user whose device list changed then, and who alone sees that or 0.
    DEVICE_LIST_CHANGE = 0x45;
    /// user, viewer or 0 → position of their row in `DEVICE_LIST_CHANGE`.
    DEVICE_LIST_POSITION = 0x46;
    /// user, device, position → to-device message.
    TO_DEVICE = 0x47;
    /// user, backup version → `BackupRow`.
    BACKUP = 0x48;
    /// user, backup version, room ID, session → backed-up key.
    BACKUP_KEY = 0x49;
    /// user → `DehydratedRow`.
    DEHYDRATED_DEVICE = 0x4a;

    /// media ID → `MediaRow`.
    MEDIA = 0x50;
    /// media ID, size and method → `ThumbnailRow`.
    THUMBNAIL = 0x51;
    /// content hash, server name and media ID, or the hash of an image and a size → nothing: who uses a file that was
    /// fetched from another server, or made of one.
    MEDIA_FILE = 0x52;
    /// URL hashed → `PreviewRow`.
    URL_PREVIEW = 0x53;

    /// user, or 0 for all, or 2^64 - 1 for what was fetched from other servers → bytes.
    MEDIA_USE = 0x54;
    /// server name, media ID → `RemoteRow`: media of other servers.
    REMOTE_MEDIA = 0x56;
    /// day, server name, media ID → nothing: when media of other servers were asked for last.
    REMOTE_MEDIA_USED = 0x57;
    /// user, media ID → milliseconds: announced uploads that have not arrived.
    MEDIA_PENDING = 0x55;

    /// delay ID → `DelayedRow`.
    DELAYED = 0x60;
    /// milliseconds, delay ID → nothing: when to send.
    DELAYED_DUE = 0x61;
    /// user, delay ID → nothing.
    DELAYED_USER = 0x63;
    /// hash of room, type and state key, delay ID → nothing.
    DELAYED_STATE = 0x64;
    /// user, hash of device, room and txn ID → delay ID.
    DELAYED_TXN = 0x65;
    /// application service → its position and transaction number; with a number: a piece of the
    /// transaction that it has not taken yet.
    APPSERVICE = 0x62;

    /// room, word, order → nothing: which events have a word.
    WORD = 0x70;
    /// room, order → the words of the event in `WORD`.
    EVENT_WORDS = 0x71;

    /// server → its signing keys, and its last answer about them.
    SERVER_KEY = 0x80;
    /// server → `Saved`: how far another server has been told, and when to try again.
    DESTINATION = 0x81;
    /// server, room → position of the newest event that the server has not got.
    DESTINATION_ROOM = 0x90;
    /// server, number → a piece of the transaction that has to be sent again.
    DESTINATION_PENDING = 0x91;
    /// server, position → message to devices of its users, as the content of an EDU.
    DESTINATION_MESSAGE = 0x92;
    /// server, user → nothing: it has to be told of the user's devices.
    DESTINATION_USER = 0x93;
    /// server, user → the last stream ID of the user's devices that the server has got.
    DESTINATION_USER_TOLD = 0x94;
    /// local user, device or what else → position of the last change. See `keys::lists`.
    DEVICE_CHANGED = 0x95;
    /// week, server, hash of a message ID → nothing: messages to devices that came already.
    MESSAGE_SEEN = 0x96;
    /// user of another server → `RemoteUser`: cross-signing keys, and up to where their devices are known.
    REMOTE_USER = 0x97;
    /// user of another server, device → `RemoteDevice`.
    REMOTE_DEVICE = 0x98;
}

/// Bytes of a key or a value under construction.
///
/// May hold one *hole* of eight bytes where the committer writes the position of the log entry
/// that the row belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) hole: Option<usize>,
}

impl Packed {
    /// An empty value.
    pub fn new() -> Self {
        Self::default()
    }

    /// A key of `keyspace`.
    pub fn key(keyspace: Keyspace) -> Self {
        Self {
            bytes: vec![keyspace.0],
            hole: None,
        }
    }

    /// A number, big-endian.
    #[must_use]
    pub fn u64(mut self, number: u64) -> Self {
        self.bytes.extend(number.to_be_bytes());
        self
    }

    /// A signed number, in an encoding that sorts.
    #[must_use]
    pub fn i64(self, number: i64) -> Self {
        self.u64(sortable(number))
    }

    /// One byte.
    #[must_use]
    pub fn u8(mut self, byte: u8) -> Self {
        self.bytes.push(byte);
        self
    }

    /// A room.
    #[must_use]
    pub fn room(self, room: RoomNum) -> Self {
        self.u64(room.0)
    }

    /// A user.
    #[must_use]
    pub fn user(self, user: UserNum) -> Self {
        self.u64(user.0)
    }

    /// A string, so that it sorts before every longer one and can be followed by more parts.
    ///
    /// NUL becomes two bytes; the end is two NULs.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self.bytes.push(byte);
            if byte == 0 {
                self.bytes.push(0xff);
            }
        }
        self.bytes.extend([0, 0]);
        self
    }

    /// An event, by the 32 bytes of its reference hash.
    ///
    /// Another kind of ID (of old room versions, or made up by a client) is hashed to 32 bytes: it
    /// finds nothing, as it should.
    #[must_use]
    pub fn event(mut self, event_id: &EventId) -> Self {
        self.bytes.extend(event_hash(event_id));
        self
    }

    /// Bytes of a fixed length, or at the end of a key or value.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The position that the committer will give to the row's log entry.
    ///
    /// # Panics
    /// When there is a hole already: a row has at most one in its key and one in its value.
    #[must_use]
    pub fn position(mut self) -> Self {
        assert!(
            self.hole.is_none(),
            "one hole in a key or value is all that the committer fills"
        );
        self.hole = Some(self.bytes.len());
        self.u64(0)
    }

    /// The bytes, with `position` in the hole if there is one; `order` encoding, as timelines sort
    /// by signed numbers everywhere.
    pub(crate) fn fill(mut self, position: Position) -> Vec<u8> {
        if let Some(slot) = self.hole.and_then(|at| self.bytes.get_mut(at..at + 8)) {
            slot.copy_from_slice(&position_bytes(position));
        }
        self.bytes
    }

    /// The bytes of a key or value without a hole.
    ///
    /// # Panics
    /// When there is a hole: its bytes are known to the committer only.
    pub fn into_bytes(self) -> Vec<u8> {
        assert!(
            self.hole.is_none(),
            "a position is known only after the commit"
        );
        self.bytes
    }

    /// Where the rows behind this prefix end: `self <= key < end`.
    pub fn end_of_prefix(&self) -> Vec<u8> {
        let mut end = self.bytes.clone();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end;
            }
        }
        vec![0xff; 9]
    }
}

/// A position as it stands in keys: the encoding of signed orders, so that live timeline orders
/// are positions.
pub(crate) fn position_bytes(position: Position) -> [u8; 8] {
    sortable(i64::try_from(position).expect("2^63 commits take longer than anyone waits"))
        .to_be_bytes()
}

fn sortable(number: i64) -> u64 {
    number.cast_unsigned() ^ (1 << 63)
}

/// The 32 bytes that stand for an event in keys.
pub fn event_hash(event_id: &EventId) -> [u8; 32] {
    use ruma::serde::{Base64, base64::UrlSafe};
    let text = event_id.as_str().trim_start_matches('$');
    if let Ok(hash) = Base64::<UrlSafe, [u8; 32]>::parse(text) {
        return hash.into_inner();
    }
    // FNV-1a over four lanes: no meaning, only "not an event we have".
    let mut out = [0_u8; 32];
    for (lane, chunk) in out.chunks_exact_mut(8).enumerate() {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ (lane as u64);
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        chunk.copy_from_slice(&hash.to_be_bytes());
    }
    out
}

/// Reads the parts of a key or value in the order they were packed.
#[derive(Clone, Copy, Debug)]
pub struct Unpack<'a>(pub &'a [u8]);

impl<'a> Unpack<'a> {
    /// The parts of a key behind its keyspace byte.
    pub fn key(key: &'a [u8]) -> Self {
        Self(key.get(1..).unwrap_or_default())
    }

    /// The next number, if there are eight more bytes.
    pub fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*head))
    }

    /// The next signed number.
    pub fn i64(&mut self) -> Option<i64> {
        Some((self.u64()? ^ (1 << 63)).cast_signed())
    }

    /// The next position.
    pub fn position(&mut self) -> Option<Position> {
        u64::try_from(self.i64()?).ok()
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        let (&head, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(head)
    }

    /// The next room.
    pub fn room(&mut self) -> Option<RoomNum> {
        self.u64().map(RoomNum)
    }

    /// The next user.
    pub fn user(&mut self) -> Option<UserNum> {
        self.u64().map(UserNum)
    }

    /// The next 32 bytes.
    pub fn hash(&mut self) -> Option<[u8; 32]> {
        let (head, rest) = self.0.split_first_chunk::<32>()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next string.
    pub fn text(&mut self) -> Option<String> {
        let mut out = Vec::new();
        loop {
            match (self.u8()?, out.len()) {
                (0, _) => match self.u8()? {
                    0 => return String::from_utf8(out).ok(),
                    _ => out.push(0),
                },
                (byte, _) => out.push(byte),
            }
        }
    }
}

/// A keyspace whose values are the JSON of `V`.
#[derive(Debug)]
pub struct Table<V> {
    keyspace: Keyspace,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Table<V> {}

impl<V: Serialize + DeserializeOwned> Table<V> {
    /// The table of `keyspace`.
    pub const fn new(keyspace: Keyspace) -> Self {
        Self {
            keyspace,
            value: PhantomData,
        }
    }

    /// The start of a key of this table.
    pub fn key(&self) -> Packed {
        Packed::key(self.keyspace)
    }

    pub(crate) fn keyspace(self) -> Keyspace {
        self.keyspace
    }
}
