//! What is shown under a link: a web page, read into a few words and the address of a picture.
//!
//! [`read`] is pure: bytes in, [`Preview`] out. It reads tokens, not a tree, so that what a page costs grows
//! with its length and with nothing else: no nesting is remembered, and length, number and size of everything
//! that is kept have limits. Scripts are not run, frames and pictures not fetched; text comes out as text, and
//! clients must treat it as such.
//!
//! It does not fetch the page (see [`outward`](super::outward)), nor the picture: the caller does both, keeps
//! the picture as media, and adds `og:image`, its type, width and height, and `matrix:image:size`.
//!
//! Spec: client-server API, `GET /media/preview_url`; The Open Graph protocol, <https://ogp.me>.

use std::collections::BTreeMap;

use reqwest::Url;

mod charset;
mod page;
mod text;

#[cfg(test)]
mod tests;

use page::Page;
use text::Text;

/// How much of a page is read. Everything of interest stands at the beginning; pages of megabytes are mostly
/// scripts.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// The number of properties in a preview, besides those that are always kept.
pub const PROPERTIES_MAX: usize = 32;

/// The length of the name of a property, in bytes.
pub const PROPERTY_NAME_BYTES_MAX: usize = 64;

/// The length of a title, in characters.
pub const TITLE_CHARS_MAX: usize = 200;

/// The length of a description and of every other property, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 500;

/// The length of the address of anything, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// How content can be previewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is a page: give it to [`read`].
    Page,
    /// It is a picture, and its own preview.
    Image,
    /// Not at all: an empty preview.
    Other,
}

impl Kind {
    /// The kind of content that is declared to be of this type.
    pub fn of(content_type: Option<&str>) -> Self {
        let essence = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        if ["text/html", "application/xhtml+xml"]
            .iter()
            .any(|page| page.eq_ignore_ascii_case(essence))
        {
            return Self::Page;
        }
        match essence.split_once('/') {
            Some((kind, _)) if kind.eq_ignore_ascii_case("image") => Self::Image,
            _ => Self::Other,
        }
    }
}

/// What is known of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// `og:title`, `og:description`, `og:type`, `og:url`, `og:site_name`, …, without control characters,
    /// and none that says something about a picture but `og:image:alt`.
    pub properties: BTreeMap<String, String>,
    /// The picture: an absolute HTTP or HTTPS address, to be fetched with the same caution as the page.
    pub image: Option<Url>,
}

/// Reads the `page` that came from `url` and was declared to be of `content_type`.
///
/// What the page says of itself by Open Graph comes first; what is missing of title, description and picture
/// is filled from what is said to others (Twitter cards, search engines), and at last from what a reader
/// would see first.
pub fn read(page: &[u8], content_type: Option<&str>, url: &Url) -> Preview {
    let page = page.get(..PAGE_BYTES_MAX).unwrap_or(page);
    let html = charset::decode(page, content_type);
    let Page {
        mut properties,
        base,
        title,
        heading,
        description,
        text,
        images,
        ..
    } = Page::read(&html);
    let base = base
        .and_then(|base| address(url, &base))
        .unwrap_or_else(|| url.clone());

    let image = [
        "og:image",
        "og:image:url",
        "og:image:secure_url",
        "twitter:image",
        "twitter:image:src",
    ]
    .iter()
    .filter_map(|name| properties.get(*name).cloned())
    .chain(images.in_order())
    .find_map(|image| address(&base, &image));
    let title = properties.remove("twitter:title").or(title).or(heading);
    let description = properties
        .remove("twitter:description")
        .or(description)
        .or(text);
    properties.retain(|name, _| name.starts_with("og:") && !is_about_a_picture(name));

    if let Some(title) = title {
        properties.entry("og:title".to_owned()).or_insert(title);
    }
    if let Some(description) = description {
        properties
            .entry("og:description".to_owned())
            .or_insert(description);
    }
    if let Some(page_url) = properties.remove("og:url")
        && let Some(page_url) = address(&base, &page_url)
    {
        properties.insert("og:url".to_owned(), page_url.into());
    }
    for (name, value) in &mut properties {
        let chars_max = if name == "og:title" {
            TITLE_CHARS_MAX
        } else {
            DESCRIPTION_CHARS_MAX
        };
        if name != "og:url" {
            *value = text::shorten(value, chars_max);
        }
    }
    Preview { properties, image }
}

/// The absolute address of what a page at `base` calls `reference`, if it can be fetched at all.
fn address(base: &Url, reference: &str) -> Option<Url> {
    let address = base.join(reference).ok()?;
    (matches!(address.scheme(), "http" | "https") && address.as_str().len() <= URL_BYTES_MAX)
        .then_some(address)
}

/// Said by the caller, who has seen the picture; the page may be wrong.
fn is_about_a_picture(name: &str) -> bool {
    name == "og:image" || (name.starts_with("og:image:") && name != "og:image:alt")
}
