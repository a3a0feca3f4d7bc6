//! target_assigner
