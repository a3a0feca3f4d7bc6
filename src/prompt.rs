//! Questions to a person at a terminal; each has a flag that answers it where there is none.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use crate::exit;

/// Whether someone can be asked: a terminal to read from and one to write to.
pub fn possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on the terminal until `accept` takes the answer, which is given without its white space around.
///
/// * `flag`: what to give on the command line in place of an answer, such as `--model NAME`.
///
/// # Errors
/// If there is no terminal or the input ends (exit code 2, the flag is named).
pub fn ask<T>(question: &str, flag: &str, accept: impl FnMut(&str) -> Result<T>) -> Result<T> {
    if !possible() {
        return Err(exit::usage(format!("{flag} is needed (there is no terminal to ask on)")));
    }
    ask_on(&mut io::stdin().lock(), &mut io::stderr(), question, flag, accept)
}

/// A yes-or-no question; an empty answer means `default`.
///
/// # Errors
/// As [`ask`].
pub fn confirm(question: &str, flag: &str, default: bool) -> Result<bool> {
    let hint = if default { "[Y/n]" } else { "[y/N]" };
    ask(&format!("{question} {hint} "), flag, |answer| {
        if answer.is_empty() {
            return Ok(default);
        }
        crate::flags::boolean(answer).map_err(anyhow::Error::msg)
    })
}

/// [`ask`] with the terminal given.
///
/// # Errors
/// If the input ends before an answer was taken.
pub fn ask_on<T>(
    input: &mut impl BufRead,
    output: &mut impl Write,
    question: &str,
    flag: &str,
    mut accept: impl FnMut(&str) -> Result<T>,
) -> Result<T> {
    loop {
        write!(output, "{question}").and_then(|()| output.flush()).context("cannot ask on the terminal")?;
        let mut answer = String::new();
        let read = input.read_line(&mut answer).context("cannot read the answer")?;
        if read == 0 {
            let _ = writeln!(output);
            return Err(exit::usage(format!("no answer was given; {flag} answers it on the command line")));
        }
        match accept(answer.trim()) {
            Ok(value) => return Ok(value),
            Err(e) => writeln!(output, "{e:#}").context("cannot ask on the terminal")?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_again_until_the_answer_is_taken() {
        let mut shown = Vec::new();
        let steps: u32 = ask_on(&mut &b"many\n 300 \n"[..], &mut shown, "Steps: ", "--num_steps N", |answer| {
            answer.parse().context("a number, please")
        })
        .unwrap();
        assert_eq!(steps, 300);
        assert_eq!(String::from_utf8(shown).unwrap().matches("Steps: ").count(), 2);
    }

    #[test]
    fn the_end_of_the_input_names_the_flag() {
        let error = ask_on(&mut &b""[..], &mut Vec::new(), "Steps: ", "--num_steps N", |a| Ok(a.to_string())).unwrap_err();
        assert!(error.to_string().contains("--num_steps N"));
        assert_eq!(exit::code(&error), 2);
    }
}
