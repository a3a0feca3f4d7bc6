//! `odh eval`.
