//! Values that flags share.

/// A boolean as people type it, the old tool's `True` and `False` included.
///
/// For a flag that stands alone or takes a value (`-r`, `-r True`, `--reset=no`):
///
/// ```text
/// #[arg(short, long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
///       default_value = "false", default_missing_value = "true", value_parser = crate::flags::boolean)]
/// reset: bool,
/// ```
///
/// `cli` joins a boolean word that follows such a flag to it, so that `-e photo.jpg` leaves the picture alone.
///
/// # Errors
/// What is accepted, if it is none of the words.
pub fn boolean(typed: &str) -> Result<bool, String> {
    match typed.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => Err("it must be true or false (yes, no, on, off, 1 and 0 do too)".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::boolean;

    #[test]
    fn false_means_false() {
        for word in ["True", "TRUE", "true", "yes", "1", "on", "t", "y"] {
            assert_eq!(boolean(word), Ok(true), "{word}");
        }
        for word in ["False", "FALSE", "false", "no", "0", "off", "f", "n"] {
            assert_eq!(boolean(word), Ok(false), "{word}");
        }
        for word in ["", "2", "maybe", "photo.jpg"] {
            assert!(boolean(word).is_err(), "{word}");
        }
    }
}
