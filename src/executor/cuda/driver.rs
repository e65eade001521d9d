//! The CUDA driver and its contexts as owned values: what is created is destroyed, in the right context.

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;

use super::libcuda::{self, Status};
use crate::encoding::Float;
use crate::error::{Error, Result};
use crate::kernel::TensorMap;

/// The driver's answer to a call as a result of ours; `doing` begins the message.
pub(super) fn check(doing: &str, result: Status) -> Result<()> {
    if result == libcuda::SUCCESS {
        return Ok(());
    }
    let (mut text, mut name) = (ptr::null(), ptr::null());
    // SAFETY: the driver sets both to strings of its own that are never freed, or to nothing.
    let known = unsafe {
        libcuda::cuGetErrorString(result, &mut text);
        libcuda::cuGetErrorName(result, &mut name);
        [text, name].map(|text| (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy()))
    };
    let [text, name] = known;
    let text = text.unwrap_or("unknown to the driver".into());
    let name = name.unwrap_or_else(|| format!("error {result}").into());
    Err(Error::failed(format!("{doing}: {text} ({name})")))
}

/// The CUDA whose functions are called: all of them are there since then.
const LEAST_DRIVER: i32 = 12080;

/// Whether there is a driver, working or not.
pub fn has_driver() -> bool {
    // SAFETY: loading the driver's library runs its initialisers, which ask nothing of us.
    unsafe { sys::is_culib_present() }
}

/// Loads the driver and starts it, once.
///
/// # Errors
/// Where there is no driver, or it does not work, or is too old.
pub fn start() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    let start = || {
        if !has_driver() {
            return Err(Error::failed(
                "there is no CUDA driver (libcuda.so) on this machine: `device` cpu needs none, \
                 `emulate` 1 emulates one",
            ));
        }
        // SAFETY: cuInit may be called at any time; the library is there.
        check("cannot start the CUDA driver", unsafe { libcuda::cuInit(0) })?;
        let version = version()?;
        if version < LEAST_DRIVER {
            return Err(Error::failed(format!(
                "the GPU's driver is too old: it is of CUDA {}, and {} is needed (NVIDIA's 570 or a \
                 newer one); `device` cpu needs none",
                version_text(version),
                version_text(LEAST_DRIVER)
            )));
        }
        Ok(())
    };
    STARTED.get_or_init(start).clone()
}

/// The version of CUDA that the driver is of: 13000 is 13.0.
///
/// # Errors
/// When it does not say.
pub fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the driver's library is there, and it writes one integer.
    let result = unsafe { libcuda::cuDriverGetVersion(&mut version) };
    check("cannot ask the CUDA driver for its version", result).map(|()| version)
}

/// As people write it.
pub fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Number of GPUs that the driver shows.
///
/// # Errors
/// As [`start`].
pub fn device_count() -> Result<u32> {
    start()?;
    let mut count = 0;
    // SAFETY: the driver is started and writes one integer.
    check("cannot count the GPUs", unsafe { libcuda::cuDeviceGetCount(&mut count) })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// A GPU, held for this process.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    /// Whether a kernel on it does not end: calls might wait for it.
    is_abandoned: AtomicBool,
}

// SAFETY: the handle names an object of the driver, whose functions may be called from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; all that changes in here is an atomic.
unsafe impl Sync for Context {}

impl Context {
    /// The GPU of this number, among those that CUDA_VISIBLE_DEVICES shows.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that cannot be used.
    pub fn new(ordinal: u32) -> Result<Arc<Self>> {
        let count = device_count()?;
        if ordinal >= count {
            let there = match count {
                0 => "the driver shows none".to_owned(),
                1 => "there is one, cuda:0".to_owned(),
                _ => format!("there are {count}, from cuda:0 on"),
            };
            return Err(Error::failed(format!("there is no GPU cuda:{ordinal}: {there}")));
        }
        let doing = format!("cannot use the GPU cuda:{ordinal}");
        let (mut device, mut handle) = (0, ptr::null_mut());
        // SAFETY: the driver is started, the ordinal is one of its devices, and each call writes one value.
        unsafe {
            check(&doing, libcuda::cuDeviceGet(&mut device, ordinal as i32))?;
            check(&doing, libcuda::cuDevicePrimaryCtxRetain(&mut handle, device))?;
        }
        let context = Arc::new(Self { device, handle, is_abandoned: AtomicBool::new(false) });
        context.bind()?;
        Ok(context)
    }

    /// Makes this the context of the calling thread, as every call below needs.
    pub fn bind(&self) -> Result<()> {
        self.enter().or_else(|result| check("cannot enter the GPU's context", result))
    }

