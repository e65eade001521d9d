//! A kernel's source with its headers: its hash, its machine code, and what the compiler says of both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::nvrtc::{CodeFormat, Nvrtc};
use super::private;
use super::signature::{Mistake, Signature};

/// A kernel's source, ready to be compiled.
pub struct CompileUnit<'s> {
    /// As messages write it: `kernels/embed.cu`.
    pub path: String,
    pub signature: Signature,
    pub source: &'s str,
    /// Name (`lib/ptx.cuh`) and text of all that it includes, by itself or through another header.
    pub headers: Vec<(&'s str, &'s str)>,
    /// Of the source and those headers: 16 hexadecimal digits.
    pub source_hash: String,
}

/// What the machine code of one export takes, as ptxas reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources<S = String> {
    pub export: S,
    /// 32-bit registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory of a thread.
    pub stack_bytes: u32,
    /// Stores and loads of registers that did not fit.
    pub spill_bytes: u32,
    /// Of a block.
    pub max_threads: u32,
}

/// A kernel compiled for one architecture.
pub struct CompiledKernel {
    /// The file of the cache that holds the code.
    pub file: PathBuf,
    /// In the order of the exports; none of PTX, which has no registers yet.
    pub resources: Vec<Resources>,
    /// Whether it was compiled now, and not found in the cache.
    pub fresh: bool,
}

/// The folder of headers below that of the kernels, as `#include` writes it.
const LIBRARY: &str = "lib/";

impl<'s> CompileUnit<'s> {
    /// Reads the kernel `name`, whose file is at `path`; `library`: all headers, by name.
    ///
    /// # Errors
    /// What is wrong with the source, on one line that begins with path and line.
    pub fn new(
        name: &str,
        path: &str,
        source: &'s str,
        library: &BTreeMap<&'s str, &'s str>,
    ) -> Result<Self, String> {
        let signature = Signature::parse(name, source).map_err(|mistake| mistake.at(path))?;
        let mut headers = Vec::new();
        include(source, library, &mut headers).map_err(|(header, mistake)| {
            mistake.at(&header.map_or(path.to_owned(), |header| beside(path, header)))
        })?;
        let parts = headers.iter().flat_map(|(name, text)| [*name, *text]);
        let source_hash = hash([source].into_iter().chain(parts));
        Ok(Self { path: path.to_owned(), signature, source, headers, source_hash })
    }

    /// Machine code for `arch` (`sm_90a`), from `cache` if it has been compiled before.
    ///
    /// # Errors
    /// What the compiler has against the source; a kernel that spills registers.
    pub fn cubin(
        &self,
        nvrtc: &Nvrtc,
        arch: &str,
        cache: &CompileCache,
    ) -> Result<CompiledKernel, String> {
        let (file, log, fresh) = cache.get(self, nvrtc, arch, CodeFormat::Cubin)?;
        let resources = self.resources(&log);
        for (export, resources) in self.signature.exports.iter().zip(&resources) {
            if resources.spill_bytes > 0 {
                let message = format!(
                    "{} spills {} bytes of registers on {arch}: {} registers are not enough",
                    export.name, resources.spill_bytes, resources.registers
                );
                return Err(Mistake { line: export.line, message }.at(&self.path));
            }
        }
        Ok(CompiledKernel { file, resources, fresh })
    }

    /// PTX for `arch` (`compute_90`) and everything newer.
    ///
    /// # Errors
    /// What the compiler has against the source.
    pub fn ptx(
        &self,
        nvrtc: &Nvrtc,
        arch: &str,
        cache: &CompileCache,
    ) -> Result<CompiledKernel, String> {
        let (file, _, fresh) = cache.get(self, nvrtc, arch, CodeFormat::Ptx)?;
        Ok(CompiledKernel { file, resources: Vec::new(), fresh })
    }

    fn resources(&self, log: &str) -> Vec<Resources> {
        let exports = self.signature.exports.iter();
        exports.filter_map(|export| resources_of(log, &export.name, export.threads)).collect()
    }

    /// The compiler's log with places as other compilers write them, so that editors find them:
    /// `kernels/embed.cu(12): error: ...` to `kernels/embed.cu:12: error: ...`.
    fn rewrite(&self, log: &str) -> String {
        let line = |line: &str| -> Option<String> {
            let (file, rest) = line.split_once('(')?;
            let (number, message) = rest.split_once("): ")?;
            let number: usize = number.parse().ok()?;
            let file =
                if file.starts_with(LIBRARY) { beside(&self.path, file) } else { file.to_owned() };
            Some(format!("{file}:{number}: {message}"))
        };
        // What follows the messages (counts, facts about functions that did compile) is no news.
        let lines = log.lines().filter(|line| !line.starts_with("ptxas info"));
        lines.map(|text| line(text).unwrap_or_else(|| text.to_owned()) + "\n").collect()
    }
}

