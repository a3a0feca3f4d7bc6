//! The models by name, and where their pretrained weights are.
