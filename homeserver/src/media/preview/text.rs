//! Text as a reader sees it: one space between words, no markup, no control characters, of limited length.

/// Text that is put together from pieces, up to a limit.
#[derive(Debug, Default)]
pub(super) struct Text {
    kept: String,
    chars: usize,
    /// A space is due before the next word.
    space: bool,
}

impl Text {
    /// Appends `piece`, as long as there are fewer than `chars_max` characters.
    pub(super) fn push(&mut self, piece: &str, chars_max: usize) {
        for character in piece.chars() {
            if self.chars >= chars_max {
                return;
            }
            if character.is_whitespace() {
                self.space = true;
            } else if !is_invisible(character) {
                if self.space && !self.kept.is_empty() {
                    self.kept.push(' ');
                    self.chars += 1;
                }
                self.space = false;
                self.kept.push(character);
                self.chars += 1;
            }
        }
    }

    /// The next piece does not belong to the same word.
    pub(super) const fn end_word(&mut self) {
        self.space = true;
    }

    pub(super) const fn chars(&self) -> usize {
        self.chars
    }

    /// The text, if there is any.
    pub(super) fn finish(self) -> Option<String> {
        (!self.kept.is_empty()).then_some(self.kept)
    }
}

/// Control characters, and those that turn the direction of what follows, with which a page could make the
/// client's own words read differently.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}' | '\u{feff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text`, cleaned; if it is longer than `chars_max` characters, cut at the end of a word, with an ellipsis.
pub(super) fn shorten(text: &str, chars_max: usize) -> String {
    let mut cleaned = Text::default();
    cleaned.push(text, chars_max + 1);
    if cleaned.chars() <= chars_max {
        return cleaned.kept;
    }
    let mut chars = cleaned.kept.chars();
    let mut text: String = chars.by_ref().take(chars_max - 1).collect();
    // The end of a word, if one is near; some scripts have no spaces.
    if chars.next() != Some(' ')
        && let Some((words, rest)) = text.rsplit_once(' ')
        && rest.chars().count() < chars_max / 4
    {
        text = words.to_owned();
    }
    text.push('…');
    text
}
