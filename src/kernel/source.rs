//! A kernel's source as the compiler takes it: the built-in one, or another in its place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::compile::{CompileCache, CompileUnit};
use super::nvrtc::{self, Nvrtc};
use super::signature::{DeclaredField, FieldKind};
use super::{KERNELS, Kernel, Paths, private};
use crate::error::{Error, Result, did_you_mean};

/// A kernel's source with the headers that it includes.
#[derive(Debug, Clone)]
pub struct KernelSource {
    pub kernel: &'static Kernel,
    /// For messages.
    pub path: String,
    pub text: Cow<'static, str>,
    /// By the names that they are included with.
    pub headers: BTreeMap<Cow<'static, str>, Cow<'static, str>>,
}

impl From<&'static Kernel> for KernelSource {
    fn from(kernel: &'static Kernel) -> Self {
        let path = format!("kernels/{}.cu", kernel.name);
        let headers = kernel.headers.iter().map(|h| (h.name.into(), h.text.into())).collect();
        Self { kernel, path, text: kernel.source.into(), headers }
    }
}

impl KernelSource {
    /// Reads a source that is to take the place of the kernel which its first line names. The headers
    /// are those in `lib` beside it, or else the built-in ones.
    ///
    /// # Errors
    /// A file that cannot be read; what is wrong with it, and where; arguments or exports other than
    /// the kernel's.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let first = text.lines().next().unwrap_or_default();
        let name = first.strip_prefix("//! ").and_then(|rest| rest.split(':').next());
        let Some(kernel) = name.and_then(Kernel::find) else {
            let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            let meant = did_you_mean(name.unwrap_or_default(), names.iter().copied());
            return Err(Error::failed(format!(
                "{}:1: the first line is to name the kernel that this replaces, as in `//! embed: \
                 what it does`; there are {}{meant}",
                path.display(),
                names.join(", ")
            )));
        };
        let mut headers: BTreeMap<Cow<'static, str>, Cow<'static, str>> = BTreeMap::new();
        for header in KERNELS.iter().flat_map(|kernel| kernel.headers) {
            headers.insert(header.name.into(), header.text.into());
        }
        let beside = path.parent().unwrap_or(Path::new("")).join("lib");
        for file in fs::read_dir(beside).into_iter().flatten().flatten() {
            let file = file.path();
            if file.extension().is_some_and(|extension| extension == "cuh") && file.is_file() {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                headers.insert(format!("lib/{name}").into(), read(&file)?.into());
            }
        }
        let path = path.display().to_string();
        let source = Self { kernel, path, text: text.into(), headers };
        source.check()?;
        Ok(source)
    }

    /// That it can be launched in place of the kernel.
    fn check(&self) -> Result<()> {
        let program = self.program().map_err(Error::failed)?;
        let Self { kernel, path, .. } = self;
        let ours = kernel.fields.iter().filter(|field| field.c_type != "Trace");
        let ours = ours.map(|field| format!("{} {}", field.c_type, field.name));
        let theirs = program.signature.fields.iter().filter(|field| field.kind != FieldKind::Trace);
        let theirs = theirs.map(declaration);
        if let Some((ours, theirs)) = first_difference(ours, theirs) {
            return Err(Error::failed(format!(
                "{path}: struct {} has {theirs} where the built-in kernel has {ours}: the host fills \
                 the same arguments for both",
                kernel.arguments
            )));
        }
        let export = |name: &str, threads: u32| format!("{name} with blocks of {threads} threads");
        let ours = kernel.exports.iter().map(|each| export(each.name, each.threads));
        let theirs = program.signature.exports.iter().map(|each| export(&each.name, each.threads));
        if let Some((ours, theirs)) = first_difference(ours, theirs) {
            return Err(Error::failed(format!(
                "{path}: it exports {theirs} where the built-in kernel exports {ours}"
            )));
        }
        Ok(())
    }

    fn program(&self) -> std::result::Result<CompileUnit<'_>, String> {
        let library = self.headers.iter().map(|(name, text)| (&**name, &**text)).collect();
        CompileUnit::new(self.kernel.name, &self.path, &self.text, &library)
    }

    /// Name and text of the headers.
    pub fn headers(&self) -> Vec<(&str, &str)> {
        self.headers.iter().map(|(name, text)| (&**name, &**text)).collect()
    }

    /// Name and text of the headers, then of the source itself, for messages about lines.
    pub fn texts(&self) -> Vec<(String, String)> {
        let headers = self.headers.iter().map(|(name, text)| (name.to_string(), text.to_string()));
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

fn declaration(field: &DeclaredField) -> String {
    let DeclaredField { name, kind, .. } = field;
    let kind: &FieldKind = kind;
    format!("{} {name}", kind.c_type())
}

/// The first place where two lists differ, in words.
fn first_difference(
    ours: impl Iterator<Item = String>,
    theirs: impl Iterator<Item = String>,
) -> Option<(String, String)> {
    let ends = std::iter::repeat(None);
    let ours = ours.map(Some).chain(ends.clone());
    let mut pairs = ours.zip(theirs.map(Some).chain(ends)).take_while(|pair| *pair != (None, None));
    let (ours, theirs) = pairs.find(|(ours, theirs)| ours != theirs)?;
    let name = |item: Option<String>| item.map_or("nothing".to_owned(), |item| format!("`{item}`"));
    Some((name(ours), name(theirs)))
}
