//! learning_rate
