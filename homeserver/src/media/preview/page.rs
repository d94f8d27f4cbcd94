//! Going through the tokens of a page, and keeping what a preview is made of.
//!
//! There is no tree: all that is remembered of nesting is inside of what text is collected now, and which
//! part is being passed over. A page that opens a million elements costs a million tokens.

use std::collections::BTreeMap;

use html5gum::{DefaultEmitter, HtmlString, StartTag, Token, Tokenizer};

use super::{
    DESCRIPTION_CHARS_MAX, PROPERTIES_MAX, PROPERTY_NAME_BYTES_MAX, TITLE_CHARS_MAX, Text,
};

/// How many tokens of a page are looked at.
const TOKENS_MAX: usize = 200_000;

/// How much of the value of an attribute is looked at. More than is shown of any title or description, four
/// bytes a character; addresses that long are not used.
const ATTRIBUTE_BYTES_MAX: usize = 4 * 2 * DESCRIPTION_CHARS_MAX;

/// Fewer characters than this are no text worth showing, but a menu or a button.
const PARAGRAPH_CHARS_MIN: usize = 40;

/// The sides, in pixels, from which a picture on a page counts as large.
const LARGE_IMAGE_SIDE: u32 = 200;

/// The parts that are passed over when looking for what a reader sees first.
const PASSED_OVER: [&[u8]; 18] = [
    b"aside",
    b"audio",
    b"button",
    b"canvas",
    b"dialog",
    b"footer",
    b"header",
    b"iframe",
    b"nav",
    b"noscript",
    b"object",
    b"script",
    b"select",
    b"style",
    b"svg",
    b"template",
    b"textarea",
    b"video",
];

/// The elements that begin and end a paragraph.
const BLOCKS: [&[u8]; 16] = [
    b"article",
    b"blockquote",
    b"body",
    b"dd",
    b"div",
    b"dt",
    b"figcaption",
    b"figure",
    b"li",
    b"main",
    b"p",
    b"pre",
    b"section",
    b"table",
    b"td",
    b"tr",
];

/// The headings that may serve as a title.
const HEADINGS: [&[u8]; 3] = [b"h1", b"h2", b"h3"];

/// What was found on a page, as it stands there.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// What `<meta>` says by Open Graph and Twitter cards. The first of each name.
    pub(super) properties: BTreeMap<String, String>,
    /// What references are relative to.
    pub(super) base: Option<String>,
    /// The title in the head.
    pub(super) title: Option<String>,
    /// The first heading.
    pub(super) heading: Option<String>,
    /// What search engines are told.
    pub(super) description: Option<String>,
    /// The first paragraphs.
    pub(super) text: Option<String>,
    /// The pictures.
    pub(super) images: Images,

    collecting: Collecting,
    passing_over: Option<PassingOver>,
    /// The paragraphs so far.
    paragraphs: Text,
}

/// Pictures, by how likely they are what the page is about.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// Named in the head, for this purpose.
    named: Option<String>,
    /// The first one that is said to be large.
    large: Option<String>,
    /// The first one of which nothing is said.
    unknown: Option<String>,
}

impl Images {
    pub(super) fn in_order(self) -> impl Iterator<Item = String> {
        [self.named, self.large, self.unknown].into_iter().flatten()
    }
}

/// What the text that comes now belongs to.
#[derive(Debug)]
enum Collecting {
    Title(Text),
    Heading(Text),
    Paragraph(Text),
}

impl Default for Collecting {
    fn default() -> Self {
        Self::Paragraph(Text::default())
    }
}

impl Collecting {
    const fn text(&mut self) -> &mut Text {
        match self {
            Self::Title(text) | Self::Heading(text) | Self::Paragraph(text) => text,
        }
    }
}

/// An element whose content is passed over, and how often it has been opened within itself.
#[derive(Debug)]
struct PassingOver {
    name: HtmlString,
    depth: u32,
}

impl Page {
    pub(super) fn read(html: &str) -> Self {
        let mut page = Self::default();
        let mut emitter = DefaultEmitter::default();
        emitter.naively_switch_states(true); // what is in a script are not tags
        let tokens = Tokenizer::new_with_emitter(html, emitter);
        for Ok(token) in tokens.take(TOKENS_MAX) {
            match token {
                Token::StartTag(tag) => page.open(&tag),
                Token::EndTag(tag) => page.close(&tag.name),
                Token::String(text) => page.say(&String::from_utf8_lossy(&text)),
                Token::Comment(_) | Token::Doctype(_) | Token::Error(_) => {}
            }
        }
        page.finish();
        page.text = std::mem::take(&mut page.paragraphs).finish();
        page
    }

