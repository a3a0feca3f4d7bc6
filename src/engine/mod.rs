//! Training and evaluation.

pub mod checkpoint;
pub mod detect;
pub mod device;
pub mod eval;
pub mod eval_report;
pub mod exported;
pub mod learning_rate;
pub mod loaded;
pub mod memory;
pub mod model_files;
pub mod optimizer;
pub mod progress;
pub mod train;
