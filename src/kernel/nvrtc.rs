//! NVIDIA's run-time compiler: where it may be, and the few calls that are made to it.
//!
//! The library is loaded by path, never linked: the crate builds and runs where there is none.

use std::env;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// NVRTC, loaded.
pub struct Nvrtc {
    functions: Functions,
    /// The library's file.
    pub path: PathBuf,
    pub version: (i32, i32),
    /// The architectures that it compiles for, as numbers: 80, 86, ...
    pub archs: Vec<u32>,
    /// Keeps the functions' code in memory.
    _libraries: Vec<Library>,
}

/// What comes out of a compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeFormat {
    /// Machine code, for an architecture `sm_...`.
    Cubin,
    /// Portable assembly, for one `compute_...`.
    Ptx,
}

type Handle = *mut c_void;
type Status = c_int;
type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> Status;
type CopyOf = unsafe extern "C" fn(Handle, *mut c_char) -> Status;

/// The library's functions, with the prototypes of nvrtc.h.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Handle) -> Status,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status,
    add_expression: unsafe extern "C" fn(Handle, *const c_char) -> Status,
    lowered_name: unsafe extern "C" fn(Handle, *const c_char, *mut *const c_char) -> Status,
    log: (SizeOf, CopyOf),
    cubin: (SizeOf, CopyOf),
    ptx: (SizeOf, CopyOf),
}

/// Where NVRTC is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Search {
    /// A library, or the folder that has it, which must do.
    pub given: Option<PathBuf>,
    /// Folders of an installed CUDA toolkit.
    pub toolkits: Vec<PathBuf>,
}

impl Search {
    /// `CHASKI_NVRTC`, else `CUDA_HOME`, `CUDA_PATH` and `LD_LIBRARY_PATH`.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let given = variable("CHASKI_NVRTC").filter(|given| !given.is_empty());
        let asked = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        let roots = asked.map(PathBuf::from).filter(|root| root.is_absolute());
        let mut toolkits: Vec<PathBuf> = roots.flat_map(inside).collect();
        let paths = variable("LD_LIBRARY_PATH").unwrap_or_default();
        toolkits.extend(env::split_paths(&paths).filter(|folder| folder.is_absolute()));
        Self { given: given.map(PathBuf::from), toolkits }
    }
}

impl Nvrtc {
    /// The first NVRTC among what `search` says, the usual places of a system, `wheels` (where pip was told
    /// to unpack the wheel) and Python's own packages.
    ///
    /// # Errors
    /// When what is given cannot be used. Elsewhere such a library is passed over.
    pub fn find(search: &Search, wheels: Option<&Path>) -> Result<Option<Self>, String> {
        if let Some(given) = &search.given {
            let library =
                if given.is_dir() { newest(given, "libnvrtc.so") } else { Some(given.clone()) };
            let Some(library) = library else {
                return Err(format!("CHASKI_NVRTC: no libnvrtc.so in {}", given.display()));
            };
            return Self::load(&library)
                .map(Some)
                .map_err(|error| format!("CHASKI_NVRTC: {error}"));
        }
        let load = |folder: PathBuf| Self::load(&newest(&folder, "libnvrtc.so")?).ok();
        let toolkits = search.toolkits.iter().cloned().chain(usual());
        let near = toolkits.chain(wheels.into_iter().flat_map(packages));
        if let Some(found) = near.into_iter().find_map(load) {
            return Ok(Some(found));
        }
        Ok(python_paths().iter().flat_map(|path| packages(path)).find_map(load))
    }

