//! `odh train`.
