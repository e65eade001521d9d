//! What the GPU's management library (NVML) says of clocks, power and energy. It comes with the driver
//! and is loaded when it is asked for; where it is missing, nothing is known.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;

use libloading::Library;

/// The state of a GPU at one moment. What the library does not say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    pub power_w: Option<f64>,
    pub temperature_c: Option<u32>,
    /// Bits of [`THROTTLE_REASONS`].
    pub throttle: Option<u64>,
    /// Since the driver was loaded.
    pub energy_j: Option<f64>,
}

/// Why clocks are lower than they could be, by bit from the lowest.
pub const THROTTLE_REASONS: [&str; 9] = [
    "idle",
    "application clocks",
    "power cap",
    "hardware slowdown",
    "sync boost",
    "thermal slowdown",
    "hardware thermal slowdown",
    "power brake",
    "display clocks",
];

type NvmlDevice = *mut c_void;
type Number<T> = unsafe extern "C" fn(NvmlDevice, *mut T) -> c_int;
type NumberOf<T> = unsafe extern "C" fn(NvmlDevice, c_uint, *mut T) -> c_int;

/// One GPU as NVML knows it.
#[derive(Debug)]
pub struct Nvml {
    library: Library,
    device: NvmlDevice,
}

// SAFETY: NVML may be called from any thread; the handle names an object of its own.
unsafe impl Send for Nvml {}
// SAFETY: as above; nothing in here changes.
unsafe impl Sync for Nvml {}

impl Nvml {
    /// The GPU at this place on the bus: domain, bus, device.
    pub fn open([domain, bus, device]: [u32; 3]) -> Option<Self> {
        let place = CString::new(format!("{domain:08x}:{bus:02x}:{device:02x}.0")).ok()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the functions are called with the types that nvml.h gives them; the library is kept as
        // long as the handle. It is never shut down: other users of this process may have started it.
        unsafe {
            let library = Library::new("libnvidia-ml.so.1").ok()?;
            type Init = unsafe extern "C" fn() -> c_int;
            type Find = unsafe extern "C" fn(*const c_char, *mut NvmlDevice) -> c_int;
            let init = *library.get::<Init>(b"nvmlInit_v2\0").ok()?;
            let find = *library.get::<Find>(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?;
            let is_there = init() == 0 && find(place.as_ptr(), &mut handle) == 0;
            is_there.then_some(Self { library, device: handle })
        }
    }

    /// The driver's version: `580.65.06`.
    pub fn driver(&self) -> Option<String> {
        let mut text = [0 as c_char; 96];
        type Version = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
        // SAFETY: NVML writes at most 96 bytes, a 0 at the end.
        let result = unsafe {
            let version = self.library.get::<Version>(b"nvmlSystemGetDriverVersion\0").ok()?;
            version(text.as_mut_ptr(), 96)
        };
        let text = text.map(|byte| byte as u8);
        let text = CStr::from_bytes_until_nul(&text).ok().filter(|_| result == 0)?;
        Some(text.to_string_lossy().into_owned())
    }

    /// The GPU's state now.
    pub fn read(&self) -> Reading {
        const SM: c_uint = 1;
        const MEMORY: c_uint = 2;
        const TEMPERATURE_GPU: c_uint = 0;
        let milli = |number: f64| number / 1000.0;
        Reading {
            sm_clock_mhz: self.number_of(b"nvmlDeviceGetClockInfo\0", SM),
            memory_clock_mhz: self.number_of(b"nvmlDeviceGetClockInfo\0", MEMORY),
            power_w: self
                .number::<c_uint>(b"nvmlDeviceGetPowerUsage\0")
                .map(|milliwatts| milli(f64::from(milliwatts))),
            temperature_c: self.number_of(b"nvmlDeviceGetTemperature\0", TEMPERATURE_GPU),
            throttle: self.number::<c_ulonglong>(b"nvmlDeviceGetCurrentClocksThrottleReasons\0"),
            energy_j: self
                .number::<c_ulonglong>(b"nvmlDeviceGetTotalEnergyConsumption\0")
                .map(|millijoules| milli(millijoules as f64)),
        }
    }

    fn number<T: Default>(&self, name: &[u8]) -> Option<T> {
        let mut value = T::default();
        // SAFETY: every function that is asked for by this name writes one number of type T.
        let result = unsafe { self.library.get::<Number<T>>(name).ok()?(self.device, &mut value) };
        (result == 0).then_some(value)
    }

    fn number_of(&self, name: &[u8], which: c_uint) -> Option<u32> {
        let mut value = 0;
        // SAFETY: as in `number`; the second argument says which of several.
        let result = unsafe {
            self.library.get::<NumberOf<u32>>(name).ok()?(self.device, which, &mut value)
        };
        (result == 0).then_some(value)
    }
}