    fn open(&mut self, tag: &StartTag<()>) {
        let name: &[u8] = &tag.name;
        match name {
            b"meta" => return self.meta(tag),
            b"base" => return keep_first(&mut self.base, attribute(tag, b"href")),
            b"link" => return self.link(tag),
            _ => {}
        }
        if let Some(passing_over) = &mut self.passing_over {
            if passing_over.name == tag.name {
                passing_over.depth = passing_over.depth.saturating_add(1);
            }
            return;
        }
        if PASSED_OVER.contains(&name) {
            if name != b"svg" || !tag.self_closing {
                self.finish();
                self.passing_over = Some(PassingOver {
                    name: tag.name.clone(),
                    depth: 1,
                });
            }
        } else if name == b"title" {
            self.finish();
            self.collecting = Collecting::Title(Text::default());
        } else if HEADINGS.contains(&name) {
            self.finish();
            self.collecting = Collecting::Heading(Text::default());
        } else if BLOCKS.contains(&name) {
            self.finish();
        } else if name == b"br" {
            self.collecting.text().end_word();
        } else if name == b"img" {
            self.image(tag);
        }
    }

    fn close(&mut self, name: &HtmlString) {
        if let Some(passing_over) = &mut self.passing_over {
            if passing_over.name == *name {
                passing_over.depth -= 1;
                if passing_over.depth == 0 {
                    self.passing_over = None;
                }
            }
            return;
        }
        let name: &[u8] = name;
        if name == b"title" || HEADINGS.contains(&name) || BLOCKS.contains(&name) {
            self.finish();
        }
    }

    fn say(&mut self, text: &str) {
        if self.passing_over.is_none() {
            // One more than is shown, so that it can be seen that there is more.
            let chars_max = match self.collecting {
                Collecting::Title(_) | Collecting::Heading(_) => TITLE_CHARS_MAX + 1,
                Collecting::Paragraph(_) => DESCRIPTION_CHARS_MAX + 1,
            };
            self.collecting.text().push(text, chars_max);
        }
    }

    /// Ends what is being collected, and begins a paragraph.
    fn finish(&mut self) {
        match std::mem::take(&mut self.collecting) {
            Collecting::Title(title) => keep_first(&mut self.title, title.finish()),
            Collecting::Heading(heading) => keep_first(&mut self.heading, heading.finish()),
            Collecting::Paragraph(paragraph) if paragraph.chars() < PARAGRAPH_CHARS_MIN => {}
            Collecting::Paragraph(paragraph) => {
                self.paragraphs.end_word();
                let paragraph = paragraph.finish().unwrap_or_default();
                self.paragraphs.push(&paragraph, DESCRIPTION_CHARS_MAX + 1);
            }
        }
    }

    fn meta(&mut self, tag: &StartTag<()>) {
        let Some(content) = attribute(tag, b"content") else {
            return;
        };
        let names = [
            attribute(tag, b"property"),
            attribute(tag, b"name"),
            attribute(tag, b"itemprop"),
        ];
        for name in names.into_iter().flatten() {
            let name = name.trim().to_ascii_lowercase();
            if name == "description" {
                keep_first(&mut self.description, Some(content.clone()));
            } else if name == "image" {
                keep_first(&mut self.images.named, Some(content.clone()));
            } else if (name.starts_with("og:") || name.starts_with("twitter:"))
                && name.len() <= PROPERTY_NAME_BYTES_MAX
                && (self.properties.len() < PROPERTIES_MAX || is_wanted(&name))
                && !content.trim().is_empty()
            {
                self.properties
                    .entry(name)
                    .or_insert_with(|| content.clone());
            }
        }
    }

    fn link(&mut self, tag: &StartTag<()>) {
        let is_image = attribute(tag, b"rel").is_some_and(|rel| {
            rel.split_ascii_whitespace()
                .any(|rel| rel.eq_ignore_ascii_case("image_src"))
        });
        if is_image {
            keep_first(&mut self.images.named, attribute(tag, b"href"));
        }
    }

    fn image(&mut self, tag: &StartTag<()>) {
        let Some(source) = attribute(tag, b"src") else {
            return;
        };
        if source
            .trim_start()
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
        {
            return;
        }
        let side = |name| attribute(tag, name).and_then(|side| pixels(&side));
        match (side(b"width"), side(b"height")) {
            (None, None) => keep_first(&mut self.images.unknown, Some(source)),
            (width, height) => {
                let large = |side: Option<u32>| side.is_none_or(|side| side >= LARGE_IMAGE_SIDE);
                if large(width) && large(height) {
                    keep_first(&mut self.images.large, Some(source));
                }
            }
        }
    }
}

/// A property that is kept even if there are too many others.
fn is_wanted(name: &str) -> bool {
    matches!(
        name,
        "og:title" | "og:description" | "og:image" | "og:type" | "og:url" | "og:site_name"
    )
}

/// The value of an attribute, or the beginning of it.
fn attribute(tag: &StartTag<()>, name: &[u8]) -> Option<String> {
    let value: &[u8] = tag.attributes.get(name)?;
    let value = value.get(..ATTRIBUTE_BYTES_MAX).unwrap_or(value);
    Some(String::from_utf8_lossy(value).into_owned())
}

/// A length in the attribute of a picture: digits, perhaps followed by a unit.
fn pixels(value: &str) -> Option<u32> {
    let value = value.trim();
    let digits = value.trim_end_matches(|character: char| !character.is_ascii_digit());
    (!value.ends_with('%'))
        .then(|| digits.parse().ok())
        .flatten()
}

fn keep_first(kept: &mut Option<String>, value: Option<String>) {
    if kept.is_none() {
        *kept = value.filter(|value| !value.trim().is_empty());
    }
}
