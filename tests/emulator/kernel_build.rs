//! What the build makes of kernels, good and broken, down to the machine code. No GPU is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use crate::tiny::TINY;
use chaski::kernel::compile::{CompileCache, CompileUnit};
use chaski::kernel::nvrtc::{Nvrtc, Search, target_folder};
use chaski::kernel::{ARCHS, Arch, KERNELS};
use tempfile::{TempDir, tempdir};

/// What Cargo gave the build script of this very build to write into.
const OUT: &str = env!("OUT_DIR");

fn search() -> Search {
    Search::from_variables(&|name| std::env::var_os(name))
}

/// What NVRTC is at hand, as the build looked for it. Without one there is nothing compiled to test.
fn nvrtc() -> Option<Nvrtc> {
    let wheels = target_folder(Path::new(OUT)).unwrap_or(Path::new(OUT)).join("nvrtc");
    let found = Nvrtc::find(&search(), Some(&wheels)).unwrap();
    if found.is_none() {
        eprintln!("skipped: no NVRTC on this machine");
        assert!(KERNELS.iter().all(|kernel| kernel.builds.is_empty() && kernel.ptx.is_empty()));
    }
    found
}

/// Once in all of the binary, not once in each unit of the compiler's that refers to a kernel.
#[test]
fn machine_code_is_in_a_binary_once() {
    let Some(_) = nvrtc() else { return };
    let build =
        KERNELS.iter().flat_map(|kernel| kernel.builds).max_by_key(|build| build.cubin.len());
    let cubin = build.unwrap().cubin;
    let binary = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(binary.windows(cubin.len()).filter(|bytes| *bytes == cubin).count(), 1);
}

#[test]
fn every_kernel_is_built_for_every_architecture_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let wanted = std::env::var("CHASKI_CUDA_ARCHS").unwrap_or_default();
    let wanted = ARCHS.iter().filter(|arch| wanted.is_empty() || wanted.contains(arch.name));
    let built: Vec<&Arch> = wanted.filter(|arch| nvrtc.archs.contains(&arch.number())).collect();
    let wanted: Vec<&str> = built.iter().map(|arch| arch.name).collect();
    for kernel in KERNELS {
        let name = kernel.name;
        let archs: Vec<&str> = kernel.builds.iter().map(|build| build.arch.name).collect();
        let suits = |arch: &&&str| kernel.archs.is_empty() || kernel.archs.contains(*arch);
        assert!(archs.iter().eq(wanted.iter().filter(suits)), "{name}: {archs:?}");
        let [_, virtual_archs] = kernel.forms_of_build(&built);
        assert!(kernel.ptx.iter().map(|ptx| ptx.arch).eq(virtual_archs), "{name}");
        for ptx in kernel.ptx {
            let target = format!(".target sm_{}", ptx.arch.number());
            assert!(ptx.text.contains(&target), "{name}: no {target}");
            let has = |name| ptx.text.contains(&format!(".entry {name}("));
            assert!(kernel.exports.iter().all(|export| has(export.name)), "{name}");
        }
        for build in kernel.builds {
            assert_eq!(build.cubin[..4], *b"\x7fELF", "{name}");
            assert_eq!(build.resources.len(), kernel.exports.len(), "{name}");
            for (resources, export) in build.resources.iter().zip(kernel.exports) {
                assert_eq!(
                    (resources.export, resources.max_threads),
                    (export.name, export.threads)
                );
                assert_eq!(
                    (resources.spill_bytes, resources.stack_bytes),
                    (0, 0),
                    "{}",
                    export.name
                );
                assert!((1..=255).contains(&resources.registers), "{resources:?}");
                assert!(resources.shared_bytes <= 48 << 10, "{resources:?}");
                let blocks = build.arch.resident_blocks(
                    resources.registers,
                    resources.shared_bytes,
                    resources.max_threads,
                );
                assert!(blocks > 0, "{resources:?} does not fit {}", build.arch.name);
            }
        }
        let on = |major, minor| kernel.build(major, minor).map(|build| build.arch.name);
        if wanted.len() == ARCHS.len() && kernel.archs.is_empty() {
            assert_eq!(
                [on(8, 0), on(8, 7), on(9, 0)],
                [Some("sm_80"), Some("sm_86"), Some("sm_90a")]
            );
            assert_eq!([on(7, 5), on(10, 3), on(13, 0)], [None; 3]);
        }
    }
}

fn program<'s>(source: &'s str, library: &[(&'s str, &'s str)]) -> Result<CompileUnit<'s>, String> {
    let library: BTreeMap<_, _> = library.iter().copied().collect();
    CompileUnit::new("tiny", "kernels/tiny.cu", source, &library)
}

