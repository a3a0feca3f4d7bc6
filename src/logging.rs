//! process.log and the terminal.