/// What the log of `ptxas -v` tells of the function called `name`: a line for each thing, after the one that
/// names it. `max_threads`: of a block.
pub fn resources_of(log: &str, name: &str, max_threads: u32) -> Option<Resources> {
    let number_before = |line: &str, unit: &str| -> Option<u32> {
        line.split_once(unit)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let export = name.to_owned();
    let mut found = Resources { export, max_threads, ..Resources::default() };
    let (mut is_there, mut is_current) = (false, false);
    for line in log.lines() {
        if let Some((_, entry)) = line.split_once("Compiling entry function '") {
            is_current = entry.split('\'').next() == Some(name);
        }
        if !is_current {
            continue;
        }
        is_there = true;
        if let Some(bytes) = number_before(line, " bytes stack frame") {
            found.stack_bytes = bytes;
            let spills = [" bytes spill stores", " bytes spill loads"];
            found.spill_bytes = spills.iter().filter_map(|unit| number_before(line, unit)).sum();
        }
        if let Some(registers) = number_before(line, " registers") {
            found.registers = registers;
            found.shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    is_there.then_some(found)
}

/// The path of `header` for messages: headers are found from the kernel's folder.
fn beside(path: &str, header: &str) -> String {
    Path::new(path).with_file_name(header).display().to_string()
}

/// Adds what `text` includes to `headers`, each once, and then what these include. An error has the
/// header it is in, or none for the kernel itself.
fn include<'s>(
    text: &'s str,
    library: &BTreeMap<&'s str, &'s str>,
    headers: &mut Vec<(&'s str, &'s str)>,
) -> Result<(), (Option<&'s str>, Mistake)> {
    for (number, line) in (1..).zip(text.lines()) {
        let Some(wanted) = line.trim_start().strip_prefix("#include") else { continue };
        let name = wanted.trim().strip_prefix('"').and_then(|name| name.split('"').next());
        let Some((name, text)) = name.and_then(|name| library.get_key_value(name)) else {
            let message =
                format!("a kernel includes headers of kernels/{LIBRARY} only, not{wanted}");
            return Err((None, Mistake { line: number, message }));
        };
        if !headers.iter().any(|(known, _)| known == name) {
            // Its place is taken first: headers may include each other, under #pragma once.
            headers.push((name, text));
            include(text, library, headers)
                .map_err(|(header, mistake)| (header.or(Some(name)), mistake))?;
        }
    }
    Ok(())
}

/// FNV-1a, 64 bits, over the parts and their lengths: 16 hexadecimal digits. It tells versions of a
/// source apart, which needs no cryptography.
pub(crate) fn hash<'p>(parts: impl Iterator<Item = &'p str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for part in parts {
        part.bytes().chain((part.len() as u64).to_le_bytes()).for_each(&mut add);
    }
    format!("{hash:016x}")
}

/// A folder of what has been compiled: code and log, under names that say of what and with what.
pub struct CompileCache {
    pub folder: PathBuf,
}

impl CompileCache {
    /// The file of the code, the compiler's log, and whether both were made now.
    fn get(
        &self,
        program: &CompileUnit<'_>,
        nvrtc: &Nvrtc,
        arch: &str,
        output: CodeFormat,
    ) -> Result<(PathBuf, String, bool), String> {
        let options = [&format!("--gpu-architecture={arch}"), "--std=c++17", "--ptxas-options=-v"];
        // The version has no third number; the size of the library tells such releases apart.
        let library = fs::metadata(&nvrtc.path).map_or(0, |metadata| metadata.len());
        let compiler = format!("{:?} {library} {output:?}", nvrtc.version);
        let parts = [program.path.as_str(), &program.source_hash, &compiler];
        let name = &program.signature.name;
        let key = hash(parts.into_iter().chain(options));
        let file = |extension: &str| self.folder.join(format!("{name}.{arch}.{key}.{extension}"));
        let code_file = file(if output == CodeFormat::Cubin { "cubin" } else { "ptx" });
        if private::is_private(&code_file)
            && let Ok(log) = private::read(&file("log"))
        {
            return Ok((code_file, String::from_utf8_lossy(&log).into_owned(), false));
        }
        let options = options.map(str::to_owned);
        let (code, log) = nvrtc
            .compile(&program.path, program.source, &program.headers, &options, output)
            .map_err(|log| program.rewrite(&log))?;
        self.put(&file("log"), log.as_bytes())?;
        self.put(&code_file, &code)?;
        Ok((code_file, log, true))
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), String> {
        let written = fs::create_dir_all(&self.folder).and_then(|()| private::write(path, bytes));
        written.map_err(|error| {
            let path = path.display();
            format!("cannot write {path}: {error}; XDG_CACHE_HOME can name another folder")
        })
    }
}
