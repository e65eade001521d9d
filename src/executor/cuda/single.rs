//! A kernel of somebody's own, by itself: its code, its memory, its launch.

use std::collections::BTreeMap;
use std::time::Duration;

use super::emulator;
use super::gpu::Gpu;
use super::images::{self, Image};
use super::module::{Function, Module};
use super::region::{Pinned, Region};
use super::stream::{Geometry, Stream, StreamEvent, launched};
use crate::error::{Error, Result};
use crate::kernel::CudaFile;

/// A value for a parameter, or for a variable of the file.
#[derive(Debug, Clone, Copy)]
pub enum ArgumentValue<'a> {
    /// Memory that begins so, to which the parameter points; of a variable its bytes.
    Memory(&'a [u8]),
    /// The bytes of a number.
    Number(&'a [u8]),
}

/// A kernel on a GPU.
pub struct SingleKernel {
    name: String,
    gpu: Gpu,
    stream: Stream,
    function: Function,
    module: Module,
}

/// The code of a kernel for a GPU.
pub struct SingleCode {
    name: String,
    gpu: Gpu,
    image: Image,
    symbol: String,
}

impl SingleCode {
    /// Compiles the kernel that `entry` names.
    ///
    /// # Errors
    /// What the compiler has against it.
    pub fn compile(gpu: &Gpu, file: &CudaFile, entry: &str) -> Result<Self> {
        let entries = [entry.to_owned()];
        let (image, symbols) =
            images::compiled(file, &entries, gpu.capability, &gpu.settings.paths)?;
        Ok(Self { name: entry.to_owned(), gpu: gpu.clone(), image, symbol: symbols.concat() })
    }

    /// Loads it; the file's variables begin anew.
    ///
    /// # Errors
    /// What the driver has against it.
    pub fn load(&self) -> Result<SingleKernel> {
        let Self { name, gpu, image, symbol } = self;
        let module =
            Module::load(&gpu.context, image, &format!("kernel {name} cannot be loaded"))??;
        let (function, stream) = (module.function(symbol)?, Stream::new(&gpu.context)?);
        Ok(SingleKernel { name: name.clone(), gpu: gpu.clone(), stream, function, module })
    }
}

impl SingleKernel {
    /// Memory for the values that are to be in memory, in their order, and variables set.
    ///
    /// # Errors
    /// Too little memory; a variable of another size.
    pub fn prepare(
        &self,
        values: &[ArgumentValue<'_>],
        variables: &BTreeMap<&str, &[u8]>,
    ) -> Result<Prepared<'_>> {
        let region = |value: &ArgumentValue<'_>| match value {
            ArgumentValue::Number(_) => Ok(None),
            ArgumentValue::Memory(bytes) => {
                let region = Region::allocate(&self.gpu.context, bytes.len(), "an argument")?;
                self.stream.copy_in(&region, 0, bytes)?;
                Ok(Some((region, bytes.len())))
            }
        };
        let regions = values.iter().map(region).collect::<Result<Vec<_>>>()?;
        let arguments = values.iter().zip(&regions).map(|(value, region)| match (value, region) {
            (ArgumentValue::Number(bytes), _) => bytes.to_vec(),
            (_, Some((region, bytes))) => region.address(0..*bytes).to_ne_bytes().to_vec(),
            (ArgumentValue::Memory(_), None) => unreachable!("it was allocated above"),
        });
        let arguments = arguments.collect();
        for (name, bytes) in variables {
            self.stream.write_variable(&self.module, name, bytes)?;
        }
        Ok(Prepared { kernel: self, regions, arguments })
    }
}

/// A kernel with its arguments.
pub struct Prepared<'k> {
    kernel: &'k SingleKernel,
    /// Of each value, if it is in memory, and its bytes.
    regions: Vec<Option<(Region, usize)>>,
    arguments: Vec<Vec<u8>>,
}

impl Prepared<'_> {
    fn queue(&self, geometry: Geometry) -> Result<()> {
        let SingleKernel { name, stream, function, .. } = self.kernel;
        if let Some(sizes) = function.parameter_bytes() {
            let given: Vec<_> = self.arguments.iter().map(Vec::len).collect();
            if given != sizes {
                let (given, sizes) = (sum(&given), sum(&sizes));
                return Err(Error::usage(format!(
                    "kernel {name} takes {sizes}, and is given {given}: a parameter has another type"
                )));
            }
        }
        if geometry.shared_bytes > 0 {
            function.allow_shared(geometry.shared_bytes, name)?;
        }
        let arguments: Vec<&[u8]> = self.arguments.iter().map(|bytes| &**bytes).collect();
        // SAFETY: as many arguments as the driver says that the function has, of their sizes. Addresses
        // are of memory that `self` owns and that the waits below outlast. What the kernel touches beside
        // it is its author's to answer for: this process runs it for nothing else.
        let result = unsafe { stream.launch(function, geometry, &arguments, false) };
        launched(result, name)
    }

    /// Runs it once, to the end.
    ///
    /// # Errors
    /// What the driver, or an emulated GPU in its words, has against it.
    pub fn run(&self, geometry: Geometry) -> Result<()> {
        let doing = format!("kernel {} failed", self.kernel.name);
        let queued = self.queue(geometry);
        let ended = queued.and_then(|()| self.kernel.stream.synchronize(&doing));
        match (ended, emulator::failure()) {
            (Err(_), Some(words)) => Err(Error::failed(words)),
            (ended, _) => ended,
        }
    }

    /// The memory that each value in memory has become; nothing of numbers.
    ///
    /// # Errors
    /// What the driver has against it.
    pub fn memory(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let read = |region: &Option<(Region, usize)>| match region {
            None => Ok(None),
            Some((region, bytes)) => {
                let mut landing = Pinned::allocate(&self.kernel.gpu.context, *bytes)?;
                self.kernel.stream.copy_out(region, 0..*bytes, &mut landing)?;
                Ok(Some(landing.bytes()[..*bytes].to_vec()))
            }
        };
        self.regions.iter().map(read).collect()
    }

    /// How long each of some runs takes, between which the caches are overwritten.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn time(&self, geometry: Geometry, runs: usize) -> Result<Vec<Duration>> {
        let SingleKernel { gpu, stream, name, .. } = self.kernel;
        let bytes = 2 * gpu.cache_bytes()?.max(16 << 20);
        let flush = Region::allocate(&gpu.context, bytes, "what empties the caches")?;
        let mut times = Vec::new();
        for run in 0..=runs {
            let [begin, end] =
                [StreamEvent::timed(&gpu.context)?, StreamEvent::timed(&gpu.context)?];
            stream.clear(&flush, 0..bytes)?;
            begin.record(stream)?;
            self.queue(geometry)?;
            end.record(stream)?;
            end.wait(&format!("kernel {name} failed"))?;
            if run > 0 {
                times.push(end.since(&begin)?); // the first loads code
            }
        }
        Ok(times)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // The memory goes next: nothing may still be using it. What has failed has been told.
        let _ = self.kernel.stream.synchronize("");
    }
}

/// `8 + 4 bytes`
fn sum(sizes: &[usize]) -> String {
    let sizes: Vec<_> = sizes.iter().map(usize::to_string).collect();
    match sizes.is_empty() {
        true => "nothing".to_owned(),
        false => format!("{} bytes", sizes.join(" + ")),
    }
}
