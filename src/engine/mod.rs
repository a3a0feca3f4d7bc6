//! Training and evaluation.

pub mod checkpoint;
pub mod eval;
pub mod learning_rate;
pub mod optimizer;
pub mod train;
