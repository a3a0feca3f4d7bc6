//! Runs model.torchscript.pt, by what the file alone says.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};
use zip::ZipArchive;

use super::file_kind::INSTEAD;
use super::metadata::Metadata;
use super::outputs::{self, Output};
use crate::detection::boxes::Detections;
use crate::net::host::host_values;
use crate::net::shim::{self, Script};

/// An exported model, ready to run.
#[derive(Debug)]
pub struct TorchScriptModel {
    script: Script,
    device: Device,
    metadata: Metadata,
}

impl TorchScriptModel {
    /// Reads a file that `odh export` wrote.
    ///
    /// # Errors
    /// If it is damaged, or anything else than such a file; the message says what, and what can be run instead.
    pub fn open(path: &Path, device: Device) -> Result<Self> {
        let shown = path.display();
        is_torchscript(path).with_context(|| format!("`{shown}` cannot be run"))?;
        shim::init()?;
        let script =
            Script::load(path, device).with_context(|| format!("`{shown}` is not a TorchScript file that libtorch can load"))?;
        let said = script.ask("metadata").ok().flatten();
        let said = said.with_context(|| {
            format!("`{shown}` is TorchScript, but not of `odh export`, and what it takes and gives is unknown; {INSTEAD}")
        })?;
        let metadata: Metadata =
            serde_json::from_str(&said).with_context(|| format!("`{shown}`: its metadata is not odh's: {said:.80}"))?;
        Ok(Self { script, device, metadata })
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What is in each picture.
    ///
    /// * `pictures`: uint8 `[N, height, width, 3]`, RGB, of any size; on any device.
    ///
    /// # Errors
    /// If the tensor is another, or the file does not give detections for it.
    pub fn detect(&self, pictures: &Tensor) -> Result<Vec<Detections>> {
        let size = pictures.size();
        ensure!(
            pictures.kind() == Kind::Uint8 && size.len() == 4 && size[3] == 3,
            "a file takes uint8 [N, height, width, 3], not {:?} {size:?}",
            pictures.kind()
        );
        let found = self.script.forward::<4>(&pictures.f_to_device(self.device)?)?;
        let [boxes, scores, classes, counts] = found.map(|x| anyhow::Ok(Output { shape: x.size(), values: host_values(&x)? }));
        outputs::detections(size[0] as usize, [boxes?, scores?, classes?, counts?])
    }
}

/// Whether a file is TorchScript, and undamaged: libtorch looks at no checksum, and what it does not expect may end the program.
fn is_torchscript(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let damaged = "it is damaged, or was not copied as a whole";
    let mut archive = ZipArchive::new(io::BufReader::new(file)).context(damaged)?;
    let mut code = false;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).context(damaged)?;
        code |= entry.name().is_ok_and(|name| name.contains("/code/"));
        // Reading an entry to its end compares its checksum.
        io::copy(&mut entry, &mut io::sink()).context(damaged)?;
    }
    ensure!(code, "it is an archive without TorchScript's code, such as torch.save writes of weights alone; {INSTEAD}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_whole_archive_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.pt");
        std::fs::write(&path, b"PK\x03\x04 cut off").unwrap();
        let error = format!("{:#}", TorchScriptModel::open(&path, Device::Cpu).unwrap_err());
        assert!(error.contains("cut.pt") && error.contains("damaged"), "{error}");
    }

    #[test]
    fn torchscript_of_others_is_not_run() {
        shim::init().unwrap();
        let mut script = Script::new("__torch__.Other").unwrap();
        script.define("def forward(self, x):\n    return x\n").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.pt");
        script.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let error = format!("{:#}", TorchScriptModel::open(&path, Device::Cpu).unwrap_err());
        assert!(error.contains("not of `odh export`"), "{error}");
    }
}
