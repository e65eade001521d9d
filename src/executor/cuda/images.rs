//! What a GPU may run of a kernel: machine code and PTX that were built in, and what NVRTC makes of the
//! source now.

use std::borrow::Cow;
use std::path::Path;

use super::emulator;
use crate::error::{Error, Result};
use crate::kernel::nvrtc::{CodeFormat, Nvrtc};
use crate::kernel::{ARCHS, Arch, CudaFile, Kernel, KernelSource, Paths, find_nvrtc};

/// Code as the driver takes it.
pub struct Image {
    pub bytes: Cow<'static, [u8]>,
    /// The architecture that it was made for, as a number: 90.
    pub arch: u32,
}

/// A form that a kernel's code is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Machine code that was built in.
    Cubin(&'static Arch),
    /// PTX that was built in, which the driver compiles.
    Ptx(&'static Arch),
    /// What NVRTC makes of the source now.
    Compiled,
}

/// The forms of a kernel that a GPU of this capability can take, in the order in which they are tried. A
/// driver that is a major version of CUDA behind the build's compiler refuses what that has made, and
/// takes what the compiler makes that was installed with it.
///
/// # Errors
/// When the GPU is too old for any.
pub fn forms(kernel: &Kernel, capability: (u32, u32)) -> Result<Vec<Form>> {
    let (oldest, number) = (ARCHS[0].number(), 10 * capability.0 + capability.1);
    if number < oldest {
        return Err(Error::failed(format!(
            "a GPU of compute capability {}.{} is too old: {}.{} is needed; `device` cpu needs none",
            capability.0,
            capability.1,
            oldest / 10,
            oldest % 10
        )));
    }
    let [cubins, ptx] = match emulator::built_for() {
        Some(archs) => kernel.forms_of_build(archs),
        None => [
            kernel.builds.iter().map(|build| build.arch).collect(),
            kernel.ptx.iter().map(|ptx| ptx.arch).collect::<Vec<_>>(),
        ],
    };
    let cubin = cubins.into_iter().rev().find(|arch| arch.runs_on(capability.0, capability.1));
    let ptx = ptx.into_iter().rev().find(|arch| arch.number() <= number);
    let built = cubin.map(Form::Cubin).into_iter().chain(ptx.map(Form::Ptx));
    Ok(built.chain([Form::Compiled]).collect())
}

impl Form {
    /// The code in this form, of the kernel that `source` is of.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub fn image(
        self,
        source: &KernelSource,
        capability: (u32, u32),
        paths: &Paths,
    ) -> Result<Image> {
        let (name, arch) = match self {
            Self::Ptx(arch) => (arch.virtual_name(), arch.number()),
            Self::Cubin(arch) => (arch.name.to_owned(), arch.number()),
            Self::Compiled => compiled_for(capability),
        };
        let Kernel { builds, ptx, .. } = source.kernel;
        let cubin = builds.iter().find(|build| self == Self::Cubin(build.arch));
        let ptx = ptx.iter().find(|ptx| self == Self::Ptx(ptx.arch));
        let bytes = match (emulator::nvrtc(), cubin, ptx) {
            (Some(nvrtc), ..) => emulated(nvrtc, source, &name)?.into(),
            (None, Some(build), _) => build.cubin.into(),
            (None, None, Some(ptx)) => [ptx.text.as_bytes(), &[0]].concat().into(),
            (None, None, None) => source.compile(&name, paths)?.into(),
        };
        Ok(Image { bytes, arch })
    }
}

/// What is compiled for a GPU of this capability: its architecture's name and number.
fn compiled_for((major, minor): (u32, u32)) -> (String, u32) {
    let known = ARCHS.iter().rev().find(|arch| arch.runs_on(major, minor));
    let unknown = || (format!("sm_{major}{minor}"), 10 * major + minor);
    known.map_or_else(unknown, |arch| (arch.name.to_owned(), arch.number()))
}

/// What NVRTC, or its stand-in, makes of the kernels of a user's file that are named, and what the code calls
/// them.
///
/// # Errors
/// What it has against the file; no NVRTC.
pub fn compiled(
    file: &CudaFile,
    entries: &[String],
    capability: (u32, u32),
    paths: &Paths,
) -> Result<(Image, Vec<String>)> {
    let (name, arch) = compiled_for(capability);
    let stand_in = emulator::nvrtc();
    let nvrtc = match stand_in {
        Some(path) => Nvrtc::load(path).map_err(Error::failed)?,
        None => find_nvrtc(paths)?,
    };
    let made = file.compile(&nvrtc, &name, (CodeFormat::Cubin, entries), stand_in.is_some())?;
    Ok((Image { bytes: made.code.into(), arch }, made.symbols))
}

/// What the emulator's compiler makes of `source`, for which it keeps a cache of its own.
fn emulated(nvrtc: &Path, source: &KernelSource, arch: &str) -> Result<Vec<u8>> {
    let name = source.kernel.name;
    let failed = |error| Error::failed(format!("cannot compile kernel {name}: {error}"));
    let nvrtc = Nvrtc::load(nvrtc).map_err(failed)?;
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    let (path, headers) = (&source.path, source.headers());
    let compiled = nvrtc.compile(path, &source.text, &headers, &options, CodeFormat::Cubin);
    compiled.map(|(image, _)| image).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Build, Ptx};

    fn arch(name: &str) -> &'static Arch {
        Arch::find(name).unwrap()
    }

    fn build(name: &str) -> Build {
        Build { arch: arch(name), cubin: &[], resources: &[] }
    }

    /// As on real GPUs: nothing here emulates one.
    #[test]
    fn the_newest_form_that_runs_comes_first() {
        let kernel = |builds: Vec<Build>, ptx: &[&str]| Kernel {
            builds: builds.leak(),
            ptx: ptx
                .iter()
                .map(|name| Ptx { arch: arch(name), text: "" })
                .collect::<Vec<_>>()
                .leak(),
            ..*Kernel::find("embed").unwrap()
        };
        let all = kernel(
            ["sm_80", "sm_86", "sm_90a", "sm_100a", "sm_120a"].map(build).into(),
            &["sm_90a", "sm_100a", "sm_120a"],
        );
        let of = |kernel: &Kernel, major, minor| forms(kernel, (major, minor)).unwrap();
        let (cubin, ptx) = (|name| Form::Cubin(arch(name)), |name| Form::Ptx(arch(name)));
        assert_eq!(of(&all, 8, 9), [cubin("sm_86"), Form::Compiled]);
        assert_eq!(of(&all, 9, 0), [cubin("sm_90a"), ptx("sm_90a"), Form::Compiled]);
        assert_eq!(of(&all, 10, 3), [ptx("sm_100a"), Form::Compiled]); // B300
        assert_eq!(of(&all, 11, 0), [ptx("sm_100a"), Form::Compiled]);
        assert_eq!(of(&all, 12, 1), [ptx("sm_120a"), Form::Compiled]);
        let old = kernel(vec![build("sm_80")], &["sm_80"]);
        assert_eq!(of(&old, 9, 0), [ptx("sm_80"), Form::Compiled]);
        assert_eq!(of(&kernel(Vec::new(), &[]), 9, 0), [Form::Compiled]);
        assert!(forms(&all, (7, 5)).unwrap_err().to_string().contains("7.5 is too old"));
    }
}
