//! A CUDA file of somebody's own: the kernels that it declares, as far as its text tells, and its code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::KERNELS;
use super::c_headers::C_HEADERS;
use super::nvrtc::{CodeFormat, Compiled, Nvrtc};
use super::source::read;
use crate::error::{Error, Result};

/// A CUDA file, read.
#[derive(Debug, Clone)]
pub struct CudaFile {
    pub path: PathBuf,
    pub text: String,
    pub kernels: Vec<Declared>,
}

/// A `__global__` function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// From 1.
    pub line: usize,
    /// Has parameters that its name does not give: it is named with them, `reduce<float>`.
    pub is_template: bool,
    /// Of a block at most, where `__launch_bounds__` says it in digits.
    pub threads: Option<u32>,
    pub parameters: Vec<Parameter>,
}

/// Of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    /// As it is written, without qualifiers: `float`, or `float*`.
    pub c_type: String,
    pub is_pointer: bool,
    /// It points to what the kernel may write.
    pub is_written: bool,
}

impl CudaFile {
    /// # Errors
    /// A file that cannot be read, or has no kernel.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let kernels = declared(&text);
        if kernels.is_empty() {
            let path = path.display();
            return Err(Error::failed(format!("{path}: no __global__ function in this file")));
        }
        Ok(Self { path: path.to_owned(), text, kernels })
    }

    /// The kernel that `entry` names, which is `name` or `name<types>`, or the only one.
    ///
    /// # Errors
    /// When there is none of this name, or none is named and there are several, or a template is named
    /// without its parameters.
    pub fn kernel(&self, entry: Option<&str>) -> Result<(&Declared, String)> {
        let path = self.path.display();
        let names: Vec<_> = self.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        let names = names.join(", ");
        let kernel = match entry {
            Some(entry) => {
                let path_of = entry.split('<').next().unwrap_or(entry).trim();
                let name = path_of.rsplit("::").next().unwrap_or(path_of);
                let found = self.kernels.iter().find(|kernel| kernel.name == name);
                found.ok_or_else(|| {
                    Error::usage(format!("{path} has no kernel {name}: it has {names}"))
                })?
            }
            None if self.kernels.len() == 1 => &self.kernels[0],
            None => {
                return Err(Error::usage(format!("{path} has {names}: name one with `entry`")));
            }
        };
        let entry = entry.unwrap_or(&kernel.name);
        if kernel.is_template && !entry.contains('<') {
            return Err(Error::usage(format!(
                "{path}:{}: {} is a template: name it with its parameters, `entry` '{}<float>'",
                kernel.line, kernel.name, kernel.name
            )));
        }
        Ok((kernel, entry.to_owned()))
    }

    /// Compiles the kernels that `entries` name for `arch` (`sm_90a`). Headers are found beside the
    /// file, among those of C and, but for an emulated GPU, NVIDIA's.
    ///
    /// # Errors
    /// What the compiler has against it.
    pub fn compile(
        &self,
        nvrtc: &Nvrtc,
        arch: &str,
        (output, entries): (CodeFormat, &[String]),
        is_emulated: bool,
    ) -> Result<Compiled> {
        let beside = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut folders = vec![beside.unwrap_or(Path::new(".")).to_owned()];
        let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
        if !is_emulated {
            folders.extend(nvrtc.header_folders());
            options.extend(["--ptxas-options=-v", "-lineinfo"].map(str::to_owned));
        }
        options.extend(folders.iter().map(|folder| format!("--include-path={}", folder.display())));
        // Those beside the file come first.
        let ours = KERNELS.iter().flat_map(|kernel| kernel.headers);
        let ours = ours.filter(|header| !folders[0].join(header.name).exists());
        let mut headers: BTreeMap<_, _> = ours.map(|header| (header.name, header.text)).collect();
        if !is_emulated {
            headers.extend(C_HEADERS.iter().copied());
        }
        let headers: Vec<_> = headers.into_iter().collect();
        let path = self.path.display().to_string();
        let made = nvrtc.compile_entries(&path, &self.text, &headers, &options, (output, entries));
        made.map_err(|log| Error::failed(format!("cannot compile {}: {}", path, first(&log))))
    }

    /// Files and texts for messages about lines.
    pub fn texts(&self) -> Vec<(String, String)> {
        let beside = self
            .path
            .parent()
            .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        let entries = beside.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
        let headers = entries.flatten().map(|entry| entry.path());
        let headers =
            headers.filter(|path| path.extension().is_some_and(|is| is == "cuh" || is == "h"));
        let texts =
            headers.filter_map(|path| Some((path.display().to_string(), read(&path).ok()?)));
        texts.chain([(self.path.display().to_string(), self.text.clone())]).collect()
    }
}

/// The first thing that a compiler has against a file, with what there is to do.
fn first(log: &str) -> String {
    let is_error = |line: &&str| line.contains("error");
    let line = log.lines().find(is_error).or(log.lines().next()).unwrap_or("no reason given");
    let advice = [
        ("cuda_fp16.h", "pip install nvidia-cuda-runtime nvidia-cuda-cccl"),
        ("cuda_bf16.h", "pip install nvidia-cuda-runtime nvidia-cuda-cccl"),
        ("cooperative_groups", "pip install nvidia-cuda-runtime nvidia-cuda-cccl"),
        ("nv/target", "pip install nvidia-cuda-cccl"),
        ("mma.h", "an emulated GPU has mma_m16n8k16 of lib/ptx.cuh in its place"),
        ("cuda/barrier", "write __syncthreads"),
        ("cuda/atomic", "write atomicAdd and __threadfence"),
        ("cuda_pipeline.h", "copy by the block's threads"),
        ("cub/", "write the reduction or scan by shuffles"),
        ("thrust/", "that is the host's"),
        ("curand", "make random inputs by `arg`"),
    ];
    let missing = line.contains("No such file") || line.contains("open source file");
    let advice = advice.iter().find(|(header, _)| missing && line.contains(header));
    // The place comes first; a log of several lines has more than fits a message.
    let line = line.replace("fatal error", "error").replace("catastrophic error", "error");
    match advice {
        Some((_, what)) => format!("{line}: {what}"),
        None => line,
    }
}

