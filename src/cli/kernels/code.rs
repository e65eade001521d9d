//! What the compiler makes of kernels: `chaski kernels ptx`, `sass`, and `list --source`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::cli::args::CodeArgs;
use crate::cli::open::defaults;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::kernel::nvrtc::{CodeFormat, Compiled, Nvrtc, python_paths};
use crate::kernel::{ARCHS, Arch, CudaFile, Kernel, Resources, find_nvrtc, resources_of};

/// Threads of a block where nothing says how many.
const USUAL_THREADS: u32 = 256;

/// The architecture of this name.
///
/// # Errors
/// When there is none.
pub fn arch_named(name: &str) -> Result<&'static Arch> {
    let names = || ARCHS.map(|arch| arch.name).join(", ");
    Arch::find(name)
        .ok_or_else(|| Error::usage(format!("no architecture {name}: there are {}", names())))
}

/// The architecture that is looked at unless one is named.
fn usual_arch(args: &CodeArgs) -> Result<&'static Arch> {
    arch_named(args.arch.as_deref().unwrap_or("sm_90a"))
}

/// Prints PTX, with the lines of a file of one's own.
///
/// # Errors
/// What the compiler has against it; a kernel that is not built for the architecture.
pub fn ptx(args: &CodeArgs) -> Result<()> {
    let arch = usual_arch(args)?;
    match (&args.source, named(args)?) {
        (Some(source), _) => {
            let (made, _) = compiled(args, &CudaFile::read(source)?, arch, CodeFormat::Ptx)?;
            print(&(String::from_utf8_lossy(&made.code).trim_end().to_owned() + "\n"))
        }
        (None, Some(kernel)) => {
            let ptx = kernel.ptx.iter().rev().find(|ptx| ptx.arch.number() <= arch.number());
            print(ptx.ok_or_else(|| not_built(kernel, arch))?.text)
        }
        (None, None) => Err(neither()),
    }
}

/// Prints machine code, by NVIDIA's disassembler, with the lines of a file of one's own.
///
/// # Errors
/// As [`ptx`]; no disassembler.
pub fn sass(args: &CodeArgs) -> Result<()> {
    let arch = usual_arch(args)?;
    let code = match (&args.source, named(args)?) {
        (Some(source), _) => {
            compiled(args, &CudaFile::read(source)?, arch, CodeFormat::Cubin)?.0.code
        }
        (None, Some(kernel)) => {
            let build = kernel.builds.iter().find(|build| build.arch == arch);
            build.ok_or_else(|| not_built(kernel, arch))?.cubin.to_vec()
        }
        (None, None) => return Err(neither()),
    };
    let program = disassembler()?;
    let failed = |why: &dyn std::fmt::Display| {
        Error::failed(format!("cannot disassemble with {}: {why}", program.display()))
    };
    let file = tempfile::NamedTempFile::new().map_err(|error| failed(&error))?;
    fs::write(file.path(), code).map_err(|error| failed(&error))?;
    let output = Command::new(&program)
        .args(["--print-line-info", "--print-code"])
        .arg(file.path())
        .output();
    let output = output.map_err(|error| failed(&error))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(failed(&errors.lines().next().unwrap_or("no reason given")));
    }
    print(&String::from_utf8_lossy(&output.stdout))
}

fn neither() -> Error {
    Error::usage("name a kernel, as `kernels list` does, or a file by --source")
}

fn not_built(kernel: &Kernel, arch: &Arch) -> Error {
    let builds: Vec<_> = kernel.builds.iter().map(|build| build.arch.name).collect();
    Error::failed(format!(
        "{} is not built for {}: it is for {}",
        kernel.name,
        arch.name,
        if builds.is_empty() { "none, without NVRTC".to_owned() } else { builds.join(", ") }
    ))
}

fn named(args: &CodeArgs) -> Result<Option<&'static Kernel>> {
    match (args.name, &args.source) {
        (Some(kernel), None) => Ok(Some(kernel)),
        (Some(_), Some(_)) => {
            Err(Error::usage("a NAME is a built-in kernel's: leave it or --source out"))
        }
        (None, _) => Ok(None),
    }
}

