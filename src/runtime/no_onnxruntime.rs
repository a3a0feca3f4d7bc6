//! Stands for `onnxruntime.rs` in a program that was built without the feature `onnx`: ONNX files are known, and not run.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Result, bail};

use super::onnx::LibrarySearch;
use super::outputs::Output;

/// There is none.
#[derive(Debug, Clone)]
pub struct Runtime(Infallible);

/// There is none.
#[derive(Debug)]
pub struct Session(Infallible);

/// Finds no library.
///
/// # Errors
/// Always.
pub fn load(_: &LibrarySearch) -> Result<Runtime> {
    bail!("this odh was built without the feature `onnx`, which runs ONNX files; build it without `--no-default-features`")
}

impl Runtime {
    pub fn name(&self) -> String {
        match self.0 {}
    }

    /// # Errors
    /// None: there is nothing to call it on.
    pub fn session(&self, _: &Path, _: usize) -> Result<Session> {
        match self.0 {}
    }
}

impl Session {
    /// # Errors
    /// None: there is nothing to call it on.
    pub fn run(&mut self, _: &str, _: &[String; 4], _: [i64; 4], _: &[u8]) -> Result<[Output; 4]> {
        match self.0 {}
    }
}
