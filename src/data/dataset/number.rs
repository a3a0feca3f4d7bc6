//! Numbers as people and programs write them into label files.

/// A number and whether it was plain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number {
    /// Finite.
    pub value: f64,
    /// Digits only, as labelImg writes them.
    pub plain: bool,
}

/// Reads a number that may be a float, stand in white space or brackets, or have thousands marks; `None` if that gives no
/// finite number, or if it is not clear which (`12,5`).
pub fn read(text: &str) -> Option<Number> {
    let plain = !text.is_empty() && text.len() < 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    // Full-width digits come from East Asian keyboards, the minus sign from word processors.
    let folded: String = text
        .chars()
        .map(|c| match c {
            '０'..='９' => char::from(b'0' + (c as u32 - '０' as u32) as u8),
            '−' | '－' => '-',
            '．' => '.',
            '，' => ',',
            c => c,
        })
        .collect();
    let inner = unwrapped(folded.trim());
    let value: f64 = match inner.parse() {
        // Words such as `inf` and `nan` parse; digits are what makes a number.
        Ok(value) if inner.bytes().any(|byte| byte.is_ascii_digit()) => value,
        _ => without_thousands_marks(inner)?.parse().ok()?,
    };
    value.is_finite().then_some(Number { value, plain })
}

/// Without the pairs of brackets and quotes around it.
fn unwrapped(mut text: &str) -> &str {
    const PAIRS: [(char, char); 6] = [('[', ']'), ('(', ')'), ('{', '}'), ('<', '>'), ('"', '"'), ('\'', '\'')];
    loop {
        let inner = PAIRS.iter().find_map(|&(open, close)| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)));
        match inner {
            Some(inner) => text = inner.trim(),
            None => return text,
        }
    }
}

/// `1,024.5` as `1024.5`, if the marks are all one and every group behind one has three digits.
fn without_thousands_marks(text: &str) -> Option<String> {
    let mark = text.chars().find(|c| matches!(c, ',' | '\'' | '’' | '_' | ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}'))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mut groups = whole.split(mark);
    let first = groups.next()?;
    let unsigned = first.strip_prefix(['-', '+']).unwrap_or(first);
    // `0,050` is a decimal comma: no group of thousands begins with 0.
    let regular = (1..=3).contains(&unsigned.len())
        && !unsigned.starts_with('0')
        && digits(unsigned)
        && groups.clone().count() > 0
        && groups.all(|group| group.len() == 3 && digits(group));
    (regular && digits(fraction)).then(|| text.replace(mark, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_integers_are_plain() {
        assert_eq!(read("0"), Some(Number { value: 0.0, plain: true }));
        assert_eq!(read("1024"), Some(Number { value: 1024.0, plain: true }));
    }

    #[test]
    fn what_is_readable_is_read_and_not_plain() {
        for (text, value) in [
            ("113.10026892047637", 113.100_268_920_476_37),
            (" 12.0 ", 12.0),
            ("[12]", 12.0),
            ("( [ 12.5 ] )", 12.5),
            ("'7'", 7.0),
            ("1,024", 1024.0),
            ("1,234,567.5", 1_234_567.5),
            ("1 024", 1024.0),
            ("1'024", 1024.0),
            ("1\u{a0}024", 1024.0),
            ("-1", -1.0),
            ("−1", -1.0),
            ("+3", 3.0),
            ("1e2", 100.0),
            ("１２", 12.0),
            (".5", 0.5),
        ] {
            assert_eq!(read(text), Some(Number { value, plain: false }), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            " ",
            "nan",
            "NaN",
            "inf",
            "-inf",
            "infinity",
            "1e999",
            "12,5",
            "0,050",
            "-0,125",
            "1,02",
            "1,0244",
            "12px",
            "0x10",
            "[12",
            "12]",
            "a",
            ",",
            "1,,024",
            "1,024'000",
            "--1",
            "1.2.3",
            "[]",
            "'",
            "１，２",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
