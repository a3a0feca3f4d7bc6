//! `odh`: from a folder of labelled pictures to a trained, evaluated, exported object detector.
//!
//! ARCHITECTURE.md has the layers and what is kept throughout.

pub mod backbones;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod detection;
pub mod engine;
pub mod exit;
pub mod export;
pub mod flags;
pub mod formats;
pub mod interrupt;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod models;
pub mod net;
pub mod prompt;
pub mod proto;
pub mod runtime;
#[cfg(test)]
pub mod testing;
pub mod wording;
