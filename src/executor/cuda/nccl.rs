//! NVIDIA's library of collectives, loaded when a model is split over GPUs: sums over all ranks as work of
//! a stream.

use std::ffi::c_char;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{ptr, thread};

use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};

use super::driver::Context;
use super::libnccl::{self, Functions, IN_PROGRESS, NcclStatus, REMOTE_ERROR, SUCCESS};
use super::region::{Pinned, Region};
use super::stream::Stream;
use crate::comm::{Communicator, Direction};
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

/// How long NCCL's word that a rank is gone waits for that of the connections, which say which one.
const BLAME: Duration = Duration::from_secs(1);

/// How long a call may take before whoever waits for it sleeps: one that queues a sum is done in some tens of
/// microseconds by a thread of NCCL's, and a prefill has two sums a layer.
const QUICK: Duration = Duration::from_micros(400);

/// Bytes of a GPU's memory that NCCL takes for a communicator: some 250 MB of an H100's, by default; less of
/// a small one's, which has less to be sent.
pub fn communicator_bytes(total_bytes: usize) -> usize {
    (256 << 20).min(total_bytes / 32)
}

/// A rank's membership.
pub struct Nccl {
    nccl: &'static Functions,
    /// None when it has been aborted. NCCL lets any thread use a communicator, one at a time.
    handle: Mutex<Option<Handle>>,
}

#[derive(Clone, Copy)]
struct Handle(ncclComm_t);

// SAFETY: the handle names an object of NCCL's, which any thread may use.
unsafe impl Send for Handle {}

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
        let nccl = libnccl::nccl()?;
        context.bind()?;
        let doing = "cannot join the ranks through NCCL";
        let mut id = ncclUniqueId { internal: [0; 128] };
        if comm.rank() == ranks.start {
            // SAFETY: NCCL writes one id.
            nccl.check(doing, unsafe { (nccl.unique_id)(&mut id) })?;
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
            (nccl.join)(&mut handle, world, id, rank, config)
        };
        nccl.check(doing, result)?;
        let joined = Arc::new(Self { nccl, handle: Mutex::new(Some(Handle(handle))) });
        let since = Instant::now();
        // The clock of a rank that is late runs out before this.
        let go_on = || match since.elapsed() < 2 * comm.timeout() {
            true => comm.leave(),
            false => Err(Error::failed(format!("{doing}: not all ranks joined in time"))),
        };
        // To leave as usual would be to wait for those who have not come.
        joined.settle(doing, go_on).inspect_err(|_| joined.abort())?;
        let left = Arc::downgrade(&joined);
        comm.on_failure(Box::new(move || {
            if let Some(joined) = left.upgrade() {
                joined.abort();
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

    /// What `call` does with the communicator.
    ///
    /// # Errors
    /// When it has been aborted.
    fn with(&self, doing: &str, call: impl FnOnce(ncclComm_t) -> NcclStatus) -> Result<NcclStatus> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Handle(handle)) = *handle else {
            return Err(Error::failed(format!("{doing}: the run has ended")));
        };
        let status = call(handle);
        self.nccl.check(doing, status).map(|()| status)
    }

    /// Waits until the last call is done; `go_on` says whether to wait any longer.
    fn settle(&self, doing: &str, go_on: impl Fn() -> Result<()>) -> Result<()> {
        let since = Instant::now();
        loop {
            let mut state = SUCCESS;
            // SAFETY: the communicator is there; NCCL writes one value.
            self.with(doing, |handle| unsafe { (self.nccl.async_error)(handle, &mut state) })?;
            let is_early = state == REMOTE_ERROR && since.elapsed() < BLAME;
            if state != IN_PROGRESS && !is_early {
                return self.nccl.check(doing, state);
            }
            go_on()?;
            match since.elapsed() < QUICK {
                true => thread::yield_now(),
                false => thread::sleep(Duration::from_micros(100)),
            }
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
        // SAFETY: the numbers are there as the caller says, and so is the communicator.
        self.queue("cannot add up over all ranks", |handle| unsafe {
            (self.nccl.all_reduce)(place, place, count, float, sum, handle, stream.raw().cast())
        })
    }

    /// Queues that `count` f32 numbers at `address` go to `peer`, or come from there.
    ///
    /// # Safety
    /// As for [`Self::all_reduce`].
    pub unsafe fn pass(
        &self,
        stream: &Stream,
        (address, count): (u64, usize),
        direction: Direction,
        peer: usize,
    ) -> Result<()> {
        let (place, float) = (address as *mut _, ncclDataType_t::ncclFloat32);
        let (peer, on) = (peer as i32, stream.raw().cast());
        stream.bind()?;
        // SAFETY: as in `all_reduce`.
        self.queue("cannot pass on to the next stage", |handle| unsafe {
            match direction {
                Direction::Send => (self.nccl.send)(place, count, float, peer, handle, on),
                Direction::Receive => (self.nccl.receive)(place, count, float, peer, handle, on),
            }
        })
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
        self.queue("cannot gather what the ranks have", |handle| unsafe {
            (self.nccl.all_gather)(own, all, count, word, handle, stream.raw().cast())
        })
    }

    fn queue(&self, doing: &str, call: impl FnOnce(ncclComm_t) -> NcclStatus) -> Result<()> {
        match self.with(doing, call)? {
            IN_PROGRESS => self.settle(doing, || Ok(())),
            _ => Ok(()),
        }
    }

    /// Ends what waits for other ranks. NCCL lets those go at once, but returns only when no graph has
    /// calls of the communicator any more, so nobody waits for that.
    pub(super) fn abort(&self) {
        let taken = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let nccl = self.nccl;
        // SAFETY: taken out, so that nobody else has it.
        let abort = move |Handle(handle): Handle| unsafe { (nccl.abort)(handle) };
        if let Some(handle) = taken {
            thread::spawn(move || abort(handle));
        }
    }

    fn is_aborted(&self) -> bool {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).is_none()
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

/// Bytes of a rank that there is room for from the start: more than the sampler tells. Logits may need more
/// room, but are gathered when no kernel of another rank waits: see [`super::Cuda::waits_for_peers`].
const ROOM_BYTES: usize = 64 << 10;

impl Hosts {
    fn new(context: &Arc<Context>, nccl: Arc<Nccl>, world: usize) -> Result<Self> {
        let bytes = ROOM_BYTES * (1 + world);
        Ok(Self {
            nccl,
            context: context.clone(),
            world,
            words: Region::allocate(context, bytes, "what the ranks tell each other")?,
            landing: Pinned::allocate(context, ROOM_BYTES * world)?,
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
        if self.nccl.is_aborted() {
            return Err(Error::failed("the run has ended")); // nothing may have come
        }
        Ok(bytemuck::pod_collect_to_vec(&self.landing.bytes()[..all]))
    }
}

impl Drop for Nccl {
    /// Graphs that have calls of it must have gone before: NCCL waits for that.
    fn drop(&mut self) {
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Handle(handle)) = handle {
            // SAFETY: joined once, left once; the stream that used it has ended.
            let _ = unsafe { (self.nccl.destroy)(handle) };
        }
    }
}
