//! The kernels' machine code on one GPU, loaded when it is first needed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Context;
use super::emulator;
use super::stream::{Function, Module};
use crate::error::{Error, Result};
use crate::kernel::nvrtc::{Nvrtc, Output};
use crate::kernel::{ARCHS, Export, KERNELS, Kernel, Launch, Source};

/// Modules by kernel, functions by export.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<Context>,
    capability: (u32, u32),
    /// What takes the place of built-in sources, by kernel.
    sources: HashMap<&'static str, Source>,
    functions: HashMap<&'static str, (Function, u32)>,
    modules: HashMap<&'static str, Module>,
    /// Those that have been replaced: graphs still have their functions.
    retired: Vec<Module>,
    /// What loading them has taken.
    pub loading: Duration,
}

impl Kernels {
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self {
            context: context.clone(),
            capability: context.capability()?,
            sources: HashMap::new(),
            functions: HashMap::new(),
            modules: HashMap::new(),
            retired: Vec::new(),
            loading: Duration::ZERO,
        })
    }

    /// From now on loads `source` in place of the kernel's own, or that again.
    pub fn replace(&mut self, kernel: &Kernel, source: Option<Source>) {
        self.functions.retain(|name, _| !kernel.exports.iter().any(|export| export.name == *name));
        self.retired.extend(self.modules.remove(kernel.name));
        self.sources.remove(kernel.name);
        self.sources.extend(source.map(|source| (kernel.name, source)));
    }

    /// The function that `launch` asks for, allowed its shared memory.
    pub fn function(&mut self, launch: &Launch) -> Result<Function> {
        let name = launch.export.name;
        let (function, allowed) = match self.functions.get(name) {
            Some(known) => *known,
            None => {
                let start = Instant::now();
                let function = self.load(launch.export)?;
                self.loading += start.elapsed();
                (function, 0)
            }
        };
        if launch.shared_bytes > allowed {
            function.allow_shared(launch.shared_bytes, name)?;
        }
        self.functions.insert(name, (function, allowed.max(launch.shared_bytes)));
        Ok(function)
    }

    fn load(&mut self, export: &'static Export) -> Result<Function> {
        let has = |kernel: &&Kernel| kernel.exports.iter().any(|each| each.name == export.name);
        let kernel = KERNELS.iter().find(has).expect("every export is a kernel's");
        if !self.modules.contains_key(kernel.name) {
            let doing = format!("kernel {} cannot be loaded", kernel.name);
            let image = match self.sources.get(kernel.name) {
                Some(source) => compiled(source, self.capability)?.into(),
                None => image(kernel, self.capability)?,
            };
            let load = |image: &[u8]| Module::load(&self.context, image, &doing);
            let loaded = load(&image).or_else(|error| match image {
                // Machine code of this build. A driver that is a major version of CUDA behind its compiler
                // refuses it, and takes that of the compiler which was installed with it.
                Cow::Borrowed(_) => {
                    let own = compiled(&kernel.into(), self.capability);
                    own.and_then(|image| load(&image)).map_err(|_| error)
                }
                Cow::Owned(_) => Err(error),
            });
            self.modules.insert(kernel.name, loaded?);
        }
        let function = self.modules[kernel.name].function(export.name)?;
        function.prefer_shared(export.name)?;
        Ok(function)
    }
}

/// What a GPU of this capability can load: machine code that was built in, else PTX, which its driver
/// compiles, else what NVRTC makes of the source now.
fn image(kernel: &'static Kernel, (major, minor): (u32, u32)) -> Result<Cow<'static, [u8]>> {
    let oldest = ARCHS[0].number();
    if 10 * major + minor < oldest {
        return Err(Error::failed(format!(
            "a GPU of compute capability {major}.{minor} is too old: {}.{} is needed; --device cpu \
             does without",
            oldest / 10,
            oldest % 10
        )));
    }
    if emulator::nvrtc().is_some() {
        return Ok(compiled(&kernel.into(), (major, minor))?.into());
    }
    if let Some(build) = kernel.build(major, minor) {
        return Ok(build.cubin.into());
    }
    let newest_build = kernel.builds.last().map(|build| build.arch.number());
    match kernel.ptx {
        Some(ptx) if newest_build.is_some_and(|newest| newest < 10 * major + minor) => {
            Ok([ptx.as_bytes(), &[0]].concat().into())
        }
        _ => Ok(compiled(&kernel.into(), (major, minor))?.into()),
    }
}

/// What the compiler makes of `source`: NVRTC for a GPU of this capability, or its stand-in, which keeps
/// a cache of its own, for an emulated one.
fn compiled(source: &Source, (major, minor): (u32, u32)) -> Result<Vec<u8>> {
    let Some(nvrtc) = emulator::nvrtc() else {
        let known = ARCHS.iter().rev().find(|arch| arch.runs_on(major, minor));
        let arch = known.map_or(format!("sm_{major}{minor}"), |arch| arch.name.to_owned());
        return source.compile(&arch);
    };
    let name = source.kernel.name;
    let failed = |error| Error::failed(format!("cannot compile kernel {name}: {error}"));
    let nvrtc = Nvrtc::load(nvrtc).map_err(failed)?;
    let options = ["--std=c++17".to_owned()];
    let (path, headers) = (&source.path, source.headers());
    let compiled = nvrtc.compile(path, &source.text, &headers, &options, Output::Cubin);
    compiled.map(|(image, _)| image).map_err(failed)
}