/// The text with spaces in place of comments and of what is quoted: no line moves.
fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |end| end + 2)
            }
            _ => {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let (skipped, left) = rest.split_at(length);
        // What is quoted counts as a word: extern "C".
        plain.extend(skipped.chars().map(|c| if c == '\n' { c } else { ' ' }));
        rest = left;
    }
    plain
}

/// All `__global__` functions that have a body or not, each name once.
fn declared(text: &str) -> Vec<Declared> {
    let plain = without_comments(text);
    let mut found: Vec<Declared> = Vec::new();
    for (at, word) in plain.match_indices("__global__") {
        let before = &plain[..at];
        let begin = before.rfind([';', '}', '#']).map_or(0, |end| end + 1);
        if plain[..at].lines().last().is_some_and(|line| line.trim_start().starts_with('#')) {
            continue; // part of a macro
        }
        let Some(kernel) = declaration(&plain[at + word.len()..]) else { continue };
        let (name, threads, parameters) = kernel;
        if found.iter().any(|other| other.name == name) {
            continue;
        }
        let line = before.matches('\n').count() + 1;
        let is_template = before[begin..].contains("template");
        found.push(Declared { name, line, is_template, threads, parameters });
    }
    found
}

/// Name, launch bounds and parameters of what follows `__global__`.
fn declaration(mut rest: &str) -> Option<(String, Option<u32>, Vec<Parameter>)> {
    let mut threads = None;
    for words in ["__launch_bounds__", "__maxnreg__", "__attribute__"] {
        if let Some(at) = rest.find(words).filter(|at| !rest[..*at].contains(['{', ';'])) {
            let open = at + rest[at..].find('(')?;
            if rest[..at].contains('(') {
                continue;
            }
            let inside = bracketed(&rest[open..])?;
            if words == "__launch_bounds__" {
                threads = inside[1..].split([',', ')']).next()?.trim().parse().ok();
            }
            rest = &rest[open + inside.len()..];
        }
    }
    let open = rest.find('(')?;
    let name =
        rest[..open].split(|c: char| !c.is_alphanumeric() && c != '_').rfind(|w| !w.is_empty())?;
    let inside = bracketed(&rest[open..])?;
    let inside = &inside[1..inside.len() - 1];
    let mut parameters = Vec::new();
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parameters.extend(parameter(&inside[begin..at]));
                begin = at + 1;
            }
            _ => (),
        }
    }
    Some((name.to_owned(), threads, parameters))
}

/// From the bracket that the text begins with to the one that closes it.
fn bracketed(text: &str) -> Option<&str> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Some(&text[..=at]);
        }
    }
    None
}

fn parameter(text: &str) -> Option<Parameter> {
    let text = text.split('=').next().unwrap_or(text).replace(['*', '&'], " * ");
    let is_array = text.contains('[');
    let text = text.split('[').next().unwrap_or_default();
    let qualifiers = ["const", "volatile", "__restrict__", "__restrict", "restrict", "struct"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let pointee: Vec<_> = words.iter().take_while(|word| **word != "*").collect();
    let is_written = !pointee.iter().any(|word| **word == "const");
    let mut kept: Vec<&str> =
        words.iter().copied().filter(|word| !qualifiers.contains(word)).collect();
    kept.retain(|word| *word != "__grid_constant__");
    let name = kept.pop()?.to_owned();
    let is_pointer = is_array || kept.contains(&"*");
    let base: Vec<_> = kept.into_iter().filter(|word| *word != "*").collect();
    let base = base.join(" ");
    let c_type = if is_pointer { format!("{base}*") } else { base };
    (name != "void").then_some(Parameter {
        name,
        c_type,
        is_pointer,
        is_written: is_pointer && is_written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_as_people_write_them() {
        let text = r#"
// __global__ void not_this(float* x);
#define KERNEL(name) __global__ void name(int n)
extern "C" __global__ void __launch_bounds__(256, 2)
    first(const float* __restrict__ x, float *y, unsigned int n, size_t stride = 1) {}
template <typename T, int N> __global__ void second(T const* x, T y[], volatile int * count) {}
namespace a { __global__ __launch_bounds__(N) void third(half2 a) {} }
"#;
        let kernels = declared(text);
        let names: Vec<_> =
            kernels.iter().map(|k| (k.name.as_str(), k.line, k.is_template)).collect();
        assert_eq!(names, [("first", 4, false), ("second", 6, true), ("third", 7, false)]);
        let of = |kernel: usize| -> Vec<_> {
            let all = kernels[kernel].parameters.iter();
            all.map(|p| (p.name.as_str(), p.c_type.as_str(), p.is_written)).collect()
        };
        let first = [("x", "float*", false), ("y", "float*", true), ("n", "unsigned int", false)];
        assert_eq!(of(0), [&first[..], &[("stride", "size_t", false)]].concat());
        assert_eq!(of(1), [("x", "T*", false), ("y", "T*", true), ("count", "int*", true)]);
        assert_eq!(of(2), [("a", "half2", false)]);
    }
}
