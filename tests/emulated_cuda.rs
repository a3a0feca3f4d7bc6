//! What a GPU runs, on a CUDA device that the CPU emulates (`emulated_cuda/device.cpp`): nothing reads the device's memory from outside of
//! libtorch's operators, no operator gets tensors of two devices, and what comes out is what the CPU's own kernels give. How a real GPU's
//! kernels compute, and how fast, is not seen here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use odh::config::zoo;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the libtorch that this very program runs with.
fn libtorch() -> PathBuf {
    odh::net::shim::init().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let library =
        maps.lines().find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.ends_with("/libtorch_cpu.so")));
    Path::new(library.expect("libtorch_cpu.so is loaded")).parent().unwrap().to_path_buf()
}

fn compile(compiler: &str, args: &[&str], source: &str, to: &Path) {
    let made = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(to).arg(root().join(source)).args(args).output();
    let made = made.unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(made.status.success(), "{source}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A machine whose driver and CUDA half of libtorch are the emulated ones.
struct Machine(TempDir);

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let (theirs, ours) = (libtorch(), folder.path().join("torch/lib"));
        fs::create_dir_all(&ours).unwrap();
        for library in fs::read_dir(&theirs).unwrap() {
            let name = library.unwrap().file_name();
            if !name.to_string_lossy().contains("cuda") {
                symlink(theirs.join(&name), ours.join(name)).unwrap();
            }
        }
        // Where the wheels' libtorch looks for what it links to.
        let nvidia = theirs.join("../../nvidia");
        if nvidia.exists() {
            symlink(nvidia.canonicalize().unwrap(), folder.path().join("nvidia")).unwrap();
        }
        compile("cc", &[], "tests/emulated_cuda/driver.c", &ours.join("libcuda.so.1"));
        let text = |path: PathBuf| path.to_str().unwrap().to_string();
        let include = theirs.parent().unwrap().join("include");
        let args = [
            "-std=c++17".to_string(),
            format!("-I{}", text(include.clone())),
            format!("-I{}", text(include.join("torch/csrc/api/include"))),
            format!("-L{}", text(theirs)),
            "-ltorch_cpu".to_string(),
            "-lc10".to_string(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        compile("c++", &args, "tests/emulated_cuda/device.cpp", &ours.join("libtorch_cuda.so"));
        Machine(folder)
    }

    /// What `odh` says on both outputs.
    fn odh(&self, project: &Path, args: &[&str]) -> String {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("odh"));
        let ran =
            command.current_dir(project).env("LD_LIBRARY_PATH", self.0.path().join("torch/lib")).args(args).output().unwrap();
        let said = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(ran.status.success(), "odh {args:?}: {}: {said}", ran.status);
        said
    }

    /// A project with records of a few sample pictures and `config` for them.
    fn project(&self, config: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs::create_dir(&images).unwrap();
        let mut samples: Vec<PathBuf> = fs::read_dir(root().join("images")).unwrap().map(|e| e.unwrap().path()).collect();
        samples.sort();
        for file in &samples[..12] {
            fs::copy(file, images.join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(root().join("label_map.pbtxt"), folder.path().join("label_map.pbtxt")).unwrap();
        fs::write(folder.path().join("small.config"), config).unwrap();
        self.odh(folder.path(), &["tfgen"]);
        folder
    }

    /// Trains `project` up to `step` on `device`: what was said.
    fn train(&self, project: &Path, device: &str, step: &str, evaluate: &str) -> String {
        let start =
            ["train", "--pipeline_config", "small.config", "--fine_tune_checkpoint", "none", "--seed", "5", "--device", device];
        self.odh(project, &[&start[..], &["-s", step, "-n", step, "-e", evaluate]].concat())
    }

    /// File, class, score and box of what is found in the pictures, the weakest too.
    fn detect(&self, project: &Path, model: &str, device: &str) -> Vec<(String, Vec<f64>)> {
        self.odh(
            project,
            &["detect", "--model", model, "--device", device, "--min_score", "0.01", "--output_dir", "found", "images"],
        );
        let text = fs::read_to_string(project.join("found/detections.csv")).unwrap();
        let numbers = |row: &str| row.split(',').filter_map(|field| field.parse().ok()).collect();
        text.lines().skip(1).map(|row| (row.split(',').next().unwrap().to_string(), numbers(row))).collect()
    }
}

/// The losses of the first two steps.
fn losses(said: &str) -> [f64; 2] {
    [1, 2].map(|step| {
        let line = said.lines().find(|line| line.starts_with(&format!("step {step}/2 loss ")));
        line.unwrap_or_else(|| panic!("no step {step}: {said}")).split(' ').nth(3).unwrap().parse().unwrap()
    })
}

/// Trains on both devices and holds them side by side, then runs on the emulated one what that has exported.
fn trains_as_on_the_cpu(machine: &Machine, name: &str, config: &str) {
    let on_cpu = machine.project(config);
    let cpu = losses(&machine.train(on_cpu.path(), "cpu", "2", "False"));
    let project = machine.project(config);
    let project = project.path();
    let cuda = losses(&machine.train(project, "cuda", "2", "False"));
    let apart = [0, 1].map(|step: usize| (cpu[step] - cuda[step]).abs() / cpu[step]);
    // Hard examples and proposals that are nearly equal are chosen otherwise after an update that differs in its last digits.
    assert!(cpu[0] > 0.1 && apart[0] <= 1e-3 && apart[1] <= 0.05, "{name}: losses {cpu:?} on the CPU, {cuda:?} on the device");

    // What goes on has its optimizer's slots from a checkpoint.
    let said = machine.train(project, "cuda", "3", "True");
    assert!(said.contains("on cuda:0") && said.contains("mAP@0.5"), "{name}: {said}");
    let log = fs::read_to_string(project.join("process.log")).unwrap();
    assert!(log.contains("GiB, GPU "), "{name}: {log}");

    let exported = |file: &str| format!("export_dir/small/{file}");
    let expected = machine.detect(project, &exported(""), "cpu");
    assert!(expected.len() > 100, "{name}: {} detections", expected.len());
    for file in ["", "model.torchscript.pt"] {
        let found = machine.detect(project, &exported(file), "cuda");
        let missing = |these: &[(String, Vec<f64>)], those: &[(String, Vec<f64>)]| {
            let near = |a: &[f64], b: &[f64]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-3 * b.abs().max(1.0))
            };
            these.iter().filter(|(picture, row)| !those.iter().any(|other| other.0 == *picture && near(&other.1, row))).count()
        };
        // A model that has learnt nothing has many scores that are nearly equal; a suppression may go the other way.
        let parted = [missing(&expected, &found), missing(&found, &expected)];
        assert!(
            parted.iter().all(|n| n * 100 <= expected.len()),
            "{name} {file:?}: {parted:?} of {} and {}",
            expected.len(),
            found.len()
        );
    }
}

/// A two-stage zoo config for small pictures and with few proposals.
fn small(name: &str) -> String {
    let mut text = zoo::resolve(name).unwrap().built_in_config().to_string();
    for (from, to) in [
        ("min_dimension: 600", "min_dimension: 128"),
        ("max_dimension: 1024", "max_dimension: 160"),
        ("first_stage_max_proposals: 300", "first_stage_max_proposals: 64"),
    ] {
        assert!(text.contains(from), "{name}: no `{from}`");
        text = text.replace(from, to);
    }
    text
}

#[test]
fn an_emulated_cuda_device_trains_evaluates_and_detects_as_the_cpu_does() {
    let machine = Machine::new();
    let ssd = fs::read_to_string(root().join("tests/fixtures/tiny.config")).unwrap();
    // The masks of dropout are other ones on another device.
    assert!(ssd.contains("use_dropout: true"));
    trains_as_on_the_cpu(&machine, "SSD", &ssd.replace("use_dropout: true", "use_dropout: false"));
    trains_as_on_the_cpu(&machine, "Faster R-CNN", &small("faster_rcnn_inception_v2_coco_2018_01_28"));
    // R-FCN's second stage, on a backbone that is quick.
    let rfcn = small("rfcn_resnet101_coco_2018_01_28").replace("faster_rcnn_resnet101", "faster_rcnn_inception_v2");
    trains_as_on_the_cpu(&machine, "R-FCN", &rfcn);
}
