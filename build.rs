//! Compiles the protobuf definitions and the C++ shim, and makes the binary find libtorch where it was built and beside itself.

use std::path::{Path, PathBuf};
use std::{env, fs};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    compile_protos()?;
    let lib = env::var("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .map_err(|_| "torch-sys did not say where libtorch is: run `make libtorch` first (or set LIBTORCH)")?;
    compile_shim(&lib)?;
    link(&lib);
    Ok(())
}

/// Every file under proto/, with a descriptor set for the text format (`config/`).
fn compile_protos() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let mut files = Vec::new();
    collect(Path::new("proto"), "proto", &mut files)?;
    files.sort();
    let set = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&set))?;
    prost_build::Config::new()
        .include_file("protos.rs")
        .bytes(["."])
        // Sorted maps, so that the same example is the same bytes.
        .btree_map(["."])
        .compile_fds(set)?;
    Ok(())
}

/// Libtorch calls that tch has no binding for, and the kernels, once for each instruction set: the program chooses when it starts.
fn compile_shim(lib: &Path) -> Result<()> {
    println!("cargo:rerun-if-changed=src/net/shim");
    let folder = Path::new("src/net/shim");
    let include = lib.parent().ok_or("libtorch's lib folder has no parent")?.join("include");
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").pic(true).warnings(false);
        build
    };
    // The linker takes what it needs from left to right: the callers come first.
    build()
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file(folder.join("basics.cpp"))
        .file(folder.join("crops.cpp"))
        .file(folder.join("ops.cpp"))
        .file(folder.join("optimizer.cpp"))
        .file(folder.join("script.cpp"))
        .file(folder.join("start.cpp"))
        .compile("odh_shim");
    // Without fused multiply-adds: these sums round as TensorFlow's do.
    build().opt_level(3).flag("-ffp-contract=off").flag("-Wno-psabi").file(folder.join("moments.cpp")).compile("odh_moments");
    let mut sets: Vec<(&str, &[&str])> = vec![("odh_baseline", &[])];
    if env::var("CARGO_CFG_TARGET_ARCH")? == "x86_64" {
        sets.push(("odh_avx2", &["-mavx2", "-mfma"]));
        sets.push(("odh_avx512", &["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]));
    }
    for (name, flags) in sets {
        // Optimized in a debug build too: these loops are the training step.
        let mut kernels = build();
        kernels.opt_level(3).flag("-fno-math-errno").define("ODH_ISA", name).file(folder.join("kernels.cpp"));
        for flag in flags {
            kernels.flag(flag);
        }
        kernels.compile(name);
    }
    Ok(())
}

/// Where the program looks for libtorch: where it was built, then beside itself (a copy of `.libtorch` named `libtorch`, or PyTorch's own
/// libtorch folder), then in the checkout that holds `target/release`. RUNPATH, not RPATH, so that LD_LIBRARY_PATH comes before all.
fn link(lib: &Path) {
    for arg in [
        "-Wl,--enable-new-dtags".to_string(),
        format!("-Wl,-rpath,{}", lib.display()),
        "-Wl,-rpath,$ORIGIN/libtorch/torch/lib".to_string(),
        "-Wl,-rpath,$ORIGIN/libtorch/lib".to_string(),
        "-Wl,-rpath,$ORIGIN/../../.libtorch/torch/lib".to_string(),
    ] {
        println!("cargo:rustc-link-arg={arg}");
    }
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    Ok(())
}
