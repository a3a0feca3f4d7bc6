//! Puts a TorchScript module together: parameters, and methods as source (pytorch.org/docs/stable/jit_language_reference.html).
//!
//! TorchScript takes enumerations as their numbers: of the types, 0 is uint8, 4 int64, 6 float32 and 11 bool; of the memory formats, 2 is
//! channels-last.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, Result};
use tch::Tensor;

use crate::net::shim::{self, Script};

/// The class of the module.
const CLASS: &str = "__torch__.Detector";
/// What readers may ask a file for.
const METADATA: &str = "def metadata(self) -> str:\n    return self.facts\n";

/// A module in the making.
#[derive(Debug, Default)]
pub struct Source {
    parameters: Vec<(String, Tensor)>,
    names: HashSet<String>,
    methods: BTreeSet<String>,
}

impl Source {
    /// No parameters, no methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds numbers, and says how methods call them: `self.NAME`.
    ///
    /// Four sides are a convolution's; they get the memory layout that the maps have.
    pub fn parameter(&mut self, name: &str, dims: &[i64], values: &[f32]) -> Result<String> {
        assert!(dims.iter().product::<i64>() == values.len() as i64, "{name} of shape {dims:?} has {} values", values.len());
        let mut value = Tensor::from_slice(values).f_view(dims)?;
        if dims.len() == 4 {
            value = shim::channels_last(&value)?;
        }
        let name = unique(&mut self.names, name);
        let typed = format!("self.{name}");
        self.parameters.push((name, value));
        Ok(typed)
    }

    /// Adds a method; the same text twice is one.
    ///
    /// * `text`: a `def` with its body.
    pub fn method(&mut self, text: impl Into<String>) {
        self.methods.insert(text.into());
    }

    /// Compiles the module.
    ///
    /// * `metadata`: what the method `metadata` says.
    ///
    /// # Errors
    /// If libtorch does not take the source.
    pub fn finish(mut self, metadata: &str) -> Result<Script> {
        self.method(METADATA);
        let mut script = Script::new(CLASS)?;
        script.add_text("facts", metadata)?;
        for (name, value) in &self.parameters {
            script.add_parameter(name, value)?;
        }
        let text: String = self.methods.iter().map(String::as_str).collect();
        script.define(&text).context("libtorch does not take the TorchScript source; this is a bug in odh")?;
        Ok(script)
    }
}

/// A TensorFlow name as an identifier that `taken` does not have yet.
pub fn unique(taken: &mut HashSet<String>, name: &str) -> String {
    let mut plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !plain.starts_with(|c: char| c.is_ascii_alphabetic()) {
        plain.insert(0, 'n');
    }
    let mut candidate = plain.clone();
    let mut count = 0;
    while !taken.insert(candidate.clone()) {
        count += 1;
        candidate = format!("{plain}_{count}");
    }
    candidate
}

/// A number as source, to the last bit.
pub fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "float(\"inf\")".to_string(),
        f64::NEG_INFINITY => "float(\"-inf\")".to_string(),
        value => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_identifiers_and_no_two_are_the_same() {
        let mut taken = HashSet::new();
        assert_eq!(unique(&mut taken, "a/b-c"), "a_b_c");
        assert_eq!(unique(&mut taken, "a_b/c"), "a_b_c_1");
        assert_eq!(unique(&mut taken, "a_b_c_1"), "a_b_c_1_1");
        assert_eq!(unique(&mut taken, "1x1"), "n1x1");
    }

    #[test]
    fn numbers_keep_their_last_bit() {
        for value in [0.1, 1e-8, f64::from(1e-8f32), 2.0 / 255.0, -1.5, 1e30] {
            assert_eq!(number(value).parse::<f64>().unwrap(), value);
        }
        assert_eq!(number(6.0), "6.0");
    }
}
