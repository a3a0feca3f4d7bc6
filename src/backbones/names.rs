//! What the backbones of a table are called.

use anyhow::{Context, Result};

/// The names of a table, in its order.
pub const fn names<T, const N: usize>(table: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = table[i].0;
        i += 1;
    }
    names
}

/// The backbone of this name in a table.
///
/// # Errors
/// If there is none; the message lists those that there are.
pub fn named<'a, T>(table: &'a [(&'static str, T)], name: &str) -> Result<&'a T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, backbone)| backbone).with_context(|| {
        let built: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        format!("`{name}` is not built; the built ones are {}", built.join(", "))
    })
}
