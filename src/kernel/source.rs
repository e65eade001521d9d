//! A built-in kernel's source as the compiler takes it.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::compile::{CompileCache, CompileUnit};
use super::nvrtc::{self, Nvrtc};
use super::{Kernel, Paths, private};
use crate::error::{Error, Result};

/// A kernel's source; its headers are the kernel's.
#[derive(Debug, Clone)]
pub struct KernelSource {
    pub kernel: &'static Kernel,
    /// For messages.
    pub path: String,
    pub text: Cow<'static, str>,
}

impl From<&'static Kernel> for KernelSource {
    fn from(kernel: &'static Kernel) -> Self {
        let path = format!("kernels/{}.cu", kernel.name);
        Self { kernel, path, text: kernel.source.into() }
    }
}

impl KernelSource {
    fn program(&self) -> std::result::Result<CompileUnit<'_>, String> {
        let library = self.headers().into_iter().collect();
        CompileUnit::new(self.kernel.name, &self.path, &self.text, &library)
    }

    /// Name and text of the headers.
    pub fn headers(&self) -> Vec<(&'static str, &'static str)> {
        self.kernel.headers.iter().map(|header| (header.name, header.text)).collect()
    }

    /// The kernel's, but for its text, which messages call `path`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn variant(kernel: &'static Kernel, path: &Path) -> Result<Self> {
        let text = read(path)?.into();
        Ok(Self { text, path: path.display().to_string(), ..kernel.into() })
    }

    /// Name and text of the headers, then of the source itself, for messages about lines.
    pub fn texts(&self) -> Vec<(String, String)> {
        let headers = self.headers().into_iter();
        let headers = headers.map(|(name, text)| (name.to_owned(), text.to_owned()));
        headers.chain([(self.path.clone(), self.text.to_string())]).collect()
    }

    /// Compiles the source for `arch` (`sm_90a`) now, and keeps the code in the user's cache.
    ///
    /// # Errors
    /// When there is no NVRTC here, it does not know the architecture, or has something against the
    /// source.
    pub fn compile(&self, arch: &str, paths: &Paths) -> Result<Vec<u8>> {
        let doing = format!("cannot compile kernel {} for {arch}", self.kernel.name);
        let nvrtc =
            find_nvrtc(paths).map_err(|error| Error::failed(format!("{doing}: {error}")))?;
        let cache = CompileCache { folder: paths.user_cache("kernels")? };
        self.program()
            .and_then(|program| program.cubin(&nvrtc, arch, &cache))
            .and_then(|image| {
                private::read(&image.file)
                    .map_err(|error| format!("cannot read {}: {error}", image.file.display()))
            })
            .map_err(|error| Error::failed(format!("{doing}: {error}")))
    }
}

/// NVRTC, wherever this machine has it.
///
/// # Errors
/// When it has none, or none that can be used.
pub fn find_nvrtc(paths: &Paths) -> Result<Nvrtc> {
    let executable = std::env::current_exe().unwrap_or_default();
    let wheels = nvrtc::target_folder(&executable).map(|target| target.join("nvrtc"));
    let found = Nvrtc::find(&paths.nvrtc, wheels.as_deref()).map_err(Error::failed)?;
    found.ok_or_else(|| {
        Error::failed(
            "no NVRTC here; `pip install nvidia-cuda-nvrtc`, or point CHASKI_NVRTC to libnvrtc.so",
        )
    })
}

/// Bytes of a source, at most.
const MOST_BYTES: u64 = 16 << 20;

pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |error| Error::failed(format!("cannot read {}: {error}", path.display()));
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    if file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(failed)? as u64 > MOST_BYTES {
        return Err(failed(io::Error::other(format!("over {} MiB", MOST_BYTES >> 20))));
    }
    Ok(text)
}
