//! Compiles the kernels, and tells the crate what came of it and which commit it is built from.
//!
//! Every `kernels/*.cu` is compiled by NVRTC to machine code for all architectures, or those in
//! `CHASKI_CUDA_ARCHS` (as in `sm_80,sm_90a`), and to PTX for others. Where there is no NVRTC, pip
//! fetches it into the target folder, unless `CHASKI_NO_FETCH` is set; without it the crate is built
//! all the same, with the sources alone. What has not changed is not compiled again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::{env, fs, thread};

use arch::{ARCHS, Arch, ptx_archs};
use compile::{CompileCache, CompileUnit, CompiledKernel};
use encoding::Encoding;
use nvrtc::{Nvrtc, Search};
use signature::{DeclaredField, FieldKind};

// Shared with the crate, which uses the rest of them.
#[allow(dead_code)]
#[path = "src/kernel/arch.rs"]
mod arch;
#[allow(dead_code)]
#[path = "src/kernel/compile.rs"]
mod compile;
#[allow(dead_code)]
#[path = "src/encoding.rs"]
mod encoding;
#[allow(dead_code)]
#[path = "src/kernel/nvrtc.rs"]
mod nvrtc;
#[allow(dead_code)]
#[path = "src/kernel/private.rs"]
mod private;
#[allow(dead_code)]
#[path = "src/kernel/signature/mod.rs"]
mod signature;

/// What one kernel became, by architecture.
type Images = Vec<(&'static Arch, CompiledKernel)>;

fn main() -> ExitCode {
    tell_version();
    println!("cargo::rerun-if-changed=kernels");
    for part in ["build.sh", "include", "src"] {
        println!("cargo::rerun-if-changed=emulator/{part}");
    }
    for name in ["CHASKI_NVRTC", "CHASKI_NO_FETCH", "CHASKI_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match build_kernels().and_then(|()| embed_emulator()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            message.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

/// For `--version`.
fn tell_version() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.trim().to_owned())
    };
    // Not `.git/HEAD`: in a worktree that is no path, and the build would run anew every time.
    let paths = git(&["rev-parse", "--git-path", "HEAD", "--git-path", "logs/HEAD"]);
    for path in paths.iter().flat_map(|paths| paths.lines()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = git(&["rev-parse", "--short=10", "HEAD"]);
    let commit = commit.as_deref().unwrap_or("outside git");
    println!("cargo::rustc-env=CHASKI_VERSION={} ({commit})", env!("CARGO_PKG_VERSION"));
    // As llama.cpp numbers its builds: commits up to this one.
    let number = git(&["rev-list", "--count", "HEAD"]);
    println!("cargo::rustc-env=CHASKI_BUILD_NUMBER={}", number.as_deref().unwrap_or("0"));
    let commit = if commit == "outside git" { "unknown" } else { commit };
    println!("cargo::rustc-env=CHASKI_COMMIT={commit}");
}

/// Writes `kernels.rs` into Cargo's output folder.
fn build_kernels() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR: Cargo sets it")?);
    let sources = read_folder(Path::new("kernels"), "cu")?;
    let library = read_folder(Path::new("kernels/lib"), "cuh")?;
    let headers: BTreeMap<String, &String> =
        library.iter().map(|(name, text)| (format!("lib/{name}.cuh"), text)).collect();
    let headers = headers.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let programs: Vec<CompileUnit> = sources
        .iter()
        .map(|(name, source)| {
            CompileUnit::new(name, &format!("kernels/{name}.cu"), source, &headers)
        })
        .collect::<Result<_, _>>()?;
    let archs = wanted_archs()?;
    let images = match find_nvrtc(&out)? {
        Some(nvrtc) => compile_all(&nvrtc, &programs, &archs, &out.join("kernels"))?,
        None => programs.iter().map(|_| Vec::new()).collect(),
    };
    let text = generate(&programs, &images).map_err(|error| format!("kernels.rs: {error}"))?;
    let path = out.join("kernels.rs");
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Writes `emulator.rs`, the names and texts of what the emulated driver is built from, on demand.
fn embed_emulator() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR: Cargo sets it")?);
    let root = env::current_dir().map_err(|error| format!("no current folder: {error}"))?;
    let mut text = String::from("&[\n");
    for (folder, extension) in [
        ("", "sh"),
        ("src/", "cpp"),
        ("src/", "h"),
        ("include/", "h"),
        ("include/lib/", "cuh"),
        ("include/cuda/", "h"),
        ("include/cuda/cooperative_groups/", "h"),
    ] {
        for stem in read_folder(&Path::new("emulator").join(folder), extension)?.into_keys() {
            let name = format!("{folder}{stem}.{extension}");
            let path = root.join("emulator").join(&name);
            text += &format!("({name:?}, include_str!({path:?})),\n");
        }
    }
    let path = out.join("emulator.rs");
    let failed = |error| format!("cannot write {}: {error}", path.display());
    fs::write(&path, text + "]\n").map_err(failed)
}

