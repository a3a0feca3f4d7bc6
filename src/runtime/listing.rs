//! What the export.json beside an exported file says of it.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::formats::hexadecimal::hexadecimal;

/// The list's name.
pub const EXPORT_JSON: &str = "export.json";

#[derive(Deserialize)]
struct Listing {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    sha256: String,
}

/// Whether a list beside `file` has another hash than that of `bytes`, its present ones; false where none speaks of it.
pub fn was_changed(file: &Path, bytes: &[u8]) -> bool {
    let json = std::fs::read(file.with_file_name(EXPORT_JSON)).ok();
    let listing = json.and_then(|json| serde_json::from_slice::<Listing>(&json).ok());
    let name = file.file_name().and_then(|name| name.to_str());
    let entry = listing.and_then(|listing| listing.files.into_iter().find(|entry| Some(entry.path.as_str()) == name));
    entry.is_some_and(|entry| entry.sha256 != hexadecimal(&Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_changed_where_its_own_entry_has_another_hash() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        assert!(!was_changed(&file, b"abc"), "there is no list");
        // FIPS 180-2's first example.
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let json = format!(r#"{{"model": "m", "files": [{{"path": "model.onnx", "bytes": 3, "sha256": "{hash}"}}]}}"#);
        std::fs::write(folder.path().join(EXPORT_JSON), json).unwrap();
        assert!(!was_changed(&file, b"abc"));
        assert!(was_changed(&file, b"abd"));
        assert!(!was_changed(&folder.path().join("other.onnx"), b"abd"));
    }
}
