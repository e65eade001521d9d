//! The emulated driver (`emulator/`): built when it is first asked for, then loaded in the place of
//! the real one.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};

/// What was loaded.
struct Emulator {
    nvrtc: PathBuf,
    driver: Library,
}

static EMULATOR: OnceLock<Emulator> = OnceLock::new();

/// Lets all CUDA calls of this process, of which there must have been none yet, go to `devices`
/// emulated GPUs.
///
/// # Errors
/// When the emulator cannot be built, for which it needs a C++ compiler, or not be loaded.
pub fn emulate(devices: u32) -> Result<()> {
    if EMULATOR.get().is_some() {
        return Ok(());
    }
    let folder = build()?;
    // SAFETY: called at the start of the process, before there are threads that read the environment;
    // the emulator reads it when CUDA starts.
    unsafe { std::env::set_var("CHASKI_EMULATE", devices.to_string()) };
    let path = folder.join("libcuda.so.1");
    // SAFETY: the library was built from this repository's sources; its initialisers ask nothing of us.
    let driver =
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
            Error::failed(format!("cannot load the emulated driver {}: {error}", path.display()))
        })?;
    let nvrtc = folder.join("libnvrtc.so.13");
    EMULATOR.get_or_init(|| Emulator { nvrtc, driver });
    Ok(())
}

/// The compiler that goes with the emulated driver, if that is in use.
pub fn nvrtc() -> Option<&'static Path> {
    EMULATOR.get().map(|emulator| emulator.nvrtc.as_path())
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

/// Builds the emulator, unless that has been done, and returns the folder it is in.
fn build() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/emulator/build");
    let doing = "cannot build the emulated driver";
    if !Path::new(script).is_file() {
        return Err(Error::failed(format!("{doing}: its sources are not at {script} any more")));
    }
    let folder = cache_folder().join("emulator");
    let output = Command::new(script).arg("none").arg(&folder).output();
    let output = output.map_err(|error| Error::failed(format!("{doing}: {script}: {error}")))?;
    if output.status.success() {
        return Ok(folder);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let reason = errors.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(Error::failed(format!(
        "{doing}: {}; it needs a C++ compiler: install g++, or name another in CHASKI_CXX",
        reason.trim()
    )))
}

/// `$XDG_CACHE_HOME/chaski`, where the standard says it is.
fn cache_folder() -> PathBuf {
    let path = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("chaski")
}
