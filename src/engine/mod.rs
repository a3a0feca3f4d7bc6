//! Training and evaluation.

pub mod checkpoint;
pub mod detect;
pub mod eval;
pub mod eval_report;
pub mod learning_rate;
pub mod model_files;
pub mod optimizer;
pub mod train;
