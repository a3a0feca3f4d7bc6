//! hyperparams
