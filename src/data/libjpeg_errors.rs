//! What libjpeg says while it decodes: an error unwinds with its text, and of its warnings those are kept that tell of lost pixels.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::mem;

use mozjpeg_sys::{jpeg_common_struct, jpeg_error_mgr, jpeg_std_error};

/// How the warnings begin or end that say that some of the picture was guessed. Others are of things that cost nothing, such as stray bytes behind
/// a scan, which some cameras write.
const LOSSES: [&str; 3] = ["premature end of data segment", "bad Huffman code", "instead of RST"];

thread_local! {
    static LOSS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The first loss that libjpeg told of on this thread since this was asked last.
pub fn take_loss() -> Option<String> {
    LOSS.take()
}

/// For one decompressor.
pub fn manager() -> jpeg_error_mgr {
    // Safety: libjpeg fills in every field of the structure, which is plain numbers and pointers.
    let mut manager: jpeg_error_mgr = unsafe { mem::zeroed() };
    unsafe { jpeg_std_error(&mut manager) };
    manager.error_exit = Some(unwind);
    manager.emit_message = Some(note);
    manager
}

/// No panic hook runs and nothing is printed.
extern "C-unwind" fn unwind(info: &mut jpeg_common_struct) {
    std::panic::resume_unwind(Box::new(text(info)));
}

extern "C-unwind" fn note(info: &mut jpeg_common_struct, level: c_int) {
    // Below 0 are warnings; others tell of progress.
    if level >= 0 {
        return;
    }
    let said = text(info);
    if LOSSES.iter().any(|loss| said.contains(loss)) {
        LOSS.with_borrow_mut(|first| {
            first.get_or_insert(said);
        });
    }
}

/// The message, with its numbers.
fn text(info: &mut jpeg_common_struct) -> String {
    type Bound = unsafe extern "C-unwind" fn(&mut jpeg_common_struct, &[u8; 80]);
    type Format = unsafe extern "C-unwind" fn(&mut jpeg_common_struct, &mut [u8; 80]);
    // Safety: `err` is the manager above.
    let Some(format) = unsafe { info.err.as_ref() }.and_then(|manager| manager.format_message) else {
        return "no reason given".to_string();
    };
    let mut buffer = [0; 80];
    // Safety: libjpeg writes a text that ends within the buffer, which the binding's type has as read only.
    unsafe { mem::transmute::<Bound, Format>(format)(info, &mut buffer) };
    CStr::from_bytes_until_nul(&buffer).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}
