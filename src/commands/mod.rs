//! One file per subcommand: its arguments and `run`; and what several share.

mod chosen;
pub mod detect;
pub mod eval;
pub mod export;
pub mod models;
pub mod tfgen;
pub mod train;
mod zoo_args;
