//! Emulated GPUs as they are wanted, and the emulator that is built for them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::Library;
use tempfile::tempdir_in;

use crate::error::{Error, Result};
use crate::kernel::compile::hash;
use crate::kernel::{ARCHS, Arch, Paths, private};

/// Emulated GPUs as they are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulation {
    /// How many there are.
    pub devices: u32,
    /// Names and values as in `emulator/README.md`: `("CHASKI_EMULATE_ORDER", "descending")`.
    pub modes: Vec<(String, String)>,
    pub sanitizer: Sanitizer,
    /// The architectures that the program is taken to be built for.
    pub archs: Vec<&'static Arch>,
    /// Where sources lie that are taken as if they had been built in.
    pub kernels: Option<PathBuf>,
    /// The C++ compiler.
    pub compiler: PathBuf,
    pub paths: Paths,
}

impl Emulation {
    /// So many GPUs, with nothing special about them.
    pub fn new(devices: u32) -> Self {
        Self {
            devices,
            modes: Vec::new(),
            sanitizer: Sanitizer::None,
            archs: ARCHS.iter().collect(),
            kernels: None,
            compiler: "g++".into(),
            paths: Paths::default(),
        }
    }

    /// So many GPUs as the variables of an environment say: `CHASKI_EMULATE_...`, `CHASKI_CXX`, and where the
    /// cache is ([`Paths::from_variables`]).
    ///
    /// # Errors
    /// A value that is not understood. Modes are judged by [`emulate`].
    pub fn from_variables(
        devices: u32,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self> {
        let variables: BTreeMap<OsString, OsString> = variables.collect();
        let mut emulation = Self::new(devices);
        emulation.paths = Paths::from_variables(&|name| variables.get(OsStr::new(name)).cloned());
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|_| !value.is_empty()) else { continue };
            let text = || value.to_string_lossy().into_owned();
            match name {
                "CHASKI_CXX" => emulation.compiler = value.into(),
                "CHASKI_EMULATE_KERNELS" => emulation.kernels = Some(value.into()),
                "CHASKI_EMULATE_ARCHS" => emulation.archs = archs(&text())?,
                SANITIZE => emulation.sanitizer = Sanitizer::named(&text())?,
                _ if name.starts_with("CHASKI_EMULATE_") => {
                    emulation.modes.push((name.to_owned(), text()));
                }
                _ => (),
            }
        }
        emulation.modes.sort_unstable();
        Ok(emulation)
    }

    /// The variables that a process which emulates so must be started with: a checker's runtime comes
    /// before everything else, and minds the kernels alone.
    ///
    /// # Errors
    /// When the compiler has no such checker.
    pub fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let sanitizer = self.sanitizer;
        let (library, options) = match sanitizer {
            Sanitizer::None => return Ok(vec![(SANITIZE, sanitizer.name().into())]),
            Sanitizer::Address => ("libasan.so", ("ASAN_OPTIONS", "detect_leaks=0")),
            Sanitizer::Thread => {
                ("libtsan.so", ("TSAN_OPTIONS", "ignore_noninstrumented_modules=1"))
            }
        };
        let path_of = |library| self.ask_compiler(&format!("-print-file-name={library}"));
        let path = path_of(library)?;
        if !Path::new(&path).is_absolute() {
            return Err(Error::failed(format!(
                "{} has no {library}, which `sanitize` {} needs: install it, or name a g++ that has \
                 it in CHASKI_CXX",
                self.compiler.display(),
                sanitizer.name()
            )));
        }
        // The checkers look for what C++ throws with when they start, before the emulator brings it.
        let preload = format!("{path}:{}", path_of("libstdc++.so.6")?);
        let options = (options.0, OsString::from(options.1));
        Ok(vec![(SANITIZE, sanitizer.name().into()), ("LD_PRELOAD", preload.into()), options])
    }

    /// What the C++ compiler answers to one argument.
    fn ask_compiler(&self, argument: &str) -> Result<String> {
        let failed = |reason: &dyn Display| {
            Error::failed(format!(
                "{CANNOT_BUILD}: no C++ compiler {} ({reason}): install g++, or name another in \
                 CHASKI_CXX",
                self.compiler.display()
            ))
        };
        let output = Command::new(&self.compiler).arg(argument).env_remove("LD_PRELOAD").output();
        let output = output.map_err(|error| failed(&error))?;
        if !output.status.success() {
            return Err(failed(&output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn archs(names: &str) -> Result<Vec<&'static Arch>> {
    let unknown = |name: &str| Error::usage(format!("CHASKI_EMULATE_ARCHS: {name:?} is unknown"));
    names.split(',').map(|name| Arch::find(name).ok_or_else(|| unknown(name))).collect()
}

/// What checks the memory accesses of emulated kernels.
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

    fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|known| name == known.name()).ok_or_else(|| {
            Error::usage(format!("{SANITIZE}: {name:?} is none of none, address, thread"))
        })
    }

    /// Whether this process has its runtime.
    pub fn is_here(self) -> bool {
        let function: &[u8] = match self {
            Self::None => return true,
            Self::Address => b"__asan_init\0",
            Self::Thread => b"__tsan_init\0",
        };
        // SAFETY: the function is looked for, and not called.
        unsafe { Library::this().get::<unsafe extern "C" fn()>(function) }.is_ok()
    }
}

