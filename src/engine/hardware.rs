//! From options to what each rank of a model runs on.

use super::{Device, Options, Split};
use crate::checkpoint::Checkpoint;
use crate::comm::ProcessPlace;
use crate::config::{Config, Dims};
use crate::error::{Error, Result, count as counted};
use crate::executor::cuda::{self, Gpu, device_count};
use crate::executor::{Hardware, Threads};
use crate::vector;

impl Split {
    /// The number of ranks, in all processes.
    ///
    /// # Errors
    /// Not as many ranks as devices.
    pub fn world(&self) -> Result<usize> {
        let processes = self.process.as_ref().map_or(1, |place| place.processes);
        let Self { tensor_parallel, pipeline_parallel, devices, .. } = self;
        let world = match (tensor_parallel, pipeline_parallel) {
            (Some(parts), stages) => parts.saturating_mul(stages.unwrap_or(1)),
            (None, Some(stages)) if devices.is_empty() && processes == 1 => *stages,
            (None, _) => devices.len().max(1) * processes,
        };
        match devices.len() {
            0 if world.is_multiple_of(processes) => Ok(world),
            devices if world == devices * processes => Ok(world),
            0 => Err(Error::usage(format!(
                "{world} ranks cannot be shared by {processes} processes"
            ))),
            devices => Err(Error::usage(format!(
                "{world} ranks need as many `devices`, and {devices} are given in each of {processes} \
                 processes; one may stand there several times"
            ))),
        }
    }

    /// The share of the rank that has most.
    ///
    /// # Errors
    /// As [`Self::world`], and a split that the model does not allow.
    pub fn largest_share(&self, config: &Config) -> Result<Dims> {
        let world = self.world()?;
        let stages =
            self.pipeline_parallel.unwrap_or(match (self.tensor_parallel, &self.process) {
                (None, Some(place)) => usual_stages(config, world, place.machines),
                _ => 1,
            });
        Ok(Dims::in_stages(config, world, stages)?.of_rank(world - 1))
    }
}

/// One stage a machine, where otherwise ranks of several machines had the same KV heads: sums inside of a
/// machine are faster.
fn usual_stages(config: &Config, world: usize, machines: usize) -> usize {
    let divides = machines > 0 && world.is_multiple_of(machines) && machines <= config.layers;
    if world > config.kv_heads && divides { machines } else { 1 }
}

/// What the ranks of this process run on; `dims` are those of one. Adds to `remarks` why it is not a GPU.
///
/// # Errors
/// A device that is not there, or does not suit the model.
pub(super) fn of_ranks(
    options: &Options,
    dims: &Dims,
    weights: &Checkpoint,
    remarks: &mut Vec<String>,
) -> Result<Vec<Hardware>> {
    let world = dims.world();
    let mut on = |device| one(options, device, dims, weights, remarks);
    if let Some(place) = &options.split.process {
        return joined(options, place, dims, weights);
    }
    match &options.split.devices[..] {
        [ordinal] => Ok(vec![on(Device::Cuda(*ordinal))?]),
        [] if world > 1 && matches!(options.device, Device::Cuda(1..)) => {
            Err(Error::usage(format!(
                "`device` names one GPU, and there are {world} ranks: name theirs with `devices`"
            )))
        }
        [] if world == 1 => Ok(vec![on(options.device)?]),
        [] => match on(options.device)? {
            cpu @ Hardware::Cpu(_) => Ok(vec![cpu; world]),
            Hardware::Gpu(_) => {
                let all: Vec<u32> = (0..world as u32).collect();
                gpus(options, &all, dims, weights)
            }
        },
        several => gpus(options, several, dims, weights),
    }
}

/// What runs one rank. Adds to `remarks` why it is not a GPU.
///
/// # Errors
/// As [`of_ranks`].
pub fn one(
    options: &Options,
    device: Device,
    dims: &Dims,
    weights: &Checkpoint,
    remarks: &mut Vec<String>,
) -> Result<Hardware> {
    let ordinal = match device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => Some(ordinal),
        Device::Auto => match device_count() {
            Ok(count) => (count > 0).then_some(0),
            Err(error) => {
                if cuda::has_driver() {
                    remarks.push(format!("running on the CPU: {error}"));
                }
                None
            }
        },
    };
    let Some(ordinal) = ordinal else {
        return match options.kernels.first() {
            Some(source) => Err(Error::usage(format!(
                "`kernels` has one for {}: kernels run on a GPU; `emulate` 1 emulates one",
                source.kernel.name
            ))),
            None => Threads::new(options.threads).map(Hardware::Cpu),
        };
    };
    let gpu = Gpu::open_as(ordinal, &options.cuda)?;
    match gpu.suits(dims, weights) {
        Err(error) if device == Device::Auto && options.kernels.is_empty() => {
            remarks.push(format!("running on the CPU, not the GPU: {error}"));
            return Threads::new(options.threads).map(Hardware::Cpu);
        }
        suits => suits?,
    }
    replace_kernels(options, &gpu);
    Ok(Hardware::Gpu(gpu))
}

/// Has the options' sources run in place of built-in kernels.
fn replace_kernels(options: &Options, gpu: &Gpu) {
    options.kernels.iter().cloned().for_each(|source| gpu.replace_kernel(source));
}

/// What the ranks of one of several processes run on.
fn joined(
    options: &Options,
    place: &ProcessPlace,
    dims: &Dims,
    weights: &Checkpoint,
) -> Result<Vec<Hardware>> {
    let ranks = dims.world() / place.processes;
    let ordinals: Vec<u32> = match (&options.split.devices[..], options.device) {
        (_, Device::Cpu) => {
            return Err(Error::usage(
                "`join` needs GPUs, which NCCL joins: ranks on the CPU are of one process",
            ));
        }
        ([], Device::Cuda(ordinal)) => vec![ordinal; ranks],
        ([], Device::Auto) => {
            // A launcher may show each process its own GPUs only.
            let first = if device_count()? as usize > ranks { place.local * ranks } else { 0 };
            (first as u32..).take(ranks).collect()
        }
        (devices, _) => devices.to_vec(),
    };
    gpus(options, &ordinals, dims, weights)
}

/// One rank on each of these GPUs.
fn gpus(
    options: &Options,
    ordinals: &[u32],
    dims: &Dims,
    weights: &Checkpoint,
) -> Result<Vec<Hardware>> {
    let count = device_count()?;
    if let Some(missing) = ordinals.iter().find(|ordinal| **ordinal >= count) {
        return Err(Error::failed(format!(
            "there is no GPU cuda:{missing} for a rank: the driver shows {}; `devices` 0,0 puts two ranks on \
             one, `device` cpu needs none",
            counted(count as usize, "GPU")
        )));
    }
    let open = |ordinal: &u32| {
        let gpu = Gpu::open_as(*ordinal, &options.cuda)?;
        gpu.suits(dims, weights)?;
        replace_kernels(options, &gpu);
        Ok(Hardware::Gpu(gpu))
    };
    ordinals.iter().map(open).collect()
}

/// What ranks run on, for people.
pub fn devices(hardware: &[Hardware]) -> String {
    match hardware {
        [Hardware::Gpu(gpu)] => format!("cuda:{} ({})", gpu.ordinal, gpu.name),
        [Hardware::Cpu(threads), others @ ..] => {
            let ranks = match others.len() {
                0 => String::new(),
                others => format!(", {} ranks", others + 1),
            };
            let threads = counted(threads.count(), "thread");
            format!("the CPU ({}, {threads}{ranks})", vector::instruction_set())
        }
        several => several.iter().map(Hardware::name).collect::<Vec<_>>().join(", "),
    }
}
