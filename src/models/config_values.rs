//! Values of a config that are checked alike wherever they stand; errors name the field.

use anyhow::{Context, Result, ensure};

/// A number of something.
///
/// # Errors
/// If it is below 1.
pub fn positive(field: &str, value: i32) -> Result<usize> {
    usize::try_from(value).ok().filter(|&n| n > 0).with_context(|| format!("{field}: {value} must be at least 1"))
}

/// That a predictor gives boxes of four numbers; the field of the message `field` is named.
///
/// # Errors
/// If it gives others.
pub fn box_code_size(field: &str, size: i32) -> Result<()> {
    ensure!(size == 4, "{field}.box_code_size: {size} is not supported; boxes have 4 numbers");
    Ok(())
}

/// A threshold of overlap, as every suppression takes it, in whichever runtime.
///
/// # Errors
/// If it is beyond 0 to 1; `field` is named.
pub fn overlap(field: &str, threshold: f32) -> Result<f32> {
    ensure!((0.0..=1.0).contains(&threshold), "{field}: {threshold} must be from 0 to 1");
    Ok(threshold)
}

/// What logits are divided by.
///
/// # Errors
/// If that makes no numbers of them; the field of the message `field` is named.
pub fn logit_scale(field: &str, scale: f32) -> Result<f64> {
    ensure!(
        scale != 0.0 && scale.is_finite(),
        "{field}.logit_scale: {scale}; logits are divided by it, so it must be another number than 0"
    );
    Ok(scale.into())
}

/// What dropout keeps of the values that it sees.
///
/// # Errors
/// If it is no share, or nothing; the field of the message `field` is named.
pub fn kept_by_dropout(field: &str, share: f32) -> Result<f64> {
    ensure!(share > 0.0 && share <= 1.0, "{field}.dropout_keep_probability: {share} must be above 0 and at most 1");
    Ok(share.into())
}
