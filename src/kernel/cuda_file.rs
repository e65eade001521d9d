//! A CUDA file of somebody's own: the kernels that it declares, as far as its text tells, and its code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::KERNELS;
use super::c_headers::C_HEADERS;
use super::nvrtc::{CodeFormat, Compiled, Nvrtc};
use super::preprocessed::{Preprocessed, apart, bracketed, folder_of, is_word};
use super::source::read;
use crate::error::{Error, Result};

/// A CUDA file, read.
#[derive(Debug, Clone)]
pub struct CudaFile {
    pub path: PathBuf,
    pub text: String,
    pub kernels: Vec<Declared>,
    preprocessed: Preprocessed,
}

/// A `__global__` function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// The namespaces that it is in, `a::b::`.
    pub scope: String,
    /// `mine.cu:12`
    pub place: String,
    /// Has parameters that its name does not give: it is named with them, `reduce<float>`.
    pub is_template: bool,
    /// Those with which the file instantiates it itself, `reduce<float>`.
    pub instances: Vec<String>,
    /// Threads of a block at most, as `__launch_bounds__` says it.
    pub bounds: Option<String>,
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

impl Parameter {
    /// `const float* x`
    pub fn declaration(&self) -> String {
        let Self { name, c_type, .. } = self;
        let qualifier = if self.is_pointer && !self.is_written { "const " } else { "" };
        format!("{qualifier}{c_type} {name}")
    }
}

