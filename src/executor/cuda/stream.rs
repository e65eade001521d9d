//! The CUDA driver's streams, and what is queued in them, as owned values.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;

use super::driver::{Context, check, destroy};
use super::libcuda::{self, Status};
use super::module::{Function, Module};
use super::region::{Pinned, Region};
use crate::error::{Error, Result};

/// A queue of work on the device, not the default one.
pub struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; nothing in here changes.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        let mut handle = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes one handle.
        check("cannot create a stream", unsafe { libcuda::cuStreamCreate(&mut handle, flags) })?;
        Ok(Self { context: context.clone(), handle })
    }

    /// Makes its context that of the calling thread.
    pub fn bind(&self) -> Result<()> {
        self.context.bind()
    }

    /// As other libraries take it.
    pub fn raw(&self) -> sys::CUstream {
        self.handle
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// What went wrong on the device since the last wait.
    pub fn synchronize(&self, doing: &str) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check(doing, unsafe { libcuda::cuStreamSynchronize(self.handle) })
    }

    /// Whether all is done.
    ///
    /// # Errors
    /// As [`Self::synchronize`].
    pub fn has_ended(&self, doing: &str) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the stream lives as long as `self`.
        match unsafe { libcuda::cuStreamQuery(self.handle) } {
            libcuda::NOT_READY => Ok(false),
            result => check(doing, result).map(|()| true),
        }
    }

    /// Copies `bytes` to `at` of the region. On return the source may be changed.
    pub fn copy_in(&self, region: &Region, at: usize, bytes: &[u8]) -> Result<()> {
        let to = region.address(at..at + bytes.len());
        self.context.bind()?;
        // SAFETY: the destination is inside the region; from memory that is not pinned the driver
        // has copied before it returns.
        let result = unsafe {
            libcuda::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.handle)
        };
        check("cannot copy to the GPU", result)
    }

    /// Copies `range` of the region to the start of `to`, and waits.
    pub fn copy_out(&self, region: &Region, range: Range<usize>, to: &mut Pinned) -> Result<()> {
        // SAFETY: both are borrowed until the copy is done.
        unsafe { self.begin_copy_out(region, range, to) }?;
        self.synchronize("cannot copy from the GPU")
    }

    /// Queues the copy of `range` of the region to the start of `to`.
    ///
    /// # Safety
    /// Both stay, and nobody uses `to`, until the stream has come past.
    pub unsafe fn begin_copy_out(
        &self,
        region: &Region,
        range: Range<usize>,
        to: &mut Pinned,
    ) -> Result<()> {
        assert!(range.len() <= to.len(), "{range:?} into {}", to.len());
        let from = region.address(range.clone());
        self.context.bind()?;
        // SAFETY: both ends are inside their allocations; the rest is for the caller.
        let result = unsafe {
            libcuda::cuMemcpyDtoHAsync_v2(to.start.cast(), from, range.len(), self.handle)
        };
        check("cannot copy from the GPU", result)
    }

    /// Queues a launch. `programmatic`: it may begin before the kernel before it has ended, and waits
    /// itself where it must.
    ///
    /// # Safety
    /// `arguments` are those of the function, each of its size at least, and every address in them is of
    /// memory that is there until the launch has ended, as large as the kernel takes it to be.
    pub unsafe fn launch(
        &self,
        function: &Function,
        Geometry { grid, block, shared_bytes }: Geometry,
        arguments: &[&[u8]],
        programmatic: bool,
    ) -> Status {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: shared_bytes,
            hStream: self.handle,
            attrs: &mut attribute,
            numAttrs: programmatic.into(),
        };
        if let Err(result) = self.context.enter() {
            return result;
        }
        let pointers = arguments.iter().map(|argument| argument.as_ptr().cast_mut().cast());
        let mut pointers: Vec<*mut c_void> = pointers.collect();
        // SAFETY: the driver reads the configuration and the arguments before it returns; the rest is for the
        // caller.
        unsafe {
            let pointers = pointers.as_mut_ptr();
            libcuda::cuLaunchKernelEx(&config, function.handle, pointers, ptr::null_mut())
        }
    }

    /// Sets a variable of a module.
    ///
    /// # Errors
    /// When there is none of this name, or it is of another size.
    pub fn write_variable(&self, module: &Module, name: &str, bytes: &[u8]) -> Result<()> {
        let trouble = |what: String| Error::usage(format!("{name}: {what}"));
        let (address, there) = module
            .variable(name)?
            .ok_or_else(|| trouble("neither a parameter nor a variable".into()))?;
        if there != bytes.len() {
            return Err(trouble(format!("it has {there} bytes, and is given {}", bytes.len())));
        }
        // SAFETY: the destination is as large as the source, which is copied before the call returns: it is
        // not pinned.
        let result = unsafe {
            libcuda::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), there, self.handle)
        };
        check(&format!("cannot set {name}"), result)
    }

    /// Queues that `range` of the region is overwritten with zeros.
    pub fn clear(&self, region: &Region, range: Range<usize>) -> Result<()> {
        self.context.bind()?;
        let bytes = range.len();
        // SAFETY: the destination is inside the region.
        let result =
            unsafe { libcuda::cuMemsetD8Async(region.address(range), 0, bytes, self.handle) };
        check("cannot overwrite the GPU's memory", result)
    }

    /// What `work` queues, as a graph that is on the device when the stream has come past; none of it runs.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let doing = "cannot capture a CUDA graph";
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        check(doing, unsafe { libcuda::cuStreamBeginCapture_v2(self.handle, mode) })?;
        let worked = work();
        let (mut graph, mut handle) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: capture has begun on this stream; the driver writes one handle.
        let ended = check(doing, unsafe { libcuda::cuStreamEndCapture(self.handle, &mut graph) });
        let made = worked.and(ended).and_then(|()| {
            // SAFETY: the graph was made just now, and the executable one keeps a copy.
            check(doing, unsafe { libcuda::cuGraphInstantiateWithFlags(&mut handle, graph, 0) })
        });
        if !graph.is_null() {
            // SAFETY: made just now and destroyed once.
            let _ = unsafe { libcuda::cuGraphDestroy(graph) };
        }
        made?;
        let graph = Graph { context: self.context.clone(), handle };
        // SAFETY: both handles live.
        check(doing, unsafe { libcuda::cuGraphUpload(graph.handle, self.handle) })?;
        Ok(graph)
    }

    /// Queues a graph.
    ///
    /// # Safety
    /// As [`Self::launch`], for everything in the graph.
    pub unsafe fn replay(&self, graph: &Graph, doing: &str) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live; what the graph does is for the caller.
        check(doing, unsafe { libcuda::cuGraphLaunch(graph.handle, self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; the driver lets queued work end.
        destroy(&self.context, || unsafe { libcuda::cuStreamDestroy_v2(self.handle) });
    }
}

/// Names a failed launch.
pub fn launched(result: Status, export: &str) -> Result<()> {
    check(&format!("kernel {export} cannot be launched"), result)
}

/// A captured graph, ready to be replayed.
pub struct Graph {
    context: Arc<Context>,
    handle: sys::CUgraphExec,
}

// SAFETY: the driver's graphs may be launched from any thread, by one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`, destroyed once.
        destroy(&self.context, || unsafe { libcuda::cuGraphExecDestroy(self.handle) });
    }
}

