//! The emulated driver (`emulator/`, embedded): built when it is first asked for, then loaded in the
//! place of the real one.

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::fmt::{self, Display};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, fs};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};
use crate::kernel::compile::hash;
use crate::kernel::{ARCHS, Arch, Kernel, Source, user_cache};

/// What was loaded.
struct Emulator {
    nvrtc: PathBuf,
    driver: Library,
    _nccl: Library,
}

static EMULATOR: OnceLock<Emulator> = OnceLock::new();

/// Lets all CUDA calls of this process, of which there must have been none yet, go to `devices`
/// emulated GPUs. With a sanitizer the process starts anew if it must. `told` hears of what takes its
/// time.
///
/// # Errors
/// When the emulator cannot be built, for which it needs a C++ compiler, or not be loaded.
pub fn emulate(devices: u32, told: &dyn Fn(&str)) -> Result<()> {
    if EMULATOR.get().is_some() {
        return Ok(());
    }
    let sanitizer = Sanitizer::from_environment()?;
    let variables = sanitizer.environment()?;
    let preloaded = env::var_os("LD_PRELOAD");
    if variables
        .iter()
        .any(|(name, value)| *name == "LD_PRELOAD" && Some(value) != preloaded.as_ref())
    {
        let failed =
            |error| Error::failed(format!("cannot start with {}: {error}", sanitizer.name()));
        let mut again = Command::new(env::current_exe().map_err(failed)?);
        return Err(failed(again.args(env::args_os().skip(1)).envs(variables).exec()));
    }
    let folder = build(sanitizer, told)?;
    // SAFETY: called at the start of the process, before there are threads that read the environment;
    // the emulator reads it when CUDA starts.
    unsafe { env::set_var("CHASKI_EMULATE", devices.to_string()) };
    let load = |name: &str| {
        let path = folder.join(name);
        // SAFETY: the library was built from this repository's sources; its initialisers ask nothing of us.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        library.map_err(|error| Error::failed(format!("cannot load {}: {error}", path.display())))
    };
    // Whoever asks for these libraries by their names gets what is there already.
    let (driver, _nccl) = (load("libcuda.so.1")?, load("libnccl.so.2")?);
    let nvrtc = folder.join("libnvrtc.so.13");
    EMULATOR.get_or_init(|| Emulator { nvrtc, driver, _nccl });
    Ok(())
}

/// The compiler that goes with the emulated driver, if that is in use.
pub fn nvrtc() -> Option<&'static Path> {
    EMULATOR.get().map(|emulator| emulator.nvrtc.as_path())
}

/// The architectures that an emulated GPU takes the program to be built for: all, or those that
/// `CHASKI_EMULATE_ARCHS` names. None where a real driver is in use.
///
/// # Errors
/// An architecture that is not known.
pub fn built_for() -> Result<Option<Vec<&'static Arch>>> {
    if nvrtc().is_none() {
        return Ok(None);
    }
    let Ok(names) = env::var("CHASKI_EMULATE_ARCHS") else {
        return Ok(Some(ARCHS.iter().collect()));
    };
    let unknown = |name: &str| Error::usage(format!("CHASKI_EMULATE_ARCHS: {name:?} is unknown"));
    let arch = |name: &str| Arch::find(name).ok_or_else(|| unknown(name));
    names.split(',').map(arch).collect::<Result<Vec<_>>>().map(Some)
}

/// Which emulated driver is in use, and in which modes; none where a real one is.
pub fn emulated() -> Option<String> {
    let folder = EMULATOR.get()?.nvrtc.parent()?.file_name()?.to_string_lossy().into_owned();
    let modes = env::vars().filter(|(name, _)| name.starts_with("CHASKI_EMULATE_"));
    let mut modes: Vec<_> = modes.map(|(name, value)| format!("{name}={value}")).collect();
    modes.sort_unstable();
    Some([vec![folder], modes].concat().join(" "))
}

/// The source that an emulated GPU runs as if the program had been built with it: one in the folder that
/// `CHASKI_EMULATE_KERNELS` names, else the built-in one.
///
/// # Errors
/// As [`Source::read`].
pub fn source(kernel: &'static Kernel) -> Result<Source> {
    if nvrtc().is_none() {
        return Ok(kernel.into());
    }
    let folder = env::var_os("CHASKI_EMULATE_KERNELS").map(PathBuf::from);
    let file = folder.map(|folder| folder.join(format!("{}.cu", kernel.name)));
    file.filter(|file| file.is_file()).map_or(Ok(kernel.into()), |file| Source::read(&file))
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

/// What checks the memory accesses of emulated kernels, as `CHASKI_EMULATE_SANITIZE` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitizer {
    None,
    /// AddressSanitizer and UndefinedBehaviorSanitizer: bounds and alignment.
    Address,
    /// ThreadSanitizer: races.
    Thread,
}

