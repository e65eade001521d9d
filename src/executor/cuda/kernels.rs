//! The kernels' machine code on one GPU, loaded when it is first needed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Context;
use super::emulator;
use super::images::{self, Image, forms};
use super::module::{Function, Module};
use super::settings::{Carveout, Settings};
use crate::error::{Error, Result};
use crate::kernel::{Export, KERNELS, Kernel, Launch, Paths, ReplacedExport, Replacement};

/// Modules by kernel, functions by export.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<Context>,
    capability: (u32, u32),
    carveout: Carveout,
    paths: Paths,
    /// What takes the place of built-in ones, by kernel.
    replacements: HashMap<&'static str, Replacement>,
    functions: HashMap<&'static str, (Function, u32)>,
    /// With what the code calls each export.
    modules: HashMap<&'static str, (Module, Vec<String>)>,
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
            replacements: HashMap::new(),
            functions: HashMap::new(),
            modules: HashMap::new(),
            retired: Vec::new(),
            loading: Duration::ZERO,
        })
    }

    /// From now on loads this in place of the kernel, or that again.
    pub fn replace(&mut self, kernel: &Kernel, by: Option<Replacement>) {
        self.functions.retain(|name, _| !kernel.exports.iter().any(|export| export.name == *name));
        self.retired.extend(self.modules.remove(kernel.name).map(|(module, _)| module));
        self.replacements.remove(kernel.name);
        self.replacements.extend(by.map(|by| (kernel.name, by)));
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
        let threads = function.threads.unwrap_or(launch.block);
        let each = function.blocks_at_once(threads, launch.shared_bytes, launch.export.name)?;
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
        let mut hasher = DefaultHasher::new();
        match self.replacements.get(kernel.name) {
            Some(by) => self.compiled(by)?.0.bytes.hash(&mut hasher),
            None if emulator::nvrtc().is_some() => {
                let source = emulator::source(kernel)?;
                (&source.text, source.headers()).hash(&mut hasher);
            }
            None => {
                let first = forms(kernel, self.capability)?[0];
                let image = first.image(&kernel.into(), self.capability, &self.paths)?;
                image.bytes.hash(&mut hasher);
            }
        }
        Ok(format!("{:016x}", hasher.finish()))
    }

    fn compiled(&self, by: &Replacement) -> Result<(Image, Vec<String>)> {
        let names = by.kernel.exports.iter().map(|export| export.name.to_owned());
        images::compiled(&by.file, &names.collect::<Vec<_>>(), self.capability, &self.paths)
    }

    fn load(&mut self, export: &'static Export) -> Result<Function> {
        let has = |kernel: &&Kernel| kernel.exports.iter().any(|each| each.name == export.name);
        let kernel = KERNELS.iter().find(has).expect("every export is a kernel's");
        if !self.modules.contains_key(kernel.name) {
            self.modules.insert(kernel.name, self.load_module(kernel)?);
        }
        let (module, symbols) = &self.modules[kernel.name];
        let place = kernel.exports.iter().position(|each| each.name == export.name);
        let place = place.expect("found by it");
        let mut function = module.function(&symbols[place])?;
        if let Some(by) = self.replacements.get(kernel.name) {
            let ReplacedExport { threads, is_apart } = by.functions[place];
            function.threads = threads;
            function.apart = is_apart.then_some(kernel.fields);
            function.is_programmatic &= by.waits;
        }
        function.split_off(self.carveout, export.name)?;
        Ok(function)
    }

    /// In the first of its forms that the driver takes.
    fn load_module(&self, kernel: &'static Kernel) -> Result<(Module, Vec<String>)> {
        let doing = format!("kernel {} cannot be loaded", kernel.name);
        if let Some(by) = self.replacements.get(kernel.name) {
            let (image, symbols) = self.compiled(by)?;
            return Ok((Module::load(&self.context, &image, &doing)??, symbols));
        }
        let own = emulator::source(kernel)?;
        let mut refused = None;
        for form in forms(kernel, self.capability)? {
            let image = form.image(&own, self.capability, &self.paths);
            // What is the matter with the first form is what a user can mend.
            let image = image.map_err(|error| refused.take().unwrap_or(error))?;
            match Module::load(&self.context, &image, &doing)? {
                Ok(module) => {
                    let names = kernel.exports.iter().map(|export| export.name.to_owned());
                    return Ok((module, names.collect()));
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.expect("there is a form"))
    }
}
