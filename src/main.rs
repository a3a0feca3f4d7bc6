//! Parse, init logging, run, print the error chain, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    odh::cli::main(std::env::args_os().collect())
}