impl CudaFile {
    /// # Errors
    /// A file that cannot be read, or has no kernel.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let preprocessed = Preprocessed::new(path, text.clone());
        let kernels = declared(&preprocessed);
        if kernels.is_empty() {
            let path = path.display();
            return Err(Error::failed(format!("{path}: no __global__ function in this file")));
        }
        Ok(Self { path: path.to_owned(), text, kernels, preprocessed })
    }

    /// Whether it has a kernel of this name.
    pub fn has(&self, name: &str) -> bool {
        self.kernels.iter().any(|kernel| kernel.name == name)
    }

    /// Threads of a block of this kernel at most, where that is a number or a constant that is one.
    pub fn threads(&self, kernel: &Declared) -> Option<u32> {
        let bounds = kernel.bounds.as_deref()?;
        let of_constant = || {
            let plain = &self.preprocessed.text;
            let values = plain.match_indices(bounds).filter_map(|(at, name)| {
                let is_whole = !plain[..at].ends_with(is_word);
                plain[at + name.len()..].trim_start().strip_prefix('=').filter(|_| is_whole)
            });
            let digits = |text: &str| {
                text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            values.filter_map(digits).next()
        };
        bounds.parse().ok().or_else(of_constant)
    }

    /// The fields of a struct, `Name` or `Name<types>`, if it is defined here.
    pub fn fields_of(&self, c_type: &str) -> Option<Vec<Parameter>> {
        let name = c_type.split('<').next()?.trim();
        let plain = &self.preprocessed.text;
        let begin = plain.match_indices("struct").find_map(|(at, word)| {
            let rest = plain[at + word.len()..].trim_start().strip_prefix(name)?;
            rest.trim_start().strip_prefix('{')
        })?;
        let mut fields: Vec<Parameter> = Vec::new();
        for line in begin[..begin.find('}')?].split(';') {
            for (place, part) in apart(line).into_iter().enumerate() {
                // uint32_t width, rows;
                let c_type = fields.last().filter(|_| place > 0).map(|last| last.c_type.clone());
                fields.extend(parameter(&format!("{} {part}", c_type.unwrap_or_default())));
            }
        }
        Some(fields)
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
        let entry = match (entry.unwrap_or(&kernel.name), &*kernel.instances) {
            (entry, _) if !kernel.is_template || entry.contains('<') => entry,
            (_, [instance]) => instance,
            (_, instances) => {
                let example = format!("{}<float>", kernel.name);
                return Err(Error::usage(format!(
                    "{}: {} is a template: name it with its parameters, `entry` '{}'",
                    kernel.place,
                    kernel.name,
                    instances.first().unwrap_or(&example)
                )));
            }
        };
        let is_whole = entry.split('<').next().unwrap_or(entry).contains("::");
        let scope = if is_whole { "" } else { &kernel.scope };
        Ok((kernel, format!("{scope}{entry}")))
    }

    /// All kernels that need no more than their names.
    pub fn entries(&self) -> Vec<String> {
        let names = self.kernels.iter().flat_map(|kernel| {
            let plain = (!kernel.is_template).then_some(&kernel.name);
            plain.into_iter().chain(&kernel.instances).map(|name| format!("{}{name}", kernel.scope))
        });
        names.collect()
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
        let mut folders = vec![folder_of(&self.path)];
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

    /// Files and texts for messages about lines: our own headers, those beside it, and itself.
    pub fn texts(&self) -> Vec<(String, String)> {
        let theirs = self.preprocessed.files.iter().rev();
        let theirs = theirs.map(|(path, text)| (path.display().to_string(), text.clone()));
        let ours = KERNELS.iter().flat_map(|kernel| kernel.headers);
        let ours = ours.map(|header| (header.name.to_owned(), header.text.to_owned()));
        ours.chain(theirs).collect()
    }

    /// All of its own text, with the headers beside it.
    pub fn own_texts(&self) -> impl Iterator<Item = &str> {
        self.preprocessed.files.iter().map(|(_, text)| &**text)
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
    let host = [
        "stdlib",
        "iostream",
        "vector",
        "string",
        "algorithm",
        "chrono",
        "random",
        "fstream",
        "memory",
    ];
    let of_host = host.iter().find(|header| missing && line.contains(*header));
    let advice = advice.iter().find(|(header, _)| missing && line.contains(header));
    // The place comes first; a log of several lines has more than fits a message.
    let line = line.replace("fatal error", "error").replace("catastrophic error", "error");
    match advice {
        Some((_, what)) => format!("{line}: {what}"),
        None if of_host.is_some() => {
            format!("{line}: that is the host's: keep kernels in a file of their own")
        }
        None if missing && line.contains('"') => {
            format!(
                "{line}: NVRTC has no C++ library: <cuda/std/...> of `pip install nvidia-cuda-cccl` has one"
            )
        }
        None => line,
    }
}

/// All `__global__` functions that have a body or not, each name once.
fn declared(made: &Preprocessed) -> Vec<Declared> {
    let mut found: Vec<Declared> = Vec::new();
    for (at, word) in made.text.match_indices("__global__") {
        let before = &made.text[..at];
        let begin = before.rfind([';', '}']).map_or(0, |end| end + 1);
        let Some(kernel) = declaration(&made.text[at + word.len()..]) else { continue };
        let Declaration { name, types, bounds, parameters, has_body } = kernel;
        let known = found.iter_mut().find(|other| other.name == name);
        let template = before[begin..].split_once("template").map(|(_, rest)| rest.trim_start());
        match (known, template, types) {
            (Some(known), Some(rest), Some(types)) if !rest.starts_with('<') => {
                known.instances.push(name.to_owned() + types);
            }
            // Names may be left out before the definition.
            (Some(known), _, None) if has_body => {
                (known.parameters, known.bounds) = (parameters, bounds.or(known.bounds.take()));
            }
            (Some(_), ..) => (),
            (None, ..) => found.push(Declared {
                name: name.to_owned(),
                scope: scope(before),
                place: made.place(at),
                is_template: template.is_some(),
                instances: Vec::new(),
                bounds,
                parameters,
            }),
        }
    }
    found
}

/// The namespaces that are open at the end of a text.
fn scope(before: &str) -> String {
    let mut open: Vec<&str> = Vec::new();
    let mut begin = 0;
    for (at, c) in before.char_indices().filter(|(_, c)| matches!(c, '{' | '}' | ';')) {
        match c {
            '{' => {
                let mut words = before[begin..at].split_whitespace();
                let name = words.find(|word| *word == "namespace").and_then(|_| words.next());
                open.push(name.unwrap_or_default());
            }
            '}' => drop(open.pop()),
            _ => (),
        }
        begin = at + 1;
    }
    let names = open.into_iter().filter(|name| !name.is_empty());
    names.map(|name| format!("{name}::")).collect()
}

struct Declaration<'t> {
    name: &'t str,
    /// Behind the name, with their brackets.
    types: Option<&'t str>,
    bounds: Option<String>,
    parameters: Vec<Parameter>,
    has_body: bool,
}

/// Name, launch bounds and parameters of what follows `__global__`.
fn declaration(mut rest: &str) -> Option<Declaration<'_>> {
    let mut bounds = None;
    for words in ["__launch_bounds__", "__maxnreg__", "__attribute__"] {
        if let Some(at) = rest.find(words).filter(|at| !rest[..*at].contains(['{', ';'])) {
            let open = at + rest[at..].find('(')?;
            if rest[..at].contains('(') {
                continue;
            }
            let inside = bracketed(&rest[open..])?;
            if words == "__launch_bounds__" {
                bounds = Some(inside[1..].split([',', ')']).next()?.trim().to_owned());
            }
            rest = &rest[open + inside.len()..];
        }
    }
    let open = rest.find('(')?;
    let (head, types) = match rest[..open].split_once('<') {
        Some((head, types)) => (head, Some(rest[head.len()..][..=types.len()].trim_end())),
        None => (&rest[..open], None),
    };
    let name = head.split(|c: char| !is_word(c)).rfind(|w| !w.is_empty())?;
    let inside = bracketed(&rest[open..])?;
    let has_body = rest[open + inside.len()..].trim_start().starts_with('{');
    let inside = &inside[1..inside.len() - 1];
    let parameters = apart(inside).into_iter().filter_map(parameter).collect();
    Some(Declaration { name, types, bounds, parameters, has_body })
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
#define KERNEL(name) __global__ void name##_kernel(int n)
extern "C" __global__ void __launch_bounds__(256, 2)
    first(const float* __restrict__ x, float *y, unsigned int n, size_t stride = 1) {}
template <typename T, int N> __global__ void second(T const* x, T y[], volatile int * count) {}
namespace a { namespace b {} namespace { __global__ __launch_bounds__(N) void third(half2 a) {} } }
KERNEL(fourth) {}
template __global__ void second<float, 4>(float const*, float[], volatile int*);
template __global__ void second<Pair<int>, 2>(Pair<int> const*, Pair<int>[], volatile int*);
__global__ void fifth(float*, int);
__global__ void fifth(float* x, int n) {}
"#;
        let kernels = declared(&Preprocessed::new(Path::new("mine.cu"), text.to_owned()));
        let names: Vec<_> = kernels.iter().map(|k| (&*k.name, &*k.place, k.is_template)).collect();
        let expected = [
            ("first", "mine.cu:4", false),
            ("second", "mine.cu:6", true),
            ("third", "mine.cu:7", false),
            ("fourth_kernel", "mine.cu:8", false),
            ("fifth", "mine.cu:11", false),
        ];
        assert_eq!(names, expected);
        assert_eq!(kernels[1].instances, ["second<float, 4>", "second<Pair<int>, 2>"]);
        assert_eq!((&*kernels[2].scope, &*kernels[3].scope), ("a::", ""));
        let bounds: Vec<_> = kernels.iter().map(|kernel| kernel.bounds.as_deref()).collect();
        assert_eq!(bounds, [Some("256"), None, Some("N"), None, None]);
        let of = |kernel: usize| -> Vec<_> {
            let all = kernels[kernel].parameters.iter();
            all.map(|p| (p.name.as_str(), p.c_type.as_str(), p.is_written)).collect()
        };
        let first = [("x", "float*", false), ("y", "float*", true), ("n", "unsigned int", false)];
        assert_eq!(of(0), [&first[..], &[("stride", "size_t", false)]].concat());
        assert_eq!(of(1), [("x", "T*", false), ("y", "T*", true), ("count", "int*", true)]);
        assert_eq!(of(2), [("a", "half2", false)]);
        assert_eq!(of(4), [("x", "float*", true), ("n", "int", false)]);
    }
}