impl Sanitizer {
    pub const ALL: [Self; 3] = [Self::None, Self::Address, Self::Thread];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    fn from_environment() -> Result<Self> {
        let Some(given) = env::var_os(SANITIZE) else { return Ok(Self::None) };
        Self::ALL.into_iter().find(|known| given == known.name()).ok_or_else(|| {
            Error::usage(format!("{SANITIZE}: {given:?} is none of none, address, thread"))
        })
    }

    /// The variables that a process which emulates under this checker must be started with: the
    /// checker's runtime comes before everything else, and minds the kernels alone.
    ///
    /// # Errors
    /// When the compiler has no such checker.
    pub fn environment(self) -> Result<Vec<(&'static str, OsString)>> {
        let (library, options) = match self {
            Self::None => return Ok(vec![(SANITIZE, self.name().into())]),
            Self::Address => ("libasan.so", ("ASAN_OPTIONS", "detect_leaks=0")),
            Self::Thread => ("libtsan.so", ("TSAN_OPTIONS", "ignore_noninstrumented_modules=1")),
        };
        let path_of = |library| ask_compiler(&format!("-print-file-name={library}"));
        let path = path_of(library)?;
        if !Path::new(&path).is_absolute() {
            return Err(Error::failed(format!(
                "{} has no {library}, which --sanitize {} needs: install it, or name a g++ that has \
                 it in CHASKI_CXX",
                compiler().display(),
                self.name()
            )));
        }
        // The checkers look for what C++ throws with when they start, before the emulator brings it.
        let preload = format!("{path}:{}", path_of("libstdc++.so.6")?);
        let options = (options.0, OsString::from(options.1));
        Ok(vec![(SANITIZE, self.name().into()), ("LD_PRELOAD", preload.into()), options])
    }
}

const SANITIZE: &str = "CHASKI_EMULATE_SANITIZE";

/// Names and texts of the emulator's sources.
const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/emulator.rs"));

const CANNOT_BUILD: &str = "cannot build the emulated driver";

/// Builds the emulator, unless that has been done, and returns the folder it is in. `told` hears when it
/// begins.
///
/// # Errors
/// When there is no C++ compiler, or it fails.
pub fn build(sanitizer: Sanitizer, told: &dyn Fn(&str)) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let version = ask_compiler("--version")?;
    let parts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]);
    let name = format!("{}-{}", hash(parts.chain([version.as_str()])), sanitizer.name());
    let folder = user_cache().join("emulator").join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    told("building the emulated driver (once, then cached)");
    // Made under a name of its own: another process may be at it, too. Who is second finds the place
    // taken, by the same thing.
    let unfinished = folder.with_extension(std::process::id().to_string());
    let built = build_in(&unfinished, sanitizer);
    let moved = built.and_then(|()| match fs::rename(&unfinished, &folder) {
        Err(error) if !folder.is_dir() => Err(cannot_write(&folder, &error)),
        _ => Ok(folder),
    });
    // What is left of a failure, or of being second; one folder too many does no harm.
    let _ = fs::remove_dir_all(&unfinished);
    moved
}

fn build_in(folder: &Path, sanitizer: Sanitizer) -> Result<()> {
    for (name, text) in SOURCES {
        let path = folder.join("source").join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| cannot_write(&path, &error))?;
    }
    let mut command = Command::new("sh");
    let command = command.arg(folder.join("source/build.sh")).arg(sanitizer.name()).arg(folder);
    // A checker's runtime is for this process, not for the compiler.
    let output = command.env_remove("LD_PRELOAD").output();
    let output = output.map_err(|error| Error::failed(format!("{CANNOT_BUILD}: sh: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.lines().find(|line| line.contains("error")).or(errors.lines().next());
    Err(Error::failed(format!("{CANNOT_BUILD}: {}", line.unwrap_or("no reason given").trim())))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!(
        "{CANNOT_BUILD}: cannot write {}: {error}; XDG_CACHE_HOME can name another folder",
        path.display()
    ))
}

fn compiler() -> PathBuf {
    env::var_os("CHASKI_CXX").filter(|name| !name.is_empty()).unwrap_or("g++".into()).into()
}

/// What the C++ compiler answers to one argument.
fn ask_compiler(argument: &str) -> Result<String> {
    let compiler = compiler();
    let failed = |reason: &dyn Display| {
        Error::failed(format!(
            "{CANNOT_BUILD}: no C++ compiler {} ({reason}): install g++, or name another in CHASKI_CXX",
            compiler.display()
        ))
    };
    let output = Command::new(&compiler).arg(argument).env_remove("LD_PRELOAD").output();
    let output = output.map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