/// What NVRTC makes of a file, and how its kernels are named: the one that is asked for, or all that
/// need no more than their names.
fn compiled(
    args: &CodeArgs,
    file: &CudaFile,
    arch: &Arch,
    output: CodeFormat,
) -> Result<(Compiled, Vec<String>)> {
    let entries = match &args.entry {
        Some(entry) => vec![file.kernel(Some(entry))?.1],
        None => file.entries(),
    };
    if entries.is_empty() {
        file.kernel(None)?; // says how to name a template
    }
    let nvrtc = nvrtc()?;
    let arch = match output {
        CodeFormat::Cubin => arch.name.to_owned(),
        CodeFormat::Ptx => arch.virtual_name(),
    };
    let made = file.compile(&nvrtc, &arch, (output, &entries), false)?;
    Ok((made, entries))
}

fn nvrtc() -> Result<Nvrtc> {
    find_nvrtc(&defaults()?.cuda.paths)
}

/// Prints what the kernels of a file take on some architectures.
///
/// # Errors
/// What the compiler has against them.
pub fn list(args: &CodeArgs, as_json: bool) -> Result<()> {
    let Some(source) = &args.source else { return Err(neither()) };
    named(args)?;
    let file = CudaFile::read(source)?;
    let archs: Vec<&Arch> = match &args.arch {
        Some(name) => vec![arch_named(name)?],
        None => {
            let known = nvrtc()?.archs;
            ARCHS.iter().filter(|arch| known.contains(&arch.number())).collect()
        }
    };
    let mut rows = Vec::new();
    for arch in archs {
        let (made, entries) = compiled(args, &file, arch, CodeFormat::Cubin)?;
        for (entry, symbol) in entries.iter().zip(&made.symbols) {
            let kernel = file.kernel(Some(entry))?.0;
            let threads = file.threads(kernel).unwrap_or(USUAL_THREADS);
            let found = resources_of(&made.log, symbol, threads);
            rows.extend(found.map(|resources| (entry.clone(), arch, resources)));
        }
    }
    print(&if as_json { json_of(&rows)? } else { table_of(&rows) })
}

type Row<'a> = (String, &'a Arch, Resources);

fn occupancy((_, arch, resources): &Row<'_>) -> f64 {
    arch.occupancy(resources.registers, resources.shared_bytes, resources.max_threads)
}

fn table_of(rows: &[Row<'_>]) -> String {
    let width = rows.iter().map(|(entry, ..)| entry.len()).max().unwrap_or(0).max("kernel".len());
    let mut text = format!(
        "{:<width$}  arch     registers  shared bytes  stack bytes  spill bytes  threads  occupancy\n",
        "kernel"
    );
    for row in rows {
        let (
            entry,
            arch,
            Resources { registers, shared_bytes, stack_bytes, spill_bytes, max_threads, .. },
        ) = row;
        writeln!(
            text,
            "{entry:<width$}  {:<7}  {registers:>9}  {shared_bytes:>12}  {stack_bytes:>11}  \
             {spill_bytes:>11}  {max_threads:>7}  {:>8.0}%",
            arch.name,
            100.0 * occupancy(row)
        )
        .expect("a String takes any text");
    }
    text
}

fn json_of(rows: &[Row<'_>]) -> Result<String> {
    let rows = rows.iter().map(|row| {
        let (entry, arch, resources) = row;
        json!({
            "name": entry,
            "arch": arch.name,
            "registers": resources.registers,
            "shared_bytes": resources.shared_bytes,
            "stack_bytes": resources.stack_bytes,
            "spill_bytes": resources.spill_bytes,
            "threads": resources.max_threads,
            "occupancy": occupancy(row),
        })
    });
    let text = serde_json::to_string_pretty(&rows.collect::<Vec<Value>>());
    text.map(|text| text + "\n")
        .map_err(|error| Error::failed(format!("cannot write JSON: {error}")))
}

/// NVIDIA's, of a toolkit or of its wheel.
fn disassembler() -> Result<PathBuf> {
    let name = "nvdisasm";
    let variables = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let toolkits = variables.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = std::env::split_paths(&path).collect();
    let wheels = python_paths().into_iter();
    let wheels = wheels
        .flat_map(|path| ["nvidia/cu13/bin", "nvidia/cuda_nvdisasm/bin"].map(|bin| path.join(bin)));
    let mut places = on_path.into_iter().chain(toolkits.map(|root| root.join("bin"))).chain(wheels);
    let found = places.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.ok_or_else(|| {
        Error::failed(
            "no nvdisasm here; `pip install nvidia-cuda-nvdisasm`, or put a CUDA toolkit's on the \
             path",
        )
    })
}
