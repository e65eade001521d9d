//! NVIDIA's library of collectives, loaded when a model is split over GPUs: sums over all ranks as work of
//! a stream.

use std::ffi::{CStr, c_char};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t};

use super::driver::{Context, Pinned, Region};
use super::stream::Stream;
use crate::comm::{Communicator, Way};
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
    /// Joins `ranks` of those that `comm` leads to: all, or those of this rank's stage while the other
    /// stages do the same. Each is on the GPU of its `context`. Returns when all have come; a failure of one
    /// of them later ends what the others wait for.
    ///
    /// # Errors
    /// No NCCL on this machine; what it says; a rank that has failed.
    pub fn join(
        context: &Arc<Context>,
        comm: &dyn Communicator,
        ranks: Range<usize>,
    ) -> Result<Arc<Self>> {
        // SAFETY: loading the library runs its initialisers, which ask nothing of us.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::failed(
                "a model on several GPUs needs NCCL (libnccl.so.2), which is not on this machine",
            ));
        }
        context.bind()?;
        let doing = "cannot join the ranks through NCCL";
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        if comm.rank() == ranks.start {
            // SAFETY: NCCL writes one id.
            check(doing, unsafe { sys::ncclGetUniqueId(&mut id) })?;
        }
        let words: [u64; 16] = bytemuck::cast(id.internal);
        let all = comm.all_gather(&words);
        comm.leave()?;
        let of_first: [u64; 16] = all[16 * ranks.start..][..16].try_into().unwrap_or(words);
        id.internal = bytemuck::cast(of_first);
        let (world, rank) = (ranks.len() as i32, (comm.rank() - ranks.start) as i32);
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
        let since = Instant::now();
        // The clock of a rank that is late runs out before this.
        joined.settle(doing, || match since.elapsed() < 2 * comm.timeout() {
            true => comm.leave(),
            false => Err(Error::failed(format!("{doing}: not all have come in time"))),
        })?;
        let left = Arc::downgrade(&joined);
        comm.on_failure(Box::new(move || {
            // NCCL may wait until the graphs that use it are gone; nobody else is to.
            if let Some(joined) = left.upgrade() {
                std::thread::spawn(move || joined.abort());
            }
        }));
        Ok(joined)
    }

    /// From now on carries what the hosts of all ranks, which are joined here, tell each other.
    ///
    /// # Errors
    /// Memory that the GPU has not.
    pub fn carry(self: &Arc<Self>, context: &Arc<Context>, comm: &dyn Communicator) -> Result<()> {
        comm.carry(&mut || {
            let hosts = Mutex::new(Hosts::new(context, self.clone(), comm.world())?);
            let gather =
                move |own: &[u64]| hosts.lock().unwrap_or_else(PoisonError::into_inner).gather(own);
            Ok(Box::new(gather))
        })
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
        self.queued("cannot add up over all ranks", result)
    }

    /// Queues that `count` f32 numbers at `address` go to `peer`, or come from there.
    ///
    /// # Safety
    /// As for [`Self::all_reduce`].
    pub unsafe fn pass(
        &self,
        stream: &Stream,
        (address, count): (u64, usize),
        way: Way,
        peer: usize,
    ) -> Result<()> {
        let (place, float) = (address as *mut _, ncclDataType_t::ncclFloat32);
        let (peer, on) = (peer as i32, stream.raw().cast());
        stream.bind()?;
        // SAFETY: as in `all_reduce`.
        let result = unsafe {
            match way {
                Way::Send => sys::ncclSend(place, count, float, peer, self.handle, on),
                Way::Receive => sys::ncclRecv(place, count, float, peer, self.handle, on),
            }
        };
        self.queued("cannot pass on to the next stage", result)
    }

    /// Queues that the `count` words at `own` of all ranks are put at `all`, in their order.
    ///
    /// # Safety
    /// So many words are there, and room for those of all ranks, on the GPU that the stream is of, until the
    /// stream has come past.
    unsafe fn all_gather(&self, stream: &Stream, own: u64, all: u64, count: usize) -> Result<()> {
        let (own, all, word) = (own as *const _, all as *mut _, ncclDataType_t::ncclUint64);
        stream.bind()?;
        // SAFETY: as in `all_reduce`.
        let result =
            unsafe { sys::ncclAllGather(own, all, count, word, self.handle, stream.raw().cast()) };
        self.queued("cannot gather what the ranks have", result)
    }

    fn queued(&self, doing: &str, result: ncclResult_t) -> Result<()> {
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

/// What the hosts of ranks in several processes tell each other through their GPUs.
struct Hosts {
    nccl: Arc<Nccl>,
    context: Arc<Context>,
    world: usize,
    /// A rank's words, then those of all ranks.
    words: Region,
    /// Those of all ranks.
    landing: Pinned,
    stream: Stream,
}

impl Hosts {
    fn new(context: &Arc<Context>, nccl: Arc<Nccl>, world: usize) -> Result<Self> {
        Ok(Self {
            nccl,
            context: context.clone(),
            world,
            words: Region::allocate(context, 0, "what the ranks tell each other")?,
            landing: Pinned::allocate(context, 0)?,
            stream: Stream::new(context)?,
        })
    }

    fn gather(&mut self, own: &[u64]) -> Result<Vec<u64>> {
        let (bytes, all) = (size_of_val(own), size_of_val(own) * self.world);
        if self.landing.len() < all {
            let doing = "what the ranks tell each other";
            self.words = Region::allocate(&self.context, bytes + all, doing)?;
            self.landing = Pinned::allocate(&self.context, all)?;
        }
        self.stream.copy_in(&self.words, 0, bytemuck::cast_slice(own))?;
        let (from, to) = (self.words.address(0..bytes), self.words.address(bytes..bytes + all));
        // SAFETY: both ranges are in `words`, which is there until `copy_out` has waited.
        unsafe { self.nccl.all_gather(&self.stream, from, to, own.len()) }?;
        self.stream.copy_out(&self.words, bytes..bytes + all, &mut self.landing)?;
        if self.nccl.aborted.load(Ordering::Relaxed) {
            return Err(Error::failed("the run has ended")); // nothing may have come
        }
        Ok(bytemuck::pod_collect_to_vec(&self.landing.bytes()[..all]))
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
