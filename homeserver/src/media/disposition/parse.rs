//! Reading `Content-Disposition` and content types as others write them.
//!
//! Lenient where it costs nothing (space around `=`, raw UTF-8, a missing closing quote), but a value that
//! cannot be understood is treated as absent, never guessed at.
//!
//! Spec: RFC 6266, 4; RFC 8187, 3.2; RFC 9110, 8.3.1.

use std::str;

use encoding_rs::{Encoding, WINDOWS_1252};

/// The file name in the `Content-Disposition` `header`, before it is cleaned.
pub(super) fn filename(header: &[u8]) -> Option<String> {
    let mut rest = header;
    skip_past(&mut rest, b';')?; // the disposition type
    let mut plain = None;
    loop {
        let name = take_while(&mut rest, |byte| !matches!(byte, b'=' | b';')).trim_ascii();
        match rest.split_off_first() {
            None => return plain,
            Some(b';') => continue, // a parameter without a value
            Some(_) => {}
        }
        let value = take_value(&mut rest);
        if name.eq_ignore_ascii_case(b"filename*") {
            // RFC 6266, 4.3: preferred to `filename`, wherever it stands.
            if let Some(extended) = extended_value(&value) {
                return Some(extended);
            }
        } else if name.eq_ignore_ascii_case(b"filename") && plain.is_none() {
            plain = Some(text(&value));
        }
        if skip_past(&mut rest, b';').is_none() {
            return plain;
        }
    }
}

/// Is `text` a type, a slash, a subtype, and perhaps parameters?
pub(super) fn is_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    essence
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// A token or a quoted string at the start of `rest`.
fn take_value(rest: &mut &[u8]) -> Vec<u8> {
    *rest = rest.trim_ascii_start();
    let mut unquoted = *rest;
    if unquoted.split_off_first() != Some(&b'"') {
        return take_while(rest, |byte| byte != b';')
            .trim_ascii_end()
            .to_vec();
    }
    let mut value = Vec::new();
    while let Some(byte) = unquoted.split_off_first() {
        match byte {
            b'"' => break,
            b'\\' => value.extend(unquoted.split_off_first()),
            byte => value.push(*byte),
        }
    }
    *rest = unquoted;
    value
}

/// What a plain parameter says. The RFC knows only ASCII here; in practice it is UTF-8, or what browsers
/// take Latin-1 for.
fn text(value: &[u8]) -> String {
    str::from_utf8(value).map_or_else(
        |_| {
            WINDOWS_1252
                .decode_without_bom_handling(value)
                .0
                .into_owned()
        },
        str::to_owned,
    )
}

/// What an extended parameter says: `charset'language'percent-encoded`.
fn extended_value(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut encoded = encoded.iter();
    while let Some(byte) = encoded.next() {
        bytes.push(if *byte == b'%' {
            let digits = [*encoded.next()?, *encoded.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            *byte
        });
    }
    Encoding::for_label(charset)?
        .decode_without_bom_handling_and_without_replacement(&bytes)
        .map(std::borrow::Cow::into_owned)
}

/// Everything before the first byte that is not `wanted`.
fn take_while<'a>(rest: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest
        .iter()
        .position(|byte| !wanted(*byte))
        .unwrap_or(rest.len());
    rest.split_off(..end)
        .expect("the position is within the slice")
}

/// Moves behind the next `separator`. `None` if there is none.
fn skip_past(rest: &mut &[u8], separator: u8) -> Option<()> {
    take_while(rest, |byte| byte != separator);
    rest.split_off_first().map(|_| ())
}
