//! `odh detect`.
