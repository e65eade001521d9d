//! Names for stretches of time, which NVIDIA's profilers show (NVTX); nothing where its library is not
//! installed.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

use libloading::Library;

/// A stretch of this thread's time, until it is dropped.
pub struct Range(());

/// Begins a stretch called `name`, if there is somebody to tell.
pub fn range(name: &str) -> Option<Range> {
    let name = CString::new(name).ok()?;
    type Push = unsafe extern "C" fn(*const c_char) -> c_int;
    // SAFETY: the function has this type and copies the name.
    unsafe { library()?.get::<Push>(b"nvtxRangePushA\0").ok()?(name.as_ptr()) };
    Some(Range(()))
}

impl Drop for Range {
    fn drop(&mut self) {
        type Pop = unsafe extern "C" fn() -> c_int;
        // SAFETY: the function has this type; what was pushed by this thread is popped once.
        if let Some(library) = library()
            && let Ok(pop) = unsafe { library.get::<Pop>(b"nvtxRangePop\0") }
        {
            unsafe { pop() };
        }
    }
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let names = ["libnvToolsExt.so.1", "libnvToolsExt.so"];
    // SAFETY: the library's initialisers ask nothing of us.
    let open = || names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    LIBRARY.get_or_init(open).as_ref()
}