fn types() -> &'static str {
    let mut headers = KERNELS.iter().flat_map(|kernel| kernel.headers);
    headers.find(|header| header.name == "lib/types.cuh").unwrap().text
}

fn cache() -> (TempDir, CompileCache) {
    let folder = tempdir().unwrap();
    let cache = CompileCache { folder: folder.path().join("below/it") };
    (folder, cache)
}

#[test]
fn only_what_changed_is_compiled_again() {
    let Some(nvrtc) = nvrtc() else { return };
    let (_folder, cache) = cache();
    let fresh = |source: &str, types: &str, other: &str, arch: &str| {
        let program =
            program(source, &[("lib/types.cuh", types), ("lib/other.cuh", other)]).unwrap();
        let image = program.cubin(&nvrtc, arch, &cache).unwrap();
        assert_eq!(image.resources.len(), 2);
        image.fresh
    };
    assert!(fresh(TINY, types(), "", "sm_80"));
    assert!(!fresh(TINY, types(), "", "sm_80"));
    assert!(!fresh(TINY, types(), "// not included", "sm_80"));
    assert!(fresh(TINY, types(), "", "sm_90a"));
    assert!(fresh(TINY, &format!("{}// changed\n", types()), "", "sm_80"));
    assert!(fresh(&TINY.replace("One number", "A number"), types(), "", "sm_80"));
    assert!(!fresh(TINY, types(), "", "sm_80"), "what was compiled before is kept");
}

#[test]
fn a_compile_error_names_the_line_of_its_own_file() {
    let Some(nvrtc) = nvrtc() else { return };
    let (_folder, cache) = cache();
    let error = |source: &str, library: &[(&str, &str)]| {
        let compile = |program: CompileUnit<'_>| program.cubin(&nvrtc, "sm_80", &cache).map(drop);
        program(source, library).and_then(compile).unwrap_err()
    };
    let wrong = TINY.replace("args.x[i]", "args.z[i]");
    let message = error(&wrong, &[("lib/types.cuh", types())]);
    assert!(message.starts_with("kernels/tiny.cu:18: error: "), "{message}");
    assert!(message.contains("args.z[i]"), "{message}");
    let message = error(TINY, &[("lib/types.cuh", &format!("{}\nint i = j;\n", types()))]);
    let line = types().lines().count() + 2;
    assert!(message.starts_with(&format!("kernels/lib/types.cuh:{line}: error: ")), "{message}");
    let message = error(TINY, &[]);
    assert!(message.starts_with("kernels/tiny.cu:4: error: a kernel includes"), "{message}");
    let message = error(TINY, &[("lib/types.cuh", "\n#include <stdint.h>\n")]);
    assert!(message.starts_with("kernels/lib/types.cuh:2: error: a kernel includes"), "{message}");
    let message =
        error(&TINY.replace("{ tiny(args); }", "{ tiny(args) }"), &[("lib/types.cuh", types())]);
    assert!(message.starts_with("kernels/tiny.cu:21: error: "), "{message}");
    assert!(message.contains("kernels/tiny.cu:22: error: "), "{message}");
}

#[test]
fn a_kernel_that_spills_is_refused() {
    let Some(nvrtc) = nvrtc() else { return };
    let (_folder, cache) = cache();
    // 256 numbers that all live until the barrier is passed; a thread has 64 registers.
    let body = "const uint32_t i = threadIdx.x; float v[256];
#pragma unroll
    for (int k = 0; k < 256; k++) v[k] = args.x[k * 1024 + i];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 256; k++) args.y[k * 1024 + i].bits = v[k] * v[255 - k];";
    let from = TINY.find("const uint32_t i").unwrap();
    let to = TINY.find("}\n\nextern").unwrap();
    let source = format!("{}{body}\n{}", &TINY[..from], &TINY[to..]).replace("(64, 2)", "(1024)");
    let program = program(&source, &[("lib/types.cuh", types())]).unwrap();
    let message = program.cubin(&nvrtc, "sm_80", &cache).map(drop).unwrap_err();
    let line = 1 + source.lines().position(|line| line.contains("tiny_bf16")).unwrap();
    assert!(
        message.starts_with(&format!("kernels/tiny.cu:{line}: error: tiny_bf16 spills ")),
        "{message}"
    );
    assert!(message.contains(" on sm_80"), "{message}");
}

