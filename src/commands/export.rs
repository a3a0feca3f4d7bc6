//! `odh export`.
