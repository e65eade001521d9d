//! NVIDIA's library of collectives, loaded when a model is split over GPUs: sums over all ranks as work of
//! a stream.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t};

use super::driver::Context;
use super::stream::Stream;
use crate::comm::Communicator;
use crate::error::{Error, Result};

/// How a communicator is to be: what NCCL 2.17 and all after it take.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
    clusters: i32,
    least_blocks: i32,
    most_blocks: i32,
    net: *const c_char,
    split_share: i32,
}

impl Config {
    /// Calls return at once: whoever waits can see that another rank has failed.
    fn not_blocking() -> Self {
        const UNDEFINED: i32 = i32::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21700,
            blocking: 0,
            clusters: UNDEFINED,
            least_blocks: UNDEFINED,
            most_blocks: UNDEFINED,
            net: ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// A rank's membership.
pub struct Nccl {
    handle: sys::ncclComm_t,
    aborted: AtomicBool,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time, but for the abort, which may come at any
// time.
unsafe impl Send for Nccl {}
// SAFETY: as above; one rank's thread queues, and others only abort.
unsafe impl Sync for Nccl {}

fn check(doing: &str, result: ncclResult_t) -> Result<()> {
    if matches!(result, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress) {
        return Ok(());
    }
    // SAFETY: both are strings of NCCL's own; the last error is that of this thread.
    let [text, last] = unsafe {
        [sys::ncclGetErrorString(result), sys::ncclGetLastError(ptr::null_mut())].map(|text| {
            if text.is_null() { "".into() } else { CStr::from_ptr(text).to_string_lossy() }
        })
    };
    Err(Error::failed(format!("{doing}: {text} {last}").trim_end().to_owned()))
}

impl Nccl {
    /// Joins the ranks that `comm` leads to, each on the GPU of its `context`. Returns when all have come;
    /// a failure of one of them later ends what the others wait for.
    ///
    /// # Errors
    /// No NCCL on this machine; what it says; a rank that has failed.
    pub fn join(context: &Context, comm: &dyn Communicator) -> Result<Arc<Self>> {
        // SAFETY: loading the library runs its initialisers, which ask nothing of us.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::failed(
                "a model on several GPUs needs NCCL (libnccl.so.2), which is not on this machine",
            ));
        }
        context.bind()?;
        let doing = "cannot join the ranks through NCCL";
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        if comm.rank() == 0 {
            // SAFETY: NCCL writes one id.
            check(doing, unsafe { sys::ncclGetUniqueId(&mut id) })?;
        }
        let words: [u64; 16] = bytemuck::cast(id.internal);
        let of_first: [u64; 16] = comm.all_gather(&words)[..16].try_into().unwrap_or(words);
        comm.leave()?;
        id.internal = bytemuck::cast(of_first);
        let (world, rank) = (comm.world() as i32, comm.rank() as i32);
        let mut handle = ptr::null_mut();
        let mut config = Config::not_blocking();
        // SAFETY: NCCL reads the configuration, whose size it is told, and writes one handle; the context is
        // this thread's.
        let result = unsafe {
            let config = (&raw mut config).cast();
            sys::ncclCommInitRankConfig(&mut handle, world, id, rank, config)
        };
        check(doing, result)?;
        let joined = Arc::new(Self { handle, aborted: AtomicBool::new(false) });
        joined.settle(doing, || comm.leave())?;
        let left = Arc::downgrade(&joined);
        comm.on_failure(Box::new(move || {
            if let Some(joined) = left.upgrade() {
                joined.abort();
            }
        }));
        Ok(joined)
    }

    /// Waits until the last call is done; `go_on` says whether to wait any longer.
    fn settle(&self, doing: &str, go_on: impl Fn() -> Result<()>) -> Result<()> {
        loop {
            let mut state = ncclResult_t::ncclSuccess;
            // SAFETY: the communicator is there; NCCL writes one value.
            let result = unsafe { sys::ncclCommGetAsyncError(self.handle, &mut state) };
            check(doing, result)?;
            if state != ncclResult_t::ncclInProgress {
                return check(doing, state);
            }
            go_on()?;
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Queues the replacement of `count` f32 numbers at `address` by their sums over all ranks.
    ///
    /// # Safety
    /// So many numbers are there, on the GPU that the stream is of, until the stream has come past.
    pub unsafe fn all_reduce(&self, stream: &Stream, address: u64, count: usize) -> Result<()> {
        let (place, sum) = (address as *mut _, ncclRedOp_t::ncclSum);
        let float = ncclDataType_t::ncclFloat32;
        stream.bind()?;
        // SAFETY: the numbers are there as the caller says; a communicator lives until it is aborted, and
        // after that NCCL refuses.
        let result = unsafe {
            sys::ncclAllReduce(place, place, count, float, sum, self.handle, stream.raw().cast())
        };
        let doing = "cannot add up over all ranks";
        check(doing, result)?;
        match result {
            ncclResult_t::ncclInProgress => self.settle(doing, || Ok(())),
            _ => Ok(()),
        }
    }

    /// Ends what waits for other ranks.
    fn abort(&self) {
        if !self.aborted.swap(true, Ordering::Relaxed) {
            // SAFETY: done once, and nothing but this may be done with the communicator afterwards: its
            // rank has an error to return first.
            let _ = unsafe { sys::ncclCommAbort(self.handle) };
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if !self.aborted.swap(true, Ordering::Relaxed) {
            // SAFETY: joined once, left once; the stream that used it has ended.
            let _ = unsafe { sys::ncclCommDestroy(self.handle) };
        }
    }
}