/// What a kernel is launched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks: x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A point in a stream's work.
pub struct StreamEvent {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for StreamEvent {}

impl StreamEvent {
    /// One that whoever waits for it sleeps, and leaves the core to others.
    pub fn slept_for(context: &Arc<Context>) -> Result<Self> {
        let sleeps = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        Self::with_flags(context, sleeps | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// One that knows when it came.
    pub fn timed(context: &Arc<Context>) -> Result<Self> {
        Self::with_flags(context, sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    fn with_flags(context: &Arc<Context>, flags: u32) -> Result<Self> {
        context.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        check("cannot create an event", unsafe { libcuda::cuEventCreate(&mut handle, flags) })?;
        Ok(Self { context: context.clone(), handle })
    }

    /// Puts the point after all that is queued.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.context.bind()?;
        // SAFETY: both handles live.
        let result = unsafe { libcuda::cuEventRecord(self.handle, stream.handle) };
        check("cannot record an event", result)
    }

    /// Waits until the stream has come to the point; at once if it was never recorded.
    ///
    /// # Errors
    /// What went wrong on the device before it.
    pub fn wait(&self, doing: &str) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event lives as long as `self`.
        check(doing, unsafe { libcuda::cuEventSynchronize(self.handle) })
    }

    /// From another timed event to this one; both have come.
    pub fn since(&self, earlier: &Self) -> Result<Duration> {
        self.context.bind()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events live, and the driver writes one number.
        let result = unsafe {
            libcuda::cuEventElapsedTime_v2(&mut milliseconds, earlier.handle, self.handle)
        };
        check("cannot take the time between events", result)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1000.0))
    }
}

impl Drop for StreamEvent {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        destroy(&self.context, || unsafe { libcuda::cuEventDestroy_v2(self.handle) });
    }
}

/// Begins messages.
const SENDING: &str = "cannot copy the weights to the GPU";

/// Pinned memory on its way to the device, again and again.
pub struct Staging {
    memory: Pinned,
    sent: StreamEvent,
}

impl Staging {
    pub fn allocate(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        Ok(Self {
            memory: Pinned::allocate(context, bytes)?,
            sent: StreamEvent::slept_for(context)?,
        })
    }

    /// The memory, once all that was sent from it is on the device.
    pub fn emptied(&mut self) -> Result<&mut [u8]> {
        self.sent.wait(SENDING)?;
        Ok(self.memory.bytes_mut())
    }

    /// Queues the way of the first `bytes` to `at` of the region.
    pub fn send(
        &mut self,
        stream: &Stream,
        bytes: usize,
        region: &Region,
        at: usize,
    ) -> Result<()> {
        assert!(bytes <= self.memory.len(), "{bytes} of {}", self.memory.len());
        let to = region.address(at..at + bytes);
        stream.bind()?;
        // SAFETY: both ends are inside their allocations; the source is pinned and is not written, or
        // freed, before the event that follows has come.
        let result = unsafe {
            libcuda::cuMemcpyHtoDAsync_v2(to, self.memory.start.cast(), bytes, stream.handle)
        };
        check(SENDING, result)?;
        self.sent.record(stream)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory is freed next: nothing may still be reading it.
        let _ = self.sent.wait("");
    }
}