/// Runs the build script of this build, in `root`, with an output folder and nothing of the
/// environment but what is given.
fn build_script(root: &Path, out: &Path, environment: &[(&str, &Path)]) -> Output {
    let folders = fs::read_dir(Path::new(OUT).ancestors().nth(2).unwrap()).unwrap();
    let scripts = folders.map(|entry| entry.unwrap().path().join("build-script-build"));
    let ours = |path: &PathBuf| path.to_str().is_some_and(|path| path.contains("/chaski-"));
    let time = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    let script = scripts.filter(ours).filter(|path| path.is_file()).max_by_key(time).unwrap();
    let mut command = Command::new(script);
    command.env_clear().env("OUT_DIR", out).env("PATH", "/nowhere").current_dir(root);
    if let Ok(archs) = std::env::var("CHASKI_CUDA_ARCHS") {
        command.env("CHASKI_CUDA_ARCHS", archs);
    }
    command.envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

fn lines_with(output: &Output, start: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect()
}

#[test]
fn a_second_build_compiles_nothing() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempdir().unwrap();
    let cache = folder.path().join("kernels");
    fs::create_dir(&cache).unwrap();
    for entry in fs::read_dir(Path::new(OUT).join("kernels")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, cache.join(path.file_name().unwrap())).unwrap();
    }
    let times = || -> BTreeMap<PathBuf, SystemTime> {
        let entries = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), path.metadata().unwrap().modified().unwrap())).collect()
    };
    let before = times();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = build_script(root, folder.path(), &[("CHASKI_NVRTC", &nvrtc.path)]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(times(), before);
    let generated = |out: &Path| fs::read_to_string(out.join("kernels.rs")).unwrap();
    let ours = generated(folder.path()).replace(folder.path().to_str().unwrap(), OUT);
    assert_eq!(ours, generated(Path::new(OUT)));
}

#[test]
fn a_build_without_nvrtc_goes_on_and_says_so_once() {
    let folder = tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = build_script(root, folder.path(), &[("CHASKI_NO_FETCH", Path::new("1"))]);
    assert!(output.status.success(), "{output:?}");
    let generated = fs::read_to_string(folder.path().join("kernels.rs")).unwrap();
    for kernel in KERNELS {
        assert!(generated.contains(&format!("pub struct {} {{", kernel.arguments)));
    }
    let warnings = lines_with(&output, "cargo::warning=");
    if generated.contains("include_bytes!") {
        assert!(warnings.is_empty(), "{warnings:?}"); // a CUDA toolkit is installed
    } else {
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("CHASKI_NO_FETCH is set"), "{warnings:?}");
        let output = build_script(root, folder.path(), &[]); // and Python is not in PATH
        let warnings = lines_with(&output, "cargo::warning=");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("pip cannot fetch it (python3: "), "{warnings:?}");
    }
}

#[test]
fn a_build_stops_at_mistakes_with_their_lines() {
    let folder = tempdir().unwrap();
    fs::create_dir_all(folder.path().join("kernels/lib")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join("kernels").join(name), text);
    write("lib/types.cuh", types()).unwrap();
    let build = |environment: &[(&str, &Path)]| {
        let output = build_script(folder.path(), folder.path(), environment);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        lines_with(&output, "cargo::error=")
    };
    write("tiny.cu", &TINY.replace("float eps;", "double eps;")).unwrap();
    let errors = build(&[("CHASKI_NO_FETCH", Path::new("1"))]);
    assert!(errors[0].starts_with("kernels/tiny.cu:13: error: "), "{errors:?}");
    write("tiny.cu", TINY).unwrap();
    let errors = build(&[("CHASKI_CUDA_ARCHS", Path::new("sm_80,sm_75"))]);
    assert!(errors[0].starts_with("CHASKI_CUDA_ARCHS: \"sm_75\" is none of sm_80, "), "{errors:?}");
    let errors = build(&[("CHASKI_NVRTC", folder.path())]);
    assert!(errors[0].starts_with("CHASKI_NVRTC: no libnvrtc.so in "), "{errors:?}");
    let Some(nvrtc) = nvrtc() else { return };
    write("tiny.cu", &TINY.replace("args.x[i]", "args.z[i]")).unwrap();
    let errors = build(&[("CHASKI_NVRTC", &nvrtc.path)]);
    assert!(errors[0].starts_with("kernels/tiny.cu:18: error: "), "{errors:?}");
    let of_bf16 = |error: &&String| error.contains("class \"Tiny<bf16>\" has no member");
    assert_eq!(errors.iter().filter(of_bf16).count(), 1, "once for all architectures: {errors:?}");
}