    /// Has no more calls made in it, and nothing in it destroyed: each might wait for ever.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    /// As [`Self::bind`], with the driver's own answer.
    pub fn enter(&self) -> std::result::Result<(), Status> {
        if self.is_abandoned.load(Ordering::Relaxed) {
            return Err(libcuda::LAUNCH_TIMEOUT);
        }
        // SAFETY: the context is retained until `self` is dropped.
        match unsafe { libcuda::cuCtxSetCurrent(self.handle) } {
            libcuda::SUCCESS => Ok(()),
            result => Err(result),
        }
    }

    pub fn name(&self) -> Result<String> {
        let mut name = [0; 256];
        // SAFETY: the driver writes at most 256 bytes, a 0 at the end.
        let result = unsafe { libcuda::cuDeviceGetName(name.as_mut_ptr(), 256, self.device) };
        check("cannot ask the GPU for its name", result)?;
        let bytes = name.map(|byte| byte as u8);
        let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// What tells it apart from all others anywhere.
    pub fn uuid(&self) -> Result<String> {
        let mut uuid = [0; 16];
        // SAFETY: the driver writes 16 bytes.
        let result = unsafe { libcuda::cuDeviceGetUuid_v2(&mut uuid, self.device) };
        check("cannot ask the GPU for its UUID", result)?;
        Ok(format!("GPU-{:032x}", u128::from_be_bytes(uuid)))
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the driver writes one integer.
        let result = unsafe { libcuda::cuDeviceGetAttribute(&mut value, which, self.device) };
        check("cannot ask the GPU what it has", result)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    pub fn multiprocessors(&self) -> Result<u32> {
        self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Bytes of the L2 cache.
    pub fn cache_bytes(&self) -> Result<usize> {
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        Ok(self.attribute(which)? as usize)
    }

    /// Bytes of shared memory that a block can have.
    pub fn block_shared_bytes(&self) -> Result<usize> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as which;
        Ok(self.attribute(which)? as usize)
    }

    /// Where it is on the bus: domain, bus, device.
    pub fn bus(&self) -> Result<[u32; 3]> {
        use sys::CUdevice_attribute as attribute;
        Ok([
            self.attribute(attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            self.attribute(attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            self.attribute(attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
        ])
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> Result<(u32, u32)> {
        use sys::CUdevice_attribute as attribute;
        Ok((
            self.attribute(attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.attribute(attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    /// Lets this GPU's kernels use the memory of another one, where the hardware can do that.
    pub fn reach(&self, peer: &Self) -> Result<bool> {
        let doing = "cannot reach another GPU's memory";
        let mut can = 0;
        // SAFETY: the driver writes one integer.
        let result = unsafe { libcuda::cuDeviceCanAccessPeer(&mut can, self.device, peer.device) };
        check(doing, result)?;
        if can == 0 {
            return Ok(false);
        }
        self.bind()?;
        // SAFETY: both contexts are retained.
        match unsafe { libcuda::cuCtxEnablePeerAccess(peer.handle, 0) } {
            libcuda::PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            // Promised, and not kept: there is another way.
            libcuda::PEER_ACCESS_UNSUPPORTED | libcuda::TOO_MANY_PEERS => Ok(false),
            result => check(doing, result).map(|()| true),
        }
    }

    /// Free and total bytes of the GPU's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two sizes.
        let result = unsafe { libcuda::cuMemGetInfo_v2(&mut free, &mut total) };
        check("cannot ask the GPU how much memory is free", result)?;
        Ok((free, total))
    }
}

/// Destroys something in `context`. What fails now has failed before, and was told of then; a context
/// that has failed takes everything with it.
pub(super) fn destroy(context: &Context, destroy: impl FnOnce() -> Status) {
    if context.bind().is_ok() {
        let _ = destroy();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_abandoned.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: retained in `new`; whoever uses the context holds an Arc of it.
        let _ = unsafe { libcuda::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// The descriptor by which a kernel's TMA reads the matrix at this address.
pub(super) fn tensor_map(matrix: &TensorMap, address: u64) -> Result<[u64; 16]> {
    let TensorMap { dtype, rows, cols, box_rows, .. } = *matrix;
    let (sizes, stride) = ([cols as u64, rows as u64], (cols * dtype.bytes()) as u64);
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the driver reads two sizes, one stride, and two numbers each of the box and the steps in it,
    // and writes the map; it does not look at the matrix.
    let result = unsafe {
        libcuda::cuTensorMapEncodeTiled(
            &mut map,
            match dtype {
                Float::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            },
            2,
            address as *mut _,
            sizes.as_ptr(),
            &stride,
            [TensorMap::BOX_COLUMNS, box_rows].as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check(&format!("cannot describe a matrix of {rows} rows of {cols} {}", dtype.name()), result)?;
    Ok(map.opaque)
}
