//! The kernels' machine code on one GPU, loaded when it is first needed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Context;
use super::emulator;
use super::images::{Form, forms};
use super::module::{Function, Module};
use super::settings::{Carveout, Settings};
use crate::error::{Error, Result};
use crate::kernel::compile::hash;
use crate::kernel::{Export, KERNELS, Kernel, KernelSource, Launch, Paths};

/// Modules by kernel, functions by export.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<Context>,
    capability: (u32, u32),
    carveout: Carveout,
    paths: Paths,
    /// What takes the place of built-in sources, by kernel.
    sources: HashMap<&'static str, KernelSource>,
    functions: HashMap<&'static str, (Function, u32)>,
    modules: HashMap<&'static str, Module>,
    /// Those that have been replaced: graphs still have their functions.
    retired: Vec<Module>,
    /// What loading them has taken.
    pub loading: Duration,
}

impl Kernels {
    pub fn new(context: &Arc<Context>, settings: &Settings) -> Result<Self> {
        Ok(Self {
            context: context.clone(),
            capability: context.capability()?,
            carveout: settings.carveout,
            paths: settings.paths.clone(),
            sources: HashMap::new(),
            functions: HashMap::new(),
            modules: HashMap::new(),
            retired: Vec::new(),
            loading: Duration::ZERO,
        })
    }

    /// From now on loads `source` in place of the kernel's own, or that again.
    pub fn replace(&mut self, kernel: &Kernel, source: Option<KernelSource>) {
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
            self.context.bind()?;
            function.allow_shared(launch.shared_bytes, name)?;
        }
        self.functions.insert(name, (function, allowed.max(launch.shared_bytes)));
        if launch.together {
            self.check_room(&function, launch)?;
        }
        Ok(function)
    }

    /// That all blocks of a launch run at once.
    fn check_room(&self, function: &Function, launch: &Launch) -> Result<()> {
        let each =
            function.blocks_at_once(launch.block, launch.shared_bytes, launch.export.name)?;
        let most = u64::from(each) * u64::from(self.context.multiprocessors()?);
        let blocks: u64 = launch.grid.iter().map(|blocks| u64::from(*blocks)).product();
        match blocks <= most {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "kernel {} cannot be launched: its {blocks} blocks wait for each other, and {most} run at \
                 once on this GPU, which others may be using too; `device` cpu avoids it",
                launch.export.name
            ))),
        }
    }

    /// What tells apart the machine code that is loaded for this kernel.
    pub fn code(&self, kernel: &'static Kernel) -> Result<String> {
        let source = match self.sources.get(kernel.name) {
            Some(source) => Some(Cow::Borrowed(source)),
            None if emulator::nvrtc().is_some() => Some(Cow::Owned(emulator::source(kernel)?)),
            None => None,
        };
        if let Some(source) = source {
            let headers = source.headers();
            let headers = headers.iter().flat_map(|(name, text)| [*name, *text]);
            return Ok(hash([&*source.text].into_iter().chain(headers)));
        }
        let mut hasher = DefaultHasher::new();
        let first = forms(kernel, self.capability)?[0];
        first.image(&kernel.into(), self.capability, &self.paths)?.bytes.hash(&mut hasher);
        Ok(format!("{:016x}", hasher.finish()))
    }

    fn load(&mut self, export: &'static Export) -> Result<Function> {
        let has = |kernel: &&Kernel| kernel.exports.iter().any(|each| each.name == export.name);
        let kernel = KERNELS.iter().find(has).expect("every export is a kernel's");
        if !self.modules.contains_key(kernel.name) {
            self.modules.insert(kernel.name, self.load_module(kernel)?);
        }
        let function = self.modules[kernel.name].function(export.name)?;
        function.split_off(self.carveout, export.name)?;
        Ok(function)
    }

    /// In the first of its forms that the driver takes.
    fn load_module(&self, kernel: &'static Kernel) -> Result<Module> {
        let doing = format!("kernel {} cannot be loaded", kernel.name);
        let (own, forms) = match self.sources.get(kernel.name) {
            Some(source) => (source.clone(), vec![Form::Compiled]),
            None => (emulator::source(kernel)?, forms(kernel, self.capability)?),
        };
        let mut refused = None;
        for form in forms {
            let image = form.image(&own, self.capability, &self.paths);
            // What is the matter with the first form is what a user can mend.
            let image = image.map_err(|error| refused.take().unwrap_or(error))?;
            match Module::load(&self.context, &image, &doing)? {
                Ok(module) => return Ok(module),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.expect("there is a form"))
    }
}
