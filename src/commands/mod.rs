//! One file per subcommand: its arguments and `run`.

pub mod detect;
pub mod eval;
pub mod export;
pub mod models;
pub mod tfgen;
pub mod train;