    /// Loads the library at `path`.
    ///
    /// # Errors
    /// When it cannot be loaded, or lacks a function: it is older than CUDA 11.2.
    pub fn load(path: &Path) -> Result<Self, String> {
        let failed = |error| format!("cannot load {}: {error}", path.display());
        let path = path.canonicalize().map_err(|error| failed(error.to_string()))?;
        // NVRTC opens its builtins by bare name, which finds them in a wheel only if they are there
        // already.
        let builtins = path.parent().and_then(|folder| newest(folder, "libnvrtc-builtins.so"));
        let mut libraries = Vec::new();
        for path in builtins.iter().chain([&path]) {
            // SAFETY: the initialisers of NVRTC and of its builtins, the libraries of these names, ask
            // nothing of who loads them.
            let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
            libraries.push(library.map_err(|error| failed(error.to_string()))?);
        }
        let functions = Functions::of(&libraries[libraries.len() - 1])
            .map_err(|error| failed(format!("{error}; CUDA 11.2 or newer is needed")))?;
        let mut version = (0, 0);
        let mut count = 0;
        // SAFETY: both calls write integers to where they are told to.
        unsafe {
            functions
                .check((functions.version)(&mut version.0, &mut version.1))
                .map_err(&failed)?;
            functions.check((functions.arch_count)(&mut count)).map_err(&failed)?;
        }
        let mut archs: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or_default()];
        // SAFETY: the library writes as many numbers as it has said.
        functions.check(unsafe { (functions.archs)(archs.as_mut_ptr()) }).map_err(&failed)?;
        let archs = archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect();
        Ok(Self { functions, path, version, archs, _libraries: libraries })
    }

    /// Compiles `source`, which messages call `name`, with the headers (name, text) that it may
    /// include. Returns the code and the log. Programs may be compiled on several threads at once.
    ///
    /// # Errors
    /// The log, or what NVRTC says where there is none.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
        output: CodeFormat,
    ) -> Result<(Vec<u8>, String), String> {
        let made = self.compile_entries(name, source, headers, options, (output, &[]))?;
        Ok((made.code, made.log))
    }

    /// As [`Self::compile`], with the kernels that expressions name: `reduce<float, 256>`.
    ///
    /// # Errors
    /// As [`Self::compile`]; an expression that names no kernel.
    pub fn compile_entries(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
        (output, entries): (CodeFormat, &[String]),
    ) -> Result<Compiled, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{name}: a byte 0 in it"));
        let (source, title) = (text(source)?, text(name)?);
        let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, arguments) = (pointers(&names), pointers(&texts), pointers(&options));
        let entries = entries.iter().map(|entry| text(entry)).collect::<Result<Vec<_>, _>>()?;
        let mut program = NvrtcProgram { functions: &self.functions, handle: ptr::null_mut() };
        // SAFETY: all strings end in 0 and live until the calls return; the counts are the lists' own.
        let status = unsafe {
            self.functions.check((self.functions.create)(
                &mut program.handle,
                source.as_ptr(),
                title.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            ))?;
            for entry in &entries {
                let added = (self.functions.add_expression)(program.handle, entry.as_ptr());
                self.functions.check(added)?;
            }
            (self.functions.compile)(program.handle, arguments.len() as c_int, arguments.as_ptr())
        };
        let log = program.read(self.functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
        if let Err(error) = self.functions.check(status) {
            return Err(if log.is_empty() { error } else { log });
        }
        let mut code = match output {
            CodeFormat::Cubin => program.read(self.functions.cubin)?,
            CodeFormat::Ptx => program.read(self.functions.ptx)?,
        };
        if output == CodeFormat::Ptx {
            code.pop_if(|last| *last == 0); // text, for whoever wants to include it
        }
        let symbols = entries.iter().map(|entry| program.lowered_name(entry));
        let symbols = symbols.collect::<Result<_, _>>()?;
        Ok(Compiled { code, log, symbols })
    }

    /// Where NVIDIA's headers may be that go with this compiler, such as cuda_fp16.h: of a toolkit, or of the
    /// wheels `nvidia-cuda-runtime` and `nvidia-cuda-cccl`.
    pub fn header_folders(&self) -> Vec<PathBuf> {
        let near = self.path.ancestors().skip(1).take(4).map(|folder| folder.join("include"));
        let python = python_paths().into_iter();
        let wheels = python.flat_map(|path| {
            ["nvidia/cu13/include", "nvidia/cuda_runtime/include", "nvidia/cuda_cccl/include"]
                .map(|folder| path.join(folder))
        });
        let has = |folder: &PathBuf| {
            ["cuda_fp16.h", "nv/target"].iter().any(|f| folder.join(f).is_file())
        };
        let folders = near.chain(wheels).filter(has);
        folders.flat_map(|folder| [folder.join("cccl"), folder]).filter(|f| f.is_dir()).collect()
    }
}

