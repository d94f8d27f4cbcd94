//! "Did you mean …?": the nearest known word to one that is not known.

/// Words longer than this get no suggestion: the comparison takes time with the square of the length, and the word
/// comes from outside. The longest key is about 50 characters.
const WORD_CHARS_MAX: usize = 128;

/// The candidate nearest to `word`, if it is near enough to be a slip of the hand: at most one change in three
/// characters. The first of equally near ones.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The known key nearest to the unknown `key`: first among its siblings, `parent` being their section, where the unit
/// may have been left out (`upload` for `upload_mb`); then spelled otherwise (`server_name`); then in another section (`upload_mb` at the top level).
pub(super) fn nearest_key(
    key: &str,
    parent: &str,
    siblings: &[&str],
    known: &[String],
) -> Option<String> {
    let known = || known.iter().map(String::as_str);
    let siblings = || siblings.iter().copied();
    let name = last_part(key);
    let longer = || siblings().find(|sibling| name.len() >= 4 && sibling.starts_with(name));
    if let Some(sibling) = nearest(name, siblings()).or_else(longer) {
        return Some(match parent {
            "" => sibling.to_owned(),
            _ => format!("{parent}.{sibling}"),
        });
    }
    let flat = |key: &str| key.replace('.', "_");
    known()
        .find(|candidate| flat(candidate) == flat(key))
        .or_else(|| known().find(|candidate| last_part(candidate) == name))
        .or_else(|| nearest(key, known()))
        .map(str::to_owned)
}

/// What follows the last dot.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// How many characters must be inserted, removed, replaced or swapped with their neighbour to turn `left` into
/// `right`, each place being touched once (optimal string alignment). Case is ignored.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.to_lowercase().chars().collect();
    if left.len() > WORD_CHARS_MAX || right.len() > WORD_CHARS_MAX {
        return usize::MAX;
    }
    // Rows of the usual table: the one before the last, the last, and the one being filled.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX);
    for (i, left_char) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right_char) in right.iter().enumerate() {
            let replaced = at(&last, j) + usize::from(left_char != right_char);
            let mut best = replaced.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0
                && j > 0
                && left.get(i - 1) == Some(right_char)
                && right.get(j - 1) == Some(left_char);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    at(&last, right.len())
}
