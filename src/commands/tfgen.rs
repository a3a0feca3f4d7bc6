//! `odh tfgen`.
