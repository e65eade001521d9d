//! NCCL's functions. The library is looked for by the name that its packages give it, `libnccl.so.2`, which
//! cudarc does not try, and among Python's packages, where PyTorch brings it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;

use crate::error::{Error, Result};
use crate::kernel::nvrtc::python_paths;

/// A `ncclResult_t`, of which newer libraries may have more than cudarc knows.
pub type NcclStatus = c_int;
pub const SUCCESS: NcclStatus = 0;
/// Another rank's process is gone, or the way to it.
pub const REMOTE_ERROR: NcclStatus = 6;
pub const IN_PROGRESS: NcclStatus = 7;

type Stream = *mut c_void;

/// With the prototypes of nccl.h, from 2.18 on.
pub struct Functions {
    pub unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> NcclStatus,
    pub join: unsafe extern "C" fn(
        *mut ncclComm_t,
        c_int,
        ncclUniqueId,
        c_int,
        *mut c_void,
    ) -> NcclStatus,
    pub async_error: unsafe extern "C" fn(ncclComm_t, *mut NcclStatus) -> NcclStatus,
    pub abort: unsafe extern "C" fn(ncclComm_t) -> NcclStatus,
    pub destroy: unsafe extern "C" fn(ncclComm_t) -> NcclStatus,
    pub all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        Stream,
    ) -> NcclStatus,
    pub all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        Stream,
    ) -> NcclStatus,
    pub send: unsafe extern "C" fn(
        *const c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        Stream,
    ) -> NcclStatus,
    pub receive: unsafe extern "C" fn(
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        Stream,
    ) -> NcclStatus,
    error_string: unsafe extern "C" fn(NcclStatus) -> *const c_char,
    last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    /// Keeps their code in memory.
    _library: Library,
}

/// The library of this machine, loaded once.
///
/// # Errors
/// Where there is none, or it is too old.
pub fn nccl() -> Result<&'static Functions> {
    static NCCL: OnceLock<Result<Functions>> = OnceLock::new();
    NCCL.get_or_init(load).as_ref().map_err(Error::clone)
}

fn load() -> Result<Functions> {
    let names = ["libnccl.so.2", "libnccl.so"].map(PathBuf::from).into_iter();
    let wheels =
        || python_paths().into_iter().map(|path| path.join("nvidia/nccl/lib/libnccl.so.2"));
    // SAFETY: the initialisers of NCCL ask nothing of who loads it.
    let open = |path: PathBuf| unsafe { Library::new(path) }.ok();
    // Python is only asked where the system has none.
    let found = names.into_iter().find_map(open).or_else(|| wheels().find_map(open));
    let library = found.ok_or_else(|| {
        Error::failed(
            "a model on several GPUs needs NCCL (libnccl.so.2), which is not on this machine: install \
             it, or name its folder in LD_LIBRARY_PATH",
        )
    })?;
    Functions::of(library).map_err(|error| {
        Error::failed(format!("NCCL is too old ({error}): 2.18 or newer is needed"))
    })
}

impl Functions {
    fn of(library: Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the types are those of nccl.h.
        unsafe {
            Ok(Self {
                unique_id: *library.get(b"ncclGetUniqueId\0")?,
                join: *library.get(b"ncclCommInitRankConfig\0")?,
                async_error: *library.get(b"ncclCommGetAsyncError\0")?,
                abort: *library.get(b"ncclCommAbort\0")?,
                destroy: *library.get(b"ncclCommDestroy\0")?,
                all_reduce: *library.get(b"ncclAllReduce\0")?,
                all_gather: *library.get(b"ncclAllGather\0")?,
                send: *library.get(b"ncclSend\0")?,
                receive: *library.get(b"ncclRecv\0")?,
                error_string: *library.get(b"ncclGetErrorString\0")?,
                last_error: *library.get(b"ncclGetLastError\0")?,
                _library: library,
            })
        }
    }

    /// The library's answer to a call as a result of ours; `doing` begins the message.
    pub fn check(&self, doing: &str, status: NcclStatus) -> Result<()> {
        if matches!(status, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        // SAFETY: both are strings of NCCL's own; the last error is that of this thread.
        let [text, last] = unsafe {
            [(self.error_string)(status), (self.last_error)(std::ptr::null_mut())].map(|text| {
                if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
            })
        };
        Err(Error::failed(format!("{doing}: {text} {last}").trim_end().to_owned()))
    }
}