/// What came of a compilation.
pub struct Compiled {
    pub code: Vec<u8>,
    pub log: String,
    /// What the code calls the kernels that were asked for by expressions.
    pub symbols: Vec<String>,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those of nvrtc.h, which no version has changed.
        unsafe {
            Ok(Self {
                version: *library.get(b"nvrtcVersion\0")?,
                arch_count: *library.get(b"nvrtcGetNumSupportedArchs\0")?,
                archs: *library.get(b"nvrtcGetSupportedArchs\0")?,
                error_string: *library.get(b"nvrtcGetErrorString\0")?,
                create: *library.get(b"nvrtcCreateProgram\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                add_expression: *library.get(b"nvrtcAddNameExpression\0")?,
                lowered_name: *library.get(b"nvrtcGetLoweredName\0")?,
                log: (
                    *library.get(b"nvrtcGetProgramLogSize\0")?,
                    *library.get(b"nvrtcGetProgramLog\0")?,
                ),
                cubin: (*library.get(b"nvrtcGetCUBINSize\0")?, *library.get(b"nvrtcGetCUBIN\0")?),
                ptx: (*library.get(b"nvrtcGetPTXSize\0")?, *library.get(b"nvrtcGetPTX\0")?),
            })
        }
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a string of its own for every number.
        let message = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NVRTC says {}", message.to_string_lossy()))
    }
}

/// A program that is destroyed at the end.
struct NvrtcProgram<'f> {
    functions: &'f Functions,
    handle: Handle,
}

impl NvrtcProgram<'_> {
    /// What the code calls the kernel that an expression names.
    fn lowered_name(&self, expression: &CStr) -> Result<String, String> {
        let mut name = ptr::null();
        // SAFETY: the expression was added before the program was compiled; the library writes a pointer to
        // a string that the program owns.
        unsafe {
            let lowered = self.functions.lowered_name;
            self.functions.check(lowered(self.handle, expression.as_ptr(), &mut name))?;
            Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// What one of the library's pairs of size and copy returns.
    fn read(&self, (size, copy): (SizeOf, CopyOf)) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the handle is of a program that was created; the size is written where it is told.
        self.functions.check(unsafe { size(self.handle, &mut bytes) })?;
        let mut result = vec![0u8; bytes];
        // SAFETY: the library writes as many bytes as it has said.
        self.functions.check(unsafe { copy(self.handle, result.as_mut_ptr().cast()) })?;
        Ok(result)
    }
}

impl Drop for NvrtcProgram<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by this library and destroyed once.
            unsafe { (self.functions.destroy)(&mut self.handle) };
        }
    }
}

/// The folder into which Cargo builds, that `path` is in: where wheels and other things fetched for the
/// build lie.
pub fn target_folder(path: &Path) -> Option<&Path> {
    path.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())
}

/// Where a CUDA toolkit has its libraries.
fn inside(root: PathBuf) -> impl Iterator<Item = PathBuf> {
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    folders.into_iter().map(move |folder| root.join(folder))
}

/// Where a system usually has NVRTC.
fn usual() -> impl Iterator<Item = PathBuf> {
    let toolkits = ["/usr/local/cuda", "/opt/cuda"].into_iter().map(PathBuf::from);
    let system =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    toolkits.flat_map(inside).chain(system.into_iter().map(PathBuf::from))
}

/// Where NVIDIA's wheels put NVRTC below a folder of Python packages: CUDA 13, CUDA 12.
fn packages(path: &Path) -> [PathBuf; 2] {
    ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"].map(|folder| path.join(folder))
}

/// Where Python looks for packages; none without Python.
pub fn python_paths() -> Vec<PathBuf> {
    let program = "import sys; print('\\n'.join(path for path in sys.path if path))";
    let output = Command::new("python3").args(["-c", program]).output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().map(PathBuf::from).collect()
}

/// The file `name`, or `name` and a version, in `folder`: the one of the highest version.
fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    let version = |path: &Path| {
        let rest = path.file_name()?.to_str()?.strip_prefix(name)?.to_owned();
        let numbers = rest.split('.').skip(1).map(|number| number.parse().ok());
        numbers.collect::<Option<Vec<u32>>>().filter(|_| rest.is_empty() || rest.starts_with('.'))
    };
    let entries = std::fs::read_dir(folder).ok()?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter_map(|path| Some((version(&path)?, path))).max().map(|(_, path)| path)
}
