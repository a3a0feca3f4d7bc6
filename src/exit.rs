//! Failures that end the process with a code of their own: 2 for wrong usage, 3 for an export that drifts, 130 for Ctrl-C, 1 for all else.

use std::fmt;

/// A failure with its exit code.
#[derive(Debug)]
struct Coded {
    code: u8,
    message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// What was typed cannot be meant, or something was not typed that is needed: exit code 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 2, message: message.into() }.into()
}

/// An export's files do not find what the model finds: exit code 3.
pub fn drift(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 3, message: message.into() }.into()
}

/// The user stopped it, and all is saved: exit code 130.
pub fn interrupted(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 130, message: message.into() }.into()
}

/// The exit code of a failure, wherever in its chain the code stands.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(1, |coded| coded.code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_is_found_below_context() {
        let error = Err::<(), _>(usage("no --model")).context("cannot train").unwrap_err();
        assert_eq!(code(&error), 2);
        assert_eq!(format!("{error:#}"), "cannot train: no --model");
        assert_eq!(code(&interrupted("stopped")), 130);
        assert_eq!(code(&anyhow::anyhow!("disk full")), 1);
    }
}
