//! Words and numbers as people are told them.

use unicode_width::UnicodeWidthStr;

/// `1 picture`, `2 pictures`, `2 classes`, `2 boxes`.
pub fn plural(count: usize, what: &str) -> String {
    match (count, what.ends_with(['s', 'x'])) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{count} {what}es"),
        (_, false) => format!("{count} {what}s"),
    }
}

/// Text from a file, safe to print: control characters are escaped, and it is cut if it is long.
pub fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => without_controls(&text[..end], &[]) + "...",
        None => without_controls(text, &[]),
    }
}

/// Text whose control characters are escaped, but for those `kept`.
pub fn without_controls(text: &str, kept: &[char]) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !kept.contains(&c) {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}

/// Columns that a text takes on a terminal, where Korean, Chinese and Japanese letters take two.
pub fn columns(text: &str) -> usize {
    text.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_in_english() {
        let told = [(0, "class"), (1, "class"), (2, "note"), (3, "box"), (1, "box")].map(|(n, what)| plural(n, what));
        assert_eq!(told, ["0 classes", "1 class", "2 notes", "3 boxes", "1 box"]);
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("a\n\u{1b}[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(printable(&"x".repeat(1000)).len(), 303);
        assert_eq!(printable(&"판".repeat(300)).chars().count(), 300);
        assert_eq!(without_controls("a\nb\tc", &['\n']), "a\nb\\tc");
    }

    #[test]
    fn hangul_takes_two_columns_composed_or_not_and_accents_none() {
        assert_eq!(["panda", "판다", "\u{1111}\u{1161}\u{11ab}", "e\u{301}", "，"].map(columns), [5, 4, 2, 1, 2]);
    }
}
