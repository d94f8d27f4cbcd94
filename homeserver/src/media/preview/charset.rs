//! In which charset a page is written.
//!
//! Spec: HTML, "Determining the character encoding", without the guessing at its end: a page that says
//! nothing is UTF-8 if it can be, and Windows-1252 otherwise.

use std::{borrow::Cow, str};

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252, X_USER_DEFINED};

/// How much of a page is searched for what it says about its charset. What HTML prescribes.
const PRESCAN_BYTES: usize = 1024;

/// The text of `page`. What is no text in its charset becomes U+FFFD.
pub(super) fn decode<'a>(page: &'a [u8], content_type: Option<&str>) -> Cow<'a, str> {
    let encoding = content_type
        .and_then(|declared| label_in(declared.as_bytes()))
        .and_then(Encoding::for_label)
        .or_else(|| prescan(page))
        .unwrap_or_else(|| if is_utf8(page) { UTF_8 } else { WINDOWS_1252 });
    encoding.decode(page).0 // a byte order mark outweighs everything
}

/// What the page says: `<meta charset=…>`, `<meta http-equiv=… content="…; charset=…">`, or the encoding of
/// an XML declaration.
fn prescan(page: &[u8]) -> Option<&'static Encoding> {
    let start = page.get(..PRESCAN_BYTES).unwrap_or(page);
    let declaration = start.strip_prefix(b"<?xml").and_then(|rest| {
        let end = find(rest, b"?>")?;
        label_after(rest.get(..end)?, b"encoding")
    });
    let label = declaration.or_else(|| {
        let mut rest = start;
        loop {
            let meta = find(rest, b"<meta")?;
            rest = rest.get(meta + 5..)?;
            let end = rest
                .iter()
                .position(|byte| *byte == b'>')
                .unwrap_or(rest.len());
            if let Some(label) = rest.get(..end).and_then(label_in) {
                return Some(label);
            }
        }
    });
    let encoding = Encoding::for_label(label?)?;
    // That could be read, so it cannot be true. Spec: HTML, "prescan a byte stream", the last steps.
    if encoding == UTF_16BE || encoding == UTF_16LE {
        return Some(UTF_8);
    }
    Some(if encoding == X_USER_DEFINED {
        WINDOWS_1252
    } else {
        encoding
    })
}

/// The value of `charset=` in `text`.
fn label_in(text: &[u8]) -> Option<&[u8]> {
    label_after(text, b"charset")
}

fn label_after<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let after = text
        .get(find(text, name)? + name.len()..)?
        .trim_ascii_start();
    let value = after.strip_prefix(b"=")?.trim_ascii_start();
    let value = value
        .strip_prefix(b"\"")
        .or_else(|| value.strip_prefix(b"'"))
        .unwrap_or(value);
    let is_label = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_:.".contains(byte);
    let end = value
        .iter()
        .position(|byte| !is_label(byte))
        .unwrap_or(value.len());
    value.get(..end)
}

/// Where `part` begins in `text`, in any case.
fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len())
        .position(|window| window.eq_ignore_ascii_case(part))
}

/// Is `page` UTF-8, but for a character that may have been cut off at its end?
fn is_utf8(page: &[u8]) -> bool {
    str::from_utf8(page).map_or_else(|error| error.error_len().is_none(), |_| true)
}