/// Names and texts of the files in `folder`, in order.
fn read_folder(folder: &Path, extension: &str) -> Result<BTreeMap<String, String>, String> {
    let failed = |error| format!("cannot read {}: {error}", folder.display());
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|is| is == extension) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(files)
}

/// Those of `CHASKI_CUDA_ARCHS`, in order of age, or all.
fn wanted_archs() -> Result<Vec<&'static Arch>, String> {
    let names = env::var("CHASKI_CUDA_ARCHS").unwrap_or_default();
    let names: Vec<&str> =
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = names.iter().find(|name| Arch::find(name).is_none()) {
        let known = ARCHS.map(|arch| arch.name).join(", ");
        return Err(format!("CHASKI_CUDA_ARCHS: {unknown:?} is none of {known}"));
    }
    let named = |arch: &&Arch| names.iter().any(|name| Arch::find(name) == Some(*arch));
    Ok(ARCHS.iter().filter(|arch| names.is_empty() || named(arch)).collect())
}

/// NVRTC from this machine, or fetched.
fn find_nvrtc(out: &Path) -> Result<Option<Nvrtc>, String> {
    let wheels = nvrtc::target_folder(out).unwrap_or(out).join("nvrtc");
    if let Some(found) =
        Nvrtc::find(&Search::from_variables(&|name| env::var_os(name)), Some(&wheels))?
    {
        return Ok(Some(found));
    }
    let without = "the kernels are built in as sources, to be compiled at run time";
    if env::var_os("CHASKI_NO_FETCH").is_some() {
        println!("cargo::warning=no NVRTC found and CHASKI_NO_FETCH is set: {without}");
        return Ok(None);
    }
    match fetch(&wheels) {
        Ok(()) => {
            println!("cargo::warning=no NVRTC found: fetched it by pip into {}", wheels.display());
            Nvrtc::find(&Search::from_variables(&|name| env::var_os(name)), Some(&wheels))
        }
        Err(error) => {
            println!("cargo::warning=no NVRTC found, and pip cannot fetch it ({error}): {without}");
            Ok(None)
        }
    }
}

