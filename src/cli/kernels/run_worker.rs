//! The process that runs a kernel of somebody's own, under one checker: whatever it does to it, the one that
//! started it goes on. It reports on standard output, in lines of JSON between those that the kernel prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::args::{KernelRunArgs, SanitizeArg};
use crate::cli::emulate::emulate;
use crate::cli::open::defaults;
use crate::cli::output::print;
use crate::conformance::ORDERS;
use crate::error::{Error, Result};
use crate::executor::cuda::{ArgumentValue, Geometry, Gpu, Order, SingleCode, set_order};
use crate::kernel::{CudaFile, Declared};
use crate::lab::{Argument, Given, TensorData, Tensors, file_of_tensors};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEvent {
    /// The kernel is compiled, for a GPU of this name.
    Ready { device: String },
    /// It has ended under this schedule, and what it has written is in the folder.
    Ended { schedule: String },
    /// Seconds of each run.
    Timed { seconds: Vec<f64> },
}

impl RunEvent {
    fn tell(&self) -> Result<()> {
        let line = serde_json::to_string(self);
        let line = line.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        print(&(line + "\n"))
    }
}

/// Every argument by the parameter that it is for, and those of variables.
pub struct RunArguments {
    /// In the order of the parameters.
    pub parameters: Vec<Argument>,
    pub variables: Vec<Argument>,
}

impl RunArguments {
    /// # Errors
    /// Arguments that are not understood, twice there, or missing; an array for a number, or the other
    /// way round.
    pub fn parse(args: &KernelRunArgs, kernel: &Declared) -> Result<Self> {
        let mut all: BTreeMap<String, Argument> = BTreeMap::new();
        for text in &args.arguments {
            let argument = Argument::parse(text, args.seed)?;
            if let Some(twice) = all.insert(argument.name.clone(), argument) {
                return Err(Error::usage(format!("--arg {}: given twice", twice.name)));
            }
        }
        let mut parameters = Vec::new();
        for parameter in &kernel.parameters {
            let (name, c_type) = (&parameter.name, &parameter.c_type);
            let argument = all.remove(name).ok_or_else(|| {
                let example = if parameter.is_pointer { "f32[4096]:normal" } else { "4096" };
                Error::usage(format!(
                    "kernel {} takes {c_type} {name}: give it as in --arg {name}={example}",
                    kernel.name
                ))
            })?;
            match (parameter.is_pointer, &argument.given) {
                (true, Given::Number { .. }) => {
                    return Err(Error::usage(format!(
                        "--arg {name}: the parameter is a {c_type}: give an array, {name}=f32[4096]:normal"
                    )));
                }
                (true, Given::Array { is_filled: false, .. }) if !parameter.is_written => {
                    return Err(Error::usage(format!(
                        "--arg {name}: the kernel only reads it: say what is in it, as in {name}=...:normal"
                    )));
                }
                (true, Given::Array { .. }) => (),
                (false, _) => drop(argument.number(parameter)?),
            }
            parameters.push(argument);
        }
        Ok(Self { parameters, variables: all.into_values().collect() })
    }

    /// The arrays among the parameters, of those which are `written` only; by name.
    pub fn arrays(&self, kernel: &Declared, written: bool) -> Tensors {
        let all = self.parameters.iter().zip(&kernel.parameters);
        let wanted = all.filter(|(_, parameter)| !written || parameter.is_written);
        let arrays = wanted.filter_map(|(argument, _)| match &argument.given {
            Given::Array { tensor, .. } => Some((argument.name.clone(), tensor.clone())),
            Given::Number { .. } => None,
        });
        arrays.collect()
    }
}

/// Runs the kernel under every schedule that the checker needs.
///
/// # Errors
/// What the compiler, the driver or the kernel has against it.
pub fn work(args: &KernelRunArgs, folder: &Path, emulated: Option<u32>) -> Result<()> {
    if let Some(devices) = emulated {
        emulate(devices, &|_| ())?;
    }
    let file = CudaFile::read(&args.file)?;
    let (declared, entry) = file.kernel(args.entry.as_deref())?;
    let arguments = RunArguments::parse(args, declared)?;
    let gpu = Gpu::open_as(args.device, &defaults()?.cuda)?;
    let code = SingleCode::compile(&gpu, &file, &entry)?;
    let numbers = arguments.parameters.iter().zip(&declared.parameters);
    let numbers = numbers.map(|(argument, parameter)| match &argument.given {
        Given::Array { .. } => Ok(Vec::new()),
        Given::Number { .. } => argument.number(parameter),
    });
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    let values = arguments.parameters.iter().zip(&numbers);
    let values = values.map(|(argument, number)| match &argument.given {
        Given::Array { tensor, .. } => ArgumentValue::Memory(&tensor.bytes),
        Given::Number { .. } => ArgumentValue::Number(number),
    });
    let values: Vec<_> = values.collect();
    let variables = arguments.variables.iter().map(|argument| match &argument.given {
        Given::Array { tensor, .. } => Ok((argument.name.as_str(), &*tensor.bytes)),
        Given::Number { .. } => Err(Error::usage(format!(
            "--arg {}: no parameter; of a variable write its type and size, {}=i32[1]:...",
            argument.name, argument.name
        ))),
    });
    let variables: BTreeMap<&str, &[u8]> = variables.collect::<Result<_>>()?;
    drop(code.load()?.prepare(&values, &variables)?); // that it can be run at all
    RunEvent::Ready { device: gpu.name.clone() }.tell()?;
    let geometry = Geometry { grid: args.grid, block: args.block, shared_bytes: args.shared };
    for order in schedules(args, emulated) {
        set_order(order)?;
        let kernel = code.load()?;
        let prepared = kernel.prepare(&values, &variables)?;
        prepared.run(geometry)?;
        let memory = prepared.memory()?;
        let written = written(declared, &arguments, memory);
        let schedule = order.to_string();
        let path = folder.join(format!("{schedule}.safetensors"));
        fs::write(&path, file_of_tensors(&written)?)
            .map_err(|error| Error::failed(format!("cannot write {}: {error}", path.display())))?;
        RunEvent::Ended { schedule }.tell()?;
    }
    if args.bench {
        let kernel = code.load()?;
        let prepared = kernel.prepare(&values, &variables)?;
        let times = prepared.time(geometry, args.repetitions)?;
        let seconds = times.iter().map(|time| time.as_secs_f64()).collect();
        RunEvent::Timed { seconds }.tell()?;
    }
    Ok(())
}

/// ThreadSanitizer finds what is in no order, whatever order it happens in; a GPU has an order of its own.
fn schedules(args: &KernelRunArgs, emulated: Option<u32>) -> Vec<Order> {
    match (emulated, args.sanitize) {
        (Some(_), SanitizeArg::None | SanitizeArg::Address) => ORDERS.to_vec(),
        _ => vec![Order::Ascending],
    }
}

/// The arrays that the kernel may have written, as they are now.
fn written(kernel: &Declared, arguments: &RunArguments, memory: Vec<Option<Vec<u8>>>) -> Tensors {
    let all = arguments.parameters.iter().zip(&kernel.parameters).zip(memory);
    let written = all.filter(|((_, parameter), _)| parameter.is_written);
    let tensors = written.filter_map(|((argument, _), bytes)| match &argument.given {
        Given::Array { tensor: TensorData { dtype, shape, .. }, .. } => {
            let (dtype, shape) = (*dtype, shape.clone());
            Some((argument.name.clone(), TensorData { dtype, shape, bytes: bytes? }))
        }
        Given::Number { .. } => None,
    });
    tensors.collect()
}
