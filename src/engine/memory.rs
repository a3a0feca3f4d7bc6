//! How much memory there is, and how much this process has taken at most.

use anyhow::{Result, ensure};
use tch::Device;

use crate::net::graph::Variable;
use crate::net::shim;

/// Peak memory since the program began, e.g. `1.61 GiB` or `1.61 GiB, GPU 9.80 GiB`; `unknown` where the system does not tell.
///
/// The first is the resident memory of the whole process, the second what tensors took on `device`.
pub fn peak(device: Device) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let host = peak_resident(&status).map_or("unknown".to_string(), gib);
    let Device::Cuda(index) = device else { return host };
    shim::cuda_memory_peak(index).map_or(host.clone(), |bytes| format!("{host}, GPU {}", gib(bytes)))
}

/// Makes sure that a model's variables can be in this machine's memory: where they are not, the program would be ended without a word.
///
/// # Errors
/// If they cannot.
pub fn ensure_fit(variables: &[Variable]) -> Result<()> {
    let Some(there) = in_line(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") else { return Ok(()) };
    let bytes = |variable: &Variable| variable.shape.iter().fold(4.0, |product, &side| product * side as f64);
    let largest = variables.iter().max_by(|a, b| bytes(a).total_cmp(&bytes(b)));
    let needed: f64 = variables.iter().map(bytes).sum();
    ensure!(
        needed <= there as f64,
        "the model's variables take {:.0} GiB, and this machine has {} of memory; the largest is `{}`, {:?}: classes that the label map's ids \
         run up to, or sizes in the pipeline config, are too many",
        needed / f64::from(1 << 30),
        gib(there),
        largest.map_or("", |variable| &variable.name),
        largest.map_or(&[][..], |variable| &variable.shape),
    );
    Ok(())
}

/// Bytes of the line `VmHWM` of `/proc/self/status`.
fn peak_resident(status: &str) -> Option<u64> {
    in_line(status, "VmHWM:")
}

/// Bytes of a line of one of `/proc`'s files.
fn in_line(text: &str, start: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(start))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::graph::{Initializer, Regularizer, VariableKind};

    #[test]
    fn the_peak_is_the_kernel_s_own_figure() {
        let status = "Name:\todh\nVmPeak:\t 9999999 kB\nVmHWM:\t 1688207 kB\nVmRSS:\t 1000 kB\n";
        assert_eq!(peak_resident(status), Some(1_688_207 * 1024));
        assert_eq!(gib(1_688_207 * 1024), "1.61 GiB");
        assert_eq!(peak_resident(""), None);
    }

    #[test]
    fn variables_that_no_machine_holds_are_refused() {
        let of = |shape: &[i64]| Variable {
            name: "a/weights".to_string(),
            shape: shape.to_vec(),
            kind: VariableKind::Vector,
            trainable: true,
            initializer: Initializer::Constant(0.0),
            regularizer: Regularizer::None,
        };
        assert!(ensure_fit(&[of(&[3, 3, 64, 64])]).is_ok());
        let error = ensure_fit(&[of(&[10]), of(&[1 << 20, 1 << 20, 1 << 20])]).unwrap_err().to_string();
        assert!(error.contains("a/weights") && error.contains("label map"), "{error}");
    }

    #[test]
    fn memory_that_was_taken_shows() {
        let taken_at_most = || peak(Device::Cpu).strip_suffix(" GiB").unwrap().parse::<f64>().unwrap();
        let before = taken_at_most();
        let mut taken = Vec::new();
        // Other tests may have taken more before, and give some back meanwhile.
        while taken_at_most() < before + 0.05 {
            assert!(taken.len() < 128, "8 GiB more, and the peak is {before} GiB still");
            taken.push(std::hint::black_box(vec![1_u8; 64 << 20]));
        }
    }
}
