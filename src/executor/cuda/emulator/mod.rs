//! The emulated driver (`emulator/`, embedded): built when it is first asked for, then loaded in the
//! place of the real one.

mod build;

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{iter, ptr};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

pub use build::{Emulation, Sanitizer, build};

use crate::error::{Error, Result};
use crate::kernel::{ARCHS, Arch, Kernel, KernelSource};
use build::{DRIVER, NCCL, NVRTC};

/// What was loaded.
struct Emulator {
    emulation: Emulation,
    /// Where it was built.
    folder: PathBuf,
    nvrtc: PathBuf,
    driver: Library,
    _others: [Library; 2],
}

static EMULATOR: OnceLock<Emulator> = OnceLock::new();

/// Lets all CUDA calls of this process, of which there must have been none yet, go to emulated GPUs.
/// `on_message` hears of what takes its time.
///
/// # Errors
/// When the emulator cannot be built, for which it needs a C++ compiler, or not be loaded; a mode that
/// is not understood; a checker whose runtime is not here ([`Emulation::environment`]); other emulated
/// GPUs that are here already.
pub fn emulate(emulation: &Emulation, on_message: &dyn Fn(&str)) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = EMULATOR.get() {
        return match there.emulation == *emulation {
            true => Ok(()),
            false => Err(Error::failed("this process has other emulated GPUs already")),
        };
    }
    if !emulation.sanitizer.is_here() {
        let name = emulation.sanitizer.name();
        return Err(Error::failed(format!(
            "this process was started without the {name} sanitizer"
        )));
    }
    let folder = build(emulation, on_message)?;
    let load = |name: &str| {
        let path = folder.join(name);
        // SAFETY: the library was built from this repository's sources into a folder that nobody else can
        // write (`private`); its initialisers ask nothing of us.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        library.map_err(|error| Error::failed(format!("cannot load {}: {error}", path.display())))
    };
    // Whoever asks for these libraries by their names gets what is there already.
    let (driver, nccl, nvrtc) = (load(DRIVER)?, load(NCCL)?, load(NVRTC)?);
    let devices = ("CHASKI_EMULATE".to_owned(), emulation.devices.to_string());
    let modes: Vec<_> = iter::once(&devices).chain(&emulation.modes).collect();
    let modes: Vec<_> = modes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    for library in [&driver, &nccl] {
        configure(library, &modes).map_err(Error::usage)?;
    }
    let cache = emulation.paths.user_cache("emulated")?;
    let compiling = [&emulation.compiler, &cache].map(|path| path.display().to_string());
    configure(&nvrtc, &compiling).map_err(Error::failed)?;
    let emulation = emulation.clone();
    let path = folder.join(NVRTC);
    let emulator = Emulator { emulation, folder, nvrtc: path, driver, _others: [nccl, nvrtc] };
    EMULATOR.get_or_init(|| emulator);
    Ok(())
}

/// Tells a library of the emulator how it is to be, before it is asked for anything else.
fn configure(library: &Library, settings: &[String]) -> std::result::Result<(), String> {
    let settings = settings.iter().map(|setting| CString::new(setting.as_str()));
    let settings = settings.collect::<std::result::Result<Vec<_>, _>>();
    let settings = settings.map_err(|error| error.to_string())?;
    let pointers = settings.iter().map(|setting| setting.as_ptr()).chain([ptr::null()]);
    let pointers: Vec<_> = pointers.collect();
    type Configure = unsafe extern "C" fn(*const *const c_char) -> *const c_char;
    // SAFETY: the emulator exports this function with this type. It reads strings up to a null pointer, and
    // returns a string that stays, or nothing.
    let wrong = unsafe {
        let configure = library.get::<Configure>(b"chaski_emulator_configure\0");
        configure.map_err(|error| error.to_string())?(pointers.as_ptr())
    };
    if wrong.is_null() {
        return Ok(());
    }
    // SAFETY: as above.
    Err(unsafe { CStr::from_ptr(wrong) }.to_string_lossy().into_owned())
}

/// The compiler that goes with the emulated driver, if that is in use.
pub fn nvrtc() -> Option<&'static Path> {
    EMULATOR.get().map(|emulator| emulator.nvrtc.as_path())
}

/// The architectures that an emulated GPU takes the program to be built for. None where a real driver
/// is in use.
pub fn built_for() -> Option<&'static [&'static Arch]> {
    EMULATOR.get().map(|emulator| &*emulator.emulation.archs)
}

