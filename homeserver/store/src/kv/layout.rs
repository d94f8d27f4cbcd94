//! How rows lie in sled. Two things stand between a row and sled 0.34, and both are solved by
//! what is stored, not by what sled is asked to do:
//!
//! **Runs of `ff`.** Scanning backwards, sled steps from one tree node to the one before it by
//! looking up a key that ends in four bytes `ff` and believing that nothing sorts after it. A
//! row that does (numbers just below a power of 256, such as the order of a backfilled event)
//! sends it round in circles until it panics. So every `ff` is written as `ff 00`: the order of
//! keys stays the same, and no key has two `ff` in a row.
//!
//! **Values above 4 KB.** Large nodes go to files of their own, which sled never syncs. So a
//! value of more than [`WHOLE_BYTES_MAX`] bytes is cut into chunks under keys that no row can
//! have, and a head takes its place.
//!
//! | Key | Value |
//! |---|---|
//! | the row's key, escaped | `00`, value |
//! | the row's key, escaped | `01`, number of chunks (u16), length of the value (u32) |
//! | `ff 01`, then the row's key and the chunk's number (u16), escaped | chunk |
//!
//! Numbers are big-endian. A row and its chunks are written and deleted in one batch.

use std::borrow::Cow;

use super::VALUE_BYTES_MAX;

/// Longest value that sled is ever given, in bytes.
pub(super) const STORED_BYTES_MAX: usize = 4_096;

/// Longest value that is stored in one piece, in bytes: with its tag it just fits.
pub(super) const WHOLE_BYTES_MAX: usize = STORED_BYTES_MAX - 1;

/// Most chunks a value is cut into.
pub(super) const CHUNKS_MAX: u16 = 256;
const _: () = assert!(VALUE_BYTES_MAX == CHUNKS_MAX as usize * STORED_BYTES_MAX);

const ESCAPED: u8 = 0xff;
const ESCAPE: [u8; 2] = [0xff, 0x00];
const CHUNK_SPACE: [u8; 2] = [0xff, 0x01];

const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

/// A row's key, or a bound of a scan, as sled sees it.
pub(super) fn escape(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.contains(&ESCAPED) {
        return Cow::Borrowed(key);
    }
    let mut escaped = Vec::with_capacity(key.len() + 8);
    extend_escaped(&mut escaped, key);
    Cow::Owned(escaped)
}

/// The row's key again. `None` if no row has this key.
pub(super) fn unescape(stored: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !stored.contains(&ESCAPED) {
        return Some(Cow::Borrowed(stored));
    }
    let mut key = Vec::with_capacity(stored.len());
    let mut bytes = stored.iter();
    while let Some(&byte) = bytes.next() {
        if byte == ESCAPED && bytes.next() != Some(&0) {
            return None;
        }
        key.push(byte);
    }
    Some(Cow::Owned(key))
}

fn extend_escaped(escaped: &mut Vec<u8>, key: &[u8]) {
    for &byte in key {
        if byte == ESCAPED {
            escaped.extend(ESCAPE);
        } else {
            escaped.push(byte);
        }
    }
}

/// Where chunk `number` of the row under `key` lies.
pub(super) fn chunk_key(key: &[u8], number: u16) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 12);
    stored.extend(CHUNK_SPACE);
    extend_escaped(&mut stored, key);
    extend_escaped(&mut stored, &number.to_be_bytes());
    stored
}

/// Where the chunks begin of all rows whose key starts with `first` or a higher byte.
pub(super) fn chunks_from(first: u8) -> Vec<u8> {
    let mut stored = CHUNK_SPACE.to_vec();
    extend_escaped(&mut stored, &[first]);
    stored
}

/// The first byte of the key of the row that a chunk belongs to.
pub(super) fn chunk_first_byte(stored: &[u8]) -> Option<u8> {
    stored.strip_prefix(&CHUNK_SPACE)?.first().copied()
}

/// A value in one piece.
pub(super) fn whole(value: &[u8]) -> Vec<u8> {
    debug_assert!(value.len() <= WHOLE_BYTES_MAX);
    let mut stored = Vec::with_capacity(1 + value.len());
    stored.push(WHOLE);
    stored.extend(value);
    stored
}

/// What a row's stored value says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored<'a> {
    /// The value itself.
    Whole(&'a [u8]),
    /// The value lies in chunks.
    Chunked(Head),
}

/// What stands in the place of a value that lies in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// How many chunks there are.
    pub(super) chunks: u16,
    /// How long the value is, in bytes.
    pub(super) bytes: u32,
}

impl Head {
    /// The head of `value`, which is cut into [`chunks`].
    pub(super) fn of(value: &[u8]) -> Head {
        assert!(
            value.len() <= VALUE_BYTES_MAX,
            "a value of {} bytes has no head",
            value.len()
        );
        let chunks = value.len().div_ceil(STORED_BYTES_MAX);
        Head {
            chunks: u16::try_from(chunks).expect("1 MiB is 256 chunks"),
            bytes: u32::try_from(value.len()).expect("1 MiB is less than 4 GiB"),
        }
    }

    /// As it is stored.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut stored = vec![CHUNKED];
        stored.extend(self.chunks.to_be_bytes());
        stored.extend(self.bytes.to_be_bytes());
        stored
    }
}

/// The pieces of a value, in order.
pub(super) fn chunks(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.chunks(STORED_BYTES_MAX)
}

/// Reads a row's stored value. `None` if it is damaged.
pub(super) fn decode(stored: &[u8]) -> Option<Stored<'_>> {
    let (&tag, rest) = stored.split_first()?;
    match tag {
        WHOLE => Some(Stored::Whole(rest)),
        CHUNKED => {
            let (chunks, bytes) = rest.split_first_chunk::<2>()?;
            let head = Head {
                chunks: u16::from_be_bytes(*chunks),
                bytes: u32::from_be_bytes(bytes.try_into().ok()?),
            };
            (head.chunks <= CHUNKS_MAX).then_some(Stored::Chunked(head))
        }
        _ => None,
    }
}
