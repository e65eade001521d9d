//! The CUDA driver's functions. They return numbers, of which a newer driver may have more than cudarc's
//! closed enum of results.
#![allow(non_snake_case, clippy::too_many_arguments)] // as in cuda.h

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphExec, CUlaunchConfig, CUmodule, CUstream,
    CUstreamCaptureMode, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
    CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle, culib,
};

/// A `CUresult`.
pub type Status = c_int;

pub const SUCCESS: Status = 0;
pub const PEER_ACCESS_UNSUPPORTED: Status = 217;
pub const NOT_FOUND: Status = 500;
pub const NOT_READY: Status = 600;
pub const LAUNCH_TIMEOUT: Status = 702;
pub const PEER_ACCESS_ALREADY_ENABLED: Status = 704;
pub const TOO_MANY_PEERS: Status = 711;

/// That the driver does not take this machine code or PTX, and may take other: an invalid image, no binary
/// for this GPU, invalid PTX, no PTX compiler, PTX of an unsupported version, PTX that may not be compiled.
pub const REFUSES_IMAGE: [Status; 6] = [200, 209, 218, 221, 222, 223];

/// With the prototypes of cuda.h; [`NOT_FOUND`] where the driver's library has no such function.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        /// # Safety
        /// As CUDA's documentation has it.
        pub unsafe fn $name($($argument: $type),*) -> Status {
            type Function = unsafe extern "C" fn($($type),*) -> Status;
            static FUNCTION: OnceLock<Option<Function>> = OnceLock::new();
            let name = concat!(stringify!($name), "\0");
            // SAFETY: the function has this type, and its library stays.
            let find = || unsafe { culib().get::<Function>(name.as_bytes()).ok().map(|f| *f) };
            match FUNCTION.get_or_init(find) {
                // SAFETY: as the caller says.
                Some(function) => unsafe { function($($argument),*) },
                None => NOT_FOUND,
            }
        }
    )*};
}

functions! {
    cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);
    cuCtxSetCurrent(context: CUcontext);
    cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetAttribute(value: *mut c_int, which: CUdevice_attribute, device: CUdevice);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDriverGetVersion(version: *mut c_int);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventElapsedTime_v2(milliseconds: *mut f32, from: CUevent, to: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, bytes: *mut usize);
    cuFuncLoad(function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, which: CUfunction_attribute, value: c_int);
    cuGetErrorName(status: Status, name: *mut *const c_char);
    cuGetErrorString(status: Status, text: *mut *const c_char);
    cuGraphDestroy(graph: CUgraph);
    cuGraphExecDestroy(graph: CUgraphExec);
    cuGraphInstantiateWithFlags(made: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphLaunch(graph: CUgraphExec, stream: CUstream);
    cuGraphUpload(graph: CUgraphExec, stream: CUstream);
    cuInit(flags: c_uint);
    cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: CUfunction,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    );
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFreeHost(memory: *mut c_void);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostGetDevicePointer_v2(address: *mut CUdeviceptr, memory: *mut c_void, flags: c_uint);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemsetD8Async(address: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuModuleGetGlobal_v2(
        address: *mut CUdeviceptr,
        bytes: *mut usize,
        module: CUmodule,
        name: *const c_char
    );
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload(module: CUmodule);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int,
        function: CUfunction,
        threads: c_int,
        shared_bytes: usize
    );
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuStreamQuery(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuTensorMapEncodeTiled(
        map: *mut CUtensorMap,
        dtype: CUtensorMapDataType,
        rank: c_uint,
        address: *mut c_void,
        sizes: *const u64,
        strides: *const u64,
        extents: *const u32,
        steps: *const u32,
        interleave: CUtensorMapInterleave,
        swizzle: CUtensorMapSwizzle,
        promotion: CUtensorMapL2promotion,
        fill: CUtensorMapFloatOOBfill
    );
}