const SANITIZE: &str = "CHASKI_EMULATE_SANITIZE";

/// Names and texts of the emulator's sources.
const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/emulator.rs"));

/// What is built of them, beside the folder of headers for kernels.
pub(super) const DRIVER: &str = "libcuda.so.1";
pub(super) const NCCL: &str = "libnccl.so.2";
pub(super) const NVRTC: &str = "libnvrtc.so.13";

const CANNOT_BUILD: &str = "cannot build the emulated driver";

/// Builds the emulator, unless that has been done, and returns the folder it is in. `on_message`
/// hears when that takes its time.
///
/// # Errors
/// When there is no C++ compiler, or it fails; a cache that others can write.
pub fn build(emulation: &Emulation, on_message: &dyn Fn(&str)) -> Result<PathBuf> {
    let version = emulation.ask_compiler("--version")?;
    let parts = SOURCES.iter().flat_map(|(name, text)| [*name, *text]);
    let hash = hash(parts.chain([version.as_str()]));
    let cache = emulation.paths.user_cache("emulator")?;
    let folder = cache.join(format!("{hash}-{}", emulation.sanitizer.name()));
    if is_whole(&folder) {
        return Ok(folder);
    }
    // One at a time: it takes all cores for a minute.
    let cannot = |error| cannot_write(&cache, &error);
    let lock = OpenOptions::new().create(true).append(true).open(cache.join("lock"));
    let lock = lock.map_err(cannot)?;
    if lock.try_lock().is_err() {
        on_message("another process is building the emulated driver: waiting for it");
        lock.lock().map_err(cannot)?;
    }
    if is_whole(&folder) {
        return Ok(folder);
    }
    on_message("building the emulated driver (once, then cached)");
    let (unfinished, unused) = (tempdir_in(&cache), tempdir_in(&cache));
    let (unfinished, unused) = (unfinished.map_err(cannot)?, unused.map_err(cannot)?);
    build_in(unfinished.path(), emulation)?;
    let _ = fs::rename(&folder, unused.path()); // what is not whole, if anything
    fs::rename(unfinished.path(), &folder).map_err(|error| cannot_write(&folder, &error))?;
    let _ = unfinished.keep(); // has its name: there is nothing left to remove
    Ok(folder)
}

/// Whether a folder has all that is built, and nobody else can have written it.
fn is_whole(folder: &Path) -> bool {
    let headers = SOURCES.iter().filter(|(name, _)| name.starts_with("include/"));
    let mut headers = headers.map(|(name, text)| (folder.join(name), text));
    private::is_private(folder)
        && [DRIVER, NCCL, NVRTC].iter().all(|name| private::is_private(&folder.join(name)))
        && headers.all(|(path, text)| private::read(&path).is_ok_and(|it| it == text.as_bytes()))
}

fn build_in(folder: &Path, emulation: &Emulation) -> Result<()> {
    for (name, text) in SOURCES {
        let path = folder.join("source").join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| cannot_write(&path, &error))?;
    }
    let mut command = Command::new("sh");
    let sanitizer = emulation.sanitizer.name();
    let command = command.arg(folder.join("source/build.sh")).arg(sanitizer).arg(folder);
    // A checker's runtime is for this process, not for the compiler.
    let command = command.env("CHASKI_CXX", &emulation.compiler).env_remove("LD_PRELOAD");
    let output = command.output();
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
