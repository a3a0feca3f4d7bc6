//! Failures that end the process with a code of their own: 2 for wrong usage, 3 for an export that drifts, 130 for Ctrl-C, 1 for all else;
//! and what people are told of them.

use std::fmt;

/// A failure with its exit code.
#[derive(Debug)]
struct Coded {
    code: u8,
    message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// What was typed cannot be meant, or something was not typed that is needed: exit code 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 2, message: message.into() }.into()
}

/// An export's files do not find what the model finds: exit code 3.
pub fn drift(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 3, message: message.into() }.into()
}

/// The user stopped it, and all is saved: exit code 130.
pub fn interrupted(message: impl Into<String>) -> anyhow::Error {
    Coded { code: 130, message: message.into() }.into()
}

/// The exit code of a failure, wherever in its chain the code stands.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Coded>()).map_or(1, |coded| coded.code)
}

/// What failed, then each cause, as people are told of it.
pub fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said = String::new();
    let mut told = Vec::new();
    for cause in error.chain() {
        let cause = as_told(&cause.to_string());
        // Some errors repeat their cause in their own words.
        if told.is_empty() || !said.contains(&cause) {
            told.push(cause.clone());
        }
        said = cause;
    }
    told
}

/// What an error says, without libtorch's C++ frames, and with advice where memory ran out.
fn as_told(error: &str) -> String {
    let text = plain(error);
    if let Some(line) = text.lines().find(|line| line.contains("DefaultCPUAllocator")) {
        return format!(
            "{}; a smaller --batch_size in training, or smaller pictures (image_resizer), need less",
            line.trim_end_matches('.')
        );
    }
    // libtorch's own allocator and the driver; cuBLAS and cuDNN.
    let signs = ["out of memory", "STATUS_ALLOC_FAILED"];
    match text.lines().find(|line| signs.iter().any(|sign| line.contains(sign))) {
        Some(line) => format!(
            "{}; a smaller --batch_size needs less in training, and --device cpu nothing of the GPU's; nvidia-smi lists what else uses it",
            line.trim_end_matches('.')
        ),
        None => text.to_string(),
    }
}

/// What libtorch says, without the C++ frames that it may append, and without the source of a TorchScript in which it happened.
fn plain(message: &str) -> &str {
    let text = message.split("\nException raised from ").next().unwrap_or_default().trim_end();
    let within = text.contains("Traceback of TorchScript");
    text.rsplit_once("\nRuntimeError: ").filter(|_| within).map_or(text, |(_, said)| said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_is_found_below_context() {
        let error = Err::<(), _>(usage("no --model")).context("cannot train").unwrap_err();
        assert_eq!(code(&error), 2);
        assert_eq!(format!("{error:#}"), "cannot train: no --model");
        assert_eq!(code(&interrupted("stopped")), 130);
        assert_eq!(code(&anyhow::anyhow!("disk full")), 1);
    }

    #[test]
    fn the_error_chain_says_each_cause_once() {
        let error =
            Err::<(), _>(std::io::Error::other("disk on fire")).context("cannot read a.xml").context("tfgen").unwrap_err();
        assert_eq!(causes(&error), ["tfgen", "cannot read a.xml", "disk on fire"]);
        assert_eq!(causes(&anyhow::anyhow!("a: b").context("c: a: b")), ["c: a: b"]);
    }

    #[test]
    fn libtorchs_message_is_told_without_its_frames() {
        let flat = tch::Tensor::zeros([6], (tch::Kind::Float, tch::Device::Cpu));
        let message = flat.f_view([4, 2]).unwrap_err().to_string();
        assert!(message.contains("frame #"), "{message}");
        assert_eq!(plain(&message), "Internal torch error: shape '[4, 2]' is invalid for input of size 6");
        assert_eq!(plain("as it is"), "as it is");
        let script = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript, serialized code (most recent call \
                      last):\n  File \"code/x.py\", line 9, in detect\n    y = torch.conv2d(x)\n        ~~~ <--- HERE\nRuntimeError: Kernel size";
        assert_eq!(plain(&format!("{script}\nException raised from f at g.cpp:1")), "Kernel size");
    }

    #[test]
    fn an_error_of_libtorch_is_told_without_frames_and_with_advice_where_memory_ran_out() {
        let frames =
            "Exception raised from malloc at CUDACachingAllocator.cpp:1 (most recent call first):\nframe #0: c10::Error\n";
        let told = as_told(&format!("Internal torch error: CUDA out of memory. Tried to allocate 2.00 GiB.\n{frames}"));
        assert!(
            told.starts_with("Internal torch error: CUDA out of memory. Tried to allocate 2.00 GiB; a smaller --batch_size"),
            "{told}"
        );
        let told = as_told(&format!("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere\n{frames}"));
        assert!(told.starts_with("CUDA error: out of memory; a smaller --batch_size"), "{told}");
        assert!(!told.contains('\n'), "{told}");
        let told = as_told("The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory.");
        assert!(told.starts_with("RuntimeError: CUDA out of memory; a smaller --batch_size"), "{told}");
        assert_eq!(as_told(&format!("shapes do not fit:\n[1] and [2]\n{frames}")), "shapes do not fit:\n[1] and [2]");
    }
}
