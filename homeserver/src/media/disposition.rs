//! The headers under which media may be served to a browser that somebody else has filled with scripts.
//!
//! Decides between `inline` and `attachment`, and carries file names in and out of `Content-Disposition`.
//! Everything here comes from a user or from another server, so nothing of it is trusted: a content type is
//! served only if it is one, a name is stripped of what could end the header or the line.
//!
//! It does not look at the content: the declared type decides, and `X-Content-Type-Options: nosniff` makes
//! browsers stand by it.
//!
//! Spec: client-server API, "Content repository", also "Serving inline content"; RFC 6266 (the header),
//! RFC 8187 (names beyond ASCII).

use std::{borrow::Cow, fmt::Write};

use http::{
    HeaderName, HeaderValue,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
};

mod parse;

#[cfg(test)]
mod tests;

/// The longest file name that is remembered, in bytes of UTF-8: what file systems allow.
pub const FILENAME_BYTES_MAX: usize = 255;

/// The longest content type that is served as it was declared.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// What is served when the declared type is missing or is none.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The types that a browser may show at the homeserver's own origin.
///
/// Spec: "Serving inline content". No HTML, no SVG, no PDF: all of them run scripts.
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// What every response that carries media says besides its type and disposition.
///
/// The policy is the one the spec recommends, word for word. `nosniff` is what makes the declared type, and
/// with it the choice of `inline`, binding; `no-referrer` keeps media IDs out of other sites' logs.
pub static SECURITY_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
             style-src 'unsafe-inline'; object-src 'self';",
        ),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("cross-origin"),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
];

/// The name of an uploaded file: not empty, at most [`FILENAME_BYTES_MAX`] bytes, no control characters.
///
/// It may still look like a path; whoever saves a file under it must take that into account (RFC 6266, 4.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filename(String);

impl Filename {
    /// The name `raw` gives, from the query of an upload or the path of a download.
    ///
    /// Control characters are left out, and what is too long is cut: a strange name is no reason to refuse
    /// a file. `None` if nothing is left.
    pub fn new(raw: &str) -> Option<Self> {
        let mut name = String::new();
        for character in raw.chars().filter(|character| !character.is_control()) {
            if name.len() + character.len_utf8() > FILENAME_BYTES_MAX {
                break;
            }
            name.push(character);
        }
        (!name.is_empty()).then_some(Self(name))
    }

    /// The name that `header`, a `Content-Disposition` of another server, gives.
    ///
    /// `filename*` wins over `filename`; what cannot be understood counts as absent.
    ///
    /// Spec: RFC 6266, 4.3.
    pub fn from_disposition(header: &HeaderValue) -> Option<Self> {
        parse::filename(header.as_bytes()).and_then(|raw| Self::new(&raw))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Appends the parameters that give the name.
    ///
    /// A plain ASCII name is one quoted string, which every parser reads alike. Any other comes twice: as
    /// UTF-8 in `filename*`, and before it as a harmless reading for those who do not know that.
    fn write_parameters(&self, value: &mut String) {
        let plain = self.0.chars().all(is_plain);
        let quoted: Cow<'_, str> = if plain {
            Cow::Borrowed(&self.0)
        } else {
            let plain_or_underscore = |character| if is_plain(character) { character } else { '_' };
            Cow::Owned(self.0.chars().map(plain_or_underscore).collect())
        };
        value.push_str("; filename=\"");
        value.push_str(&quoted);
        value.push('"');
        if !plain {
            value.push_str("; filename*=UTF-8''");
            for byte in self.0.bytes() {
                if is_attr_char(byte) {
                    value.push(char::from(byte));
                } else {
                    write!(value, "%{byte:02X}").expect("writing to a string does not fail");
                }
            }
        }
    }
}

/// May stand in a quoted string without any parser taking it for something else: printable ASCII, but
/// neither the quote and the backslash, nor the percent sign, which some decode even here (RFC 6266,
/// appendix D), nor what separates directories.
fn is_plain(character: char) -> bool {
    matches!(character, ' '..='~') && !matches!(character, '"' | '\\' | '%' | '/')
}

/// Stands for itself in `filename*`. Spec: RFC 8187, 3.2.1, `attr-char`.
fn is_attr_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte)
}

/// May content of this declared type be shown by a browser, rather than saved?
///
/// Parameters and case do not matter.
pub fn may_be_inline(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    INLINE
        .iter()
        .any(|inline| inline.eq_ignore_ascii_case(essence))
}

/// The `Content-Disposition` of content that is served as `content_type` under `filename`.
///
/// Ask with the type that is really sent, that is, with what [`content_type`] made of the stored one.
pub fn content_disposition(content_type: &HeaderValue, filename: Option<&Filename>) -> HeaderValue {
    let inline = content_type.to_str().is_ok_and(may_be_inline);
    let mut value = String::from(if inline { "inline" } else { "attachment" });
    if let Some(filename) = filename {
        filename.write_parameters(&mut value);
    }
    HeaderValue::try_from(value).expect("what was written is printable ASCII")
}

/// The `Content-Type` for content that was uploaded as `declared`: the same, or [`OCTET_STREAM`] if that is
/// no content type, or too long for one.
pub fn content_type(declared: Option<&str>) -> HeaderValue {
    declared
        .map(str::trim)
        .filter(|declared| {
            declared.len() <= CONTENT_TYPE_BYTES_MAX && parse::is_media_type(declared)
        })
        .and_then(|declared| HeaderValue::from_str(declared).ok())
        .unwrap_or(HeaderValue::from_static(OCTET_STREAM))
}