/// Which emulated driver is in use, and in which modes; none where a real one is.
pub fn emulated() -> Option<String> {
    let Emulator { emulation, folder, .. } = EMULATOR.get()?;
    let Emulation { devices: _, modes, sanitizer: _, archs, kernels, compiler: _, paths: _ } =
        emulation;
    let mut all = vec![folder.file_name()?.to_string_lossy().into_owned()];
    all.extend(modes.iter().map(|(name, value)| format!("{name}={value}")));
    if archs.len() < ARCHS.len() {
        let names: Vec<_> = archs.iter().map(|arch| arch.name).collect();
        all.push(format!("built for {}", names.join(",")));
    }
    all.extend(kernels.iter().map(|kernels| format!("kernels of {}", kernels.display())));
    Some(all.join(" "))
}

/// Number of emulated GPUs; none where a real driver is in use.
pub fn emulated_devices() -> Option<u32> {
    EMULATOR.get().map(|emulator| emulator.emulation.devices)
}

/// The source that an emulated GPU runs as if the program had been built with it: one in
/// [`Emulation::kernels`], else the built-in one.
///
/// # Errors
/// As [`KernelSource::variant`].
pub fn source(kernel: &'static Kernel) -> Result<KernelSource> {
    let folder = EMULATOR.get().and_then(|emulator| emulator.emulation.kernels.as_ref());
    let file = folder.map(|folder| folder.join(format!("{}.cu", kernel.name)));
    let file = file.filter(|file| file.is_file());
    file.map_or(Ok(kernel.into()), |file| KernelSource::variant(kernel, &file))
}

/// What the emulated driver says of the last kernel that failed: kernel, source line and reason.
pub fn failure() -> Option<String> {
    let driver = &EMULATOR.get()?.driver;
    // SAFETY: the emulator exports this function with this type.
    type Failure = unsafe extern "C" fn() -> *const c_char;
    let failure = unsafe { driver.get::<Failure>(b"chaski_emulator_failure\0") }.ok()?;
    // SAFETY: it returns a string that stays as it is until the next failure.
    let text = unsafe { CStr::from_ptr(failure()) }.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// How often the calling thread has called the emulated driver, and how often of that it has asked a stream
/// whether it has ended; none where a real driver is in use.
pub fn calls() -> Option<(u64, u64)> {
    let driver = &EMULATOR.get()?.driver;
    type Calls = unsafe extern "C" fn(*mut u64) -> u64;
    // SAFETY: the emulator exports this function with this type.
    let calls = unsafe { driver.get::<Calls>(b"chaski_emulator_calls\0") }.ok()?;
    let mut queries = 0;
    // SAFETY: it writes one number.
    let all = unsafe { calls(&mut queries) };
    Some((all, queries))
}

/// Which warp of a block goes next, and which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    /// At random, by seed.
    Shuffled(u64),
}

impl Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ascending => f.write_str("ascending"),
            Self::Descending => f.write_str("descending"),
            Self::Shuffled(seed) => write!(f, "shuffled:{seed}"),
        }
    }
}

/// Lets emulated GPUs run their warps in this order from now on; real ones have their own.
///
/// # Errors
/// When the emulated driver does not know how.
pub fn set_order(order: Order) -> Result<()> {
    let Some(emulator) = EMULATOR.get() else { return Ok(()) };
    let failed = |why: &str| Error::failed(format!("cannot set the warp schedule: {why}"));
    let text = CString::new(order.to_string()).map_err(|error| failed(&error.to_string()))?;
    type SetOrder = unsafe extern "C" fn(*const c_char) -> c_int;
    // SAFETY: the emulator exports this function with this type, and reads the string before it returns.
    let understood = unsafe {
        let set = emulator.driver.get::<SetOrder>(b"chaski_emulator_order\0");
        set.map_err(|error| failed(&error.to_string()))?(text.as_ptr())
    };
    if understood == 0 { Err(failed("not understood")) } else { Ok(()) }
}

/// Lets nobody touch these bytes of device memory from now on; says whether AddressSanitizer is here to
/// see to it.
pub(super) fn forbid(address: u64, bytes: usize) -> bool {
    type Forbid = unsafe extern "C" fn(u64, usize) -> c_int;
    let Some(emulator) = EMULATOR.get() else { return false };
    // SAFETY: the emulator exports this function with this type; it changes none of the bytes.
    let forbid = unsafe { emulator.driver.get::<Forbid>(b"chaski_emulator_forbid\0") };
    // SAFETY: as above.
    forbid.is_ok_and(|forbid| unsafe { forbid(address, bytes) } != 0)
}
