//! Reads a TorchScript file back before it is handed out: every parameter has the values that were written, and every operator is PyTorch's
//! own.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::Device;

use crate::net::shim::Script;

/// What every file takes and gives.
const SIGNATURE: &str = " self, Tensor image_tensor) -> ((Tensor, Tensor, Tensor, Tensor))";
/// Whose operators every PyTorch has.
const NAMESPACES: &[&str] = &["aten::", "prim::"];

/// Compares the file at `path` with the module it was written from.
///
/// # Errors
/// If it cannot be loaded, or anything differs.
pub fn check(path: &Path, written: &Script) -> Result<()> {
    let shown = path.display();
    let read = Script::load(path, Device::Cpu).with_context(|| format!("cannot read `{shown}` back"))?;
    let names = written.parameters()?;
    ensure!(read.parameters()? == names, "`{shown}` does not have the parameters that were written to it");
    for name in names {
        let (expected, got) = (written.parameter(&name)?, read.parameter(&name)?);
        let same = expected.size() == got.size() && expected.kind() == got.kind() && expected.f_equal(&got)?;
        ensure!(same, "`{shown}`: {name} does not hold what was written; is the disk failing?");
    }
    ensure!(read.ask("metadata")? == written.ask("metadata")?, "`{shown}` does not say what was written to it");
    let (signature, operators) = read.operators("forward")?;
    ensure!(signature.ends_with(SIGNATURE), "`{shown}`: its forward is `{signature}`");
    let (_, expected) = written.operators("forward")?;
    ensure!(operators == expected, "`{shown}` has not the operators that were written to it");
    let foreign = operators.iter().find(|name| !NAMESPACES.iter().any(|space| name.starts_with(space)));
    ensure!(foreign.is_none(), "`{shown}` has {foreign:?}, which is not PyTorch's own");
    Ok(())
}