/// Has pip unpack the pinned wheel, whose hash it checks, into `wheels`: all of it or nothing.
fn fetch(wheels: &Path) -> Result<(), String> {
    let unfinished = wheels.with_extension(std::process::id().to_string());
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--only-binary", ":all:", "-r", "kernels/nvrtc.txt", "--target"])
        .arg(&unfinished)
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if output.status.success() {
        let moved = fs::rename(&unfinished, wheels);
        return moved.map_err(|error| format!("cannot write {}: {error}", wheels.display()));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(errors.lines().last().unwrap_or("no reason given").trim().to_owned())
}

/// Compiles every program for every architecture, on all cores.
fn compile_all(
    nvrtc: &Nvrtc,
    programs: &[CompileUnit<'_>],
    archs: &[&'static Arch],
    folder: &Path,
) -> Result<Vec<Images>, String> {
    let (archs, unknown): (Vec<&Arch>, Vec<&Arch>) =
        archs.iter().partition(|arch| nvrtc.archs.contains(&arch.number()));
    for arch in unknown {
        let (major, minor) = nvrtc.version;
        println!("cargo::warning=NVRTC {major}.{minor} does not know {}: left out", arch.name);
    }
    let virtual_archs = ptx_archs(&archs);
    let cache = CompileCache { folder: folder.to_owned() };
    let jobs = programs.iter().enumerate().flat_map(|(kernel, program)| {
        let own = &program.signature.archs;
        let made_for = |arch: &&&Arch| own.is_empty() || own.iter().any(|own| own == arch.name);
        let cubins = archs.iter().filter(made_for).map(move |arch| (kernel, program, *arch, false));
        // What other GPUs compile for themselves is for any of them.
        let ptx = virtual_archs.iter().filter(|_| own.is_empty());
        cubins.chain(ptx.map(move |arch| (kernel, program, *arch, true)))
    });
    let jobs = Mutex::new(jobs);
    let done = Mutex::new(BTreeMap::new());
    let next = || jobs.lock().ok()?.next();
    let work = || {
        while let Some((kernel, program, arch, ptx)) = next() {
            let image = match ptx {
                false => program.cubin(nvrtc, arch.name, &cache),
                true => program.ptx(nvrtc, &arch.virtual_name(), &cache),
            };
            if let Ok(mut done) = done.lock() {
                done.insert((kernel, ptx, arch.number()), image.map(|image| (arch, image)));
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let asked = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(cores);
    thread::scope(|scope| (0..asked.clamp(1, cores)).for_each(|_| drop(scope.spawn(work))));
    let done = done.into_inner().map_err(|error| error.to_string())?;
    let mut images: Vec<Images> = programs.iter().map(|_| Vec::new()).collect();
    // A mistake is one on every architecture: it is told once.
    let mut errors = BTreeMap::new();
    for ((kernel, ..), image) in done {
        match image {
            Ok(image) => images[kernel].push(image),
            Err(error) => drop(errors.entry(kernel).or_insert(error)),
        }
    }
    if errors.is_empty() {
        forget_others(folder, &images);
        Ok(images)
    } else {
        Err(errors.into_values().collect::<Vec<_>>().join("\n"))
    }
}

/// Leaves of the cache what was asked for now.
fn forget_others(folder: &Path, images: &[Images]) {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_owned());
    let used: BTreeSet<_> = images.iter().flatten().map(|(_, image)| stem(&image.file)).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !used.contains(&stem(&entry.path())) {
            // A file too many does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The Rust side: the table of kernels and a struct of arguments for each.
fn generate(programs: &[CompileUnit<'_>], images: &[Images]) -> Result<String, std::fmt::Error> {
    // Constants refer to a static: anything else would be in the binary, with all the machine code,
    // once for each unit of the compiler's that uses one.
    let mut text =
        String::from("/// Every kernel, by name.\npub static KERNELS: &[Kernel] = &TABLE;\n");
    writeln!(text, "static TABLE: [Kernel; {}] = [", programs.len())?;
    for (program, images) in programs.iter().zip(images) {
        write_kernel(&mut text, program, images)?;
    }
    text.push_str("];\n");
    for (index, program) in programs.iter().enumerate() {
        write_arguments(&mut text, index, program)?;
    }
    Ok(text)
}

/// The kernel's entry in the table. `{:?}` of a string is a literal of Rust.
fn write_kernel(text: &mut String, program: &CompileUnit<'_>, images: &Images) -> std::fmt::Result {
    let signature = &program.signature;
    let name = &signature.name;
    let file =
        |path: &str| format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))");
    writeln!(text, "Kernel {{ name: {name:?}, summary: {:?},", signature.summary)?;
    writeln!(text, "description: {:?},", signature.description.join("\n"))?;
    writeln!(text, "source: {},", file(&format!("/kernels/{name}.cu")))?;
    writeln!(text, "headers: &[")?;
    for (header, _) in &program.headers {
        let path = file(&format!("/kernels/{header}"));
        writeln!(text, "Header {{ name: {header:?}, text: {path} }},")?;
    }
    writeln!(text, "], source_hash: {:?}, archs: &{:?},", program.source_hash, signature.archs)?;
    writeln!(text, "arguments: {:?}, argument_bytes: {},", signature.arguments, signature.bytes())?;
    writeln!(text, "fields: &[")?;
    for DeclaredField { name, kind, offset, comment } in &signature.fields {
        let (c_type, rust_type) = (kind.c_type(), kind.rust_type());
        let written = matches!(kind, FieldKind::State { written: true, .. });
        writeln!(
            text,
            "Field {{ name: {name:?}, c_type: {c_type:?}, rust_type: {rust_type:?}, offset: {offset}, \
             written: {written}, comment: {comment:?} }},"
        )?;
    }
    writeln!(text, "], exports: &[")?;
    for export in &signature.exports {
        let weights = match export.weights {
            Some(Encoding::Plain(float)) => format!("Some(Encoding::Plain(Float::{float:?}))"),
            Some(Encoding::Blocks(_) | Encoding::E4m3) => {
                unreachable!("there are no kernels for blocks and scaled numbers")
            }
            None => "None".to_owned(),
        };
        writeln!(
            text,
            "Export {{ name: {:?}, weights: {weights}, head_dim: {:?}, threads: {} }},",
            export.name, export.head_dim, export.threads
        )?;
    }
    writeln!(text, "], builds: &[")?;
    let (ptx, cubins): (Vec<_>, Vec<_>) =
        images.iter().partition(|(_, image)| image.file.extension().is_some_and(|e| e == "ptx"));
    let index = |arch: &Arch| ARCHS.iter().position(|known| known == arch).unwrap_or_default();
    for (arch, CompiledKernel { file, resources, .. }) in cubins {
        writeln!(text, "Build {{ arch: &ARCHS[{}], cubin: include_bytes!({file:?}),", index(arch))?;
        writeln!(text, "resources: &{resources:?} }},")?;
    }
    writeln!(text, "], ptx: &[")?;
    for (arch, CompiledKernel { file, .. }) in ptx {
        writeln!(text, "Ptx {{ arch: &ARCHS[{}], text: include_str!({file:?}) }},", index(arch))?;
    }
    writeln!(text, "] }},")
}

/// The struct of the kernel's arguments, and how it becomes the kernel's own.
fn write_arguments(text: &mut String, index: usize, program: &CompileUnit<'_>) -> std::fmt::Result {
    let signature = &program.signature;
    let (name, arguments) = (&signature.name, &signature.arguments);
    writeln!(text, "/// Arguments of kernel `{name}`: {}", signature.summary)?;
    if !signature.formula.is_empty() {
        writeln!(text, "///\n/// ```text")?;
        signature.formula.iter().try_for_each(|line| writeln!(text, "/// {line}"))?;
        writeln!(text, "/// ```")?;
    }
    writeln!(text, "#[derive(Debug, Clone, Copy)]\npub struct {arguments} {{")?;
    let given = || signature.fields.iter().filter(|field| field.kind != FieldKind::Trace);
    for DeclaredField { name, kind, comment, .. } in given() {
        let access = match kind {
            FieldKind::State { written: true, .. } => "Written. ",
            FieldKind::State { .. } | FieldKind::Weight | FieldKind::TensorMap => "Read. ",
            FieldKind::Scalar(_) | FieldKind::Trace => "",
        };
        // A shape is code: brackets alone would be a link.
        let comment = match comment.split_once(']').filter(|_| comment.starts_with('[')) {
            Some((shape, rest)) => format!("`{shape}]`{rest}"),
            None => comment.clone(),
        };
        if !comment.is_empty() {
            writeln!(text, "    /// {access}{comment}")?;
        }
        writeln!(text, "    pub {name}: {},", kind.rust_type())?;
    }
    writeln!(text, "}}\n\nimpl {arguments} {{")?;
    writeln!(text, "    pub const KERNEL: &'static Kernel = &TABLE[{index}];\n")?;
    writeln!(text, "    /// The same as the kernel takes it.")?;
    writeln!(text, "    pub fn arguments(&self) -> Arguments {{")?;
    writeln!(text, "        let mut arguments = Arguments::zeroed({});", signature.bytes())?;
    for DeclaredField { name, kind, offset, .. } in &signature.fields {
        let add = match kind {
            FieldKind::Weight => "weight",
            FieldKind::State { .. } => "slot",
            FieldKind::TensorMap => "map",
            FieldKind::Scalar(_) => "scalar",
            FieldKind::Trace => {
                writeln!(text, "        arguments.traced({offset});")?;
                continue;
            }
        };
        writeln!(text, "        arguments.{add}({offset}, self.{name});")?;
    }
    writeln!(text, "        arguments\n    }}\n}}\n")
}
