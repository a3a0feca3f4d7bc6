//! How much memory this process has taken at most.

use tch::Device;

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

/// Bytes of the line `VmHWM` of `/proc/self/status`.
fn peak_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_kernel_s_own_figure() {
        let status = "Name:\todh\nVmPeak:\t 9999999 kB\nVmHWM:\t 1688207 kB\nVmRSS:\t 1000 kB\n";
        assert_eq!(peak_resident(status), Some(1_688_207 * 1024));
        assert_eq!(gib(1_688_207 * 1024), "1.61 GiB");
        assert_eq!(peak_resident(""), None);
    }

    #[test]
    fn memory_that_was_taken_shows() {
        let taken = std::hint::black_box(vec![1_u8; 64 << 20]);
        let figure = peak(Device::Cpu);
        let gib: f64 = figure.strip_suffix(" GiB").unwrap().parse().unwrap();
        assert!(gib >= 0.06 && taken.iter().all(|byte| *byte == 1), "{figure}");
    }
}
