//! From arguments to what each rank of a model runs on.

use std::sync::Arc;

use sysinfo::System;

use super::args::{Device, ModelArgs, SplitArgs};
use super::launch::{Place, place};
use super::model::{Opened, available_memory_bytes, hardware, kernel_sources, replace_kernels};
use super::output::note;
use crate::checkpoint::Checkpoint;
use crate::comm::{Hello, Link, excuse, join};
use crate::config::{Config, Dims};
use crate::device::Hardware;
use crate::device::cuda::{Card, device_count};
use crate::error::{Error, Result};
use crate::kernel::compile::hash;
use crate::model::{Limit, Plan, Sizes, binary};
use crate::team::Team;
use crate::vector;

/// The number of ranks that the arguments ask for, in all processes.
///
/// # Errors
/// Not as many ranks as devices; what keeps this process from joining others.
pub fn world(args: &ModelArgs) -> Result<usize> {
    let processes = place(&args.split)?.map_or(1, |place| place.processes);
    let SplitArgs { tensor_parallel, pipeline_parallel, devices, .. } = &args.split;
    let world = match (tensor_parallel, pipeline_parallel) {
        (Some(parts), stages) => parts.saturating_mul(stages.unwrap_or(1)),
        (None, Some(stages)) if devices.is_empty() && processes == 1 => *stages,
        (None, _) => devices.len().max(1) * processes,
    };
    match devices.len() {
        0 if world.is_multiple_of(processes) => Ok(world),
        devices if world == devices * processes => Ok(world),
        0 => Err(Error::usage(format!("{world} ranks cannot be shared by {processes} processes"))),
        devices => Err(Error::usage(format!(
            "{world} ranks need as many --devices, and {devices} are given in each of {processes} \
             processes; one may stand there several times"
        ))),
    }
}

/// That a command which runs on one device, or on those that it names itself, is asked for no others.
///
/// # Errors
/// The first option that would play no part.
pub fn check_alone(args: &ModelArgs, command: &str) -> Result<()> {
    let SplitArgs { tensor_parallel, pipeline_parallel, devices, join, .. } = &args.split;
    let given = [
        ("--tensor-parallel", tensor_parallel.is_some_and(|ranks| ranks > 1)),
        ("--pipeline-parallel", pipeline_parallel.is_some_and(|stages| stages > 1)),
        ("--devices", devices.len() > 1),
        ("--join", join.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            Err(Error::usage(format!("{command} takes one rank: leave {option} out")))
        }
    }
}

/// The share of the rank that has most.
///
/// # Errors
/// As [`world`], and a split that the model does not allow.
pub fn largest_share(args: &ModelArgs, config: &Config) -> Result<Dims> {
    let (world, place) = (world(args)?, place(&args.split)?);
    let SplitArgs { tensor_parallel, pipeline_parallel, .. } = args.split;
    let stages = pipeline_parallel.unwrap_or(match (tensor_parallel, place) {
        (None, Some(Place { machines, .. })) => usual_stages(config, world, machines),
        _ => 1,
    });
    Ok(Dims::in_stages(config, world, stages)?.of_rank(world - 1))
}

/// One stage a machine, where otherwise ranks of several machines had the same KV heads: sums inside of a
/// machine are faster.
fn usual_stages(config: &Config, world: usize, machines: usize) -> usize {
    let divides = machines > 0 && world.is_multiple_of(machines) && machines <= config.layers;
    if world > config.kv_heads && divides { machines } else { 1 }
}

/// What each rank runs on; `dims` are those of one.
///
/// # Errors
/// A device that is not there, or does not suit the model.
pub fn team_hardware(args: &ModelArgs, dims: &Dims, weights: &Checkpoint) -> Result<Vec<Hardware>> {
    let on = |device| hardware(&ModelArgs { device, ..args.clone() }, dims, weights);
    let world = dims.world();
    if let Some(place) = place(&args.split)? {
        return joined(args, &place, dims, weights);
    }
    match &args.split.devices[..] {
        [ordinal] => Ok(vec![on(Device::Cuda(*ordinal))?]),
        [] if world > 1 && matches!(args.device, Device::Cuda(1..)) => Err(Error::usage(format!(
            "--device names one GPU, and there are {world} ranks: name theirs with --devices"
        ))),
        [] if world == 1 => Ok(vec![on(args.device)?]),
        [] if matches!(on(args.device)?, Hardware::Cpu) => Ok(vec![Hardware::Cpu; world]),
        [] => {
            let all: Vec<u32> = (0..world as u32).collect();
            cards(args, &all, dims, weights)
        }
        several => cards(args, several, dims, weights),
    }
}

/// What the ranks of one of several processes run on.
fn joined(
    args: &ModelArgs,
    place: &Place,
    dims: &Dims,
    weights: &Checkpoint,
) -> Result<Vec<Hardware>> {
    let ranks = dims.world() / place.processes;
    let ordinals: Vec<u32> = match (&args.split.devices[..], args.device) {
        (_, Device::Cpu) => {
            return Err(Error::usage(
                "--join needs GPUs, which NCCL joins: ranks on the CPU are of one process",
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
    cards(args, &ordinals, dims, weights)
}

/// One rank on each of these GPUs.
fn cards(
    args: &ModelArgs,
    ordinals: &[u32],
    dims: &Dims,
    weights: &Checkpoint,
) -> Result<Vec<Hardware>> {
    let count = device_count()?;
    if let Some(missing) = ordinals.iter().find(|ordinal| **ordinal >= count) {
        return Err(Error::failed(format!(
            "there is no GPU cuda:{missing} for a rank: there are {count}; --devices 0,0 puts two ranks on \
             one, --device cpu does without"
        )));
    }
    let open = |ordinal: &u32| {
        let card = Card::open(*ordinal)?;
        card.suits(dims, weights)?;
        Ok(card)
    };
    let cards: Vec<Card> = ordinals.iter().map(open).collect::<Result<_>>()?;
    replace_kernels(&args.kernel, &cards)?;
    Ok(cards.into_iter().map(Hardware::Gpu).collect())
}

/// What the ranks run on, for people.
pub fn devices(hardware: &[Hardware]) -> String {
    match hardware {
        [Hardware::Gpu(card)] => format!("cuda:{} ({})", card.ordinal, card.name),
        [Hardware::Cpu, others @ ..] => {
            let ranks = match others.len() {
                0 => String::new(),
                others => format!(", {} ranks", others + 1),
            };
            let threads = rayon::current_num_threads();
            format!("the CPU ({}, {threads} threads{ranks})", vector::instruction_set())
        }
        several => several.iter().map(Hardware::name).collect::<Vec<_>>().join(", "),
    }
}

/// Tells which way goes what ranks tell each other, where there are several.
///
/// # Errors
/// A rank that has failed.
pub fn note_link(team: &mut Team) -> Result<()> {
    if let Some(Some(link)) = team.each(|rank| Ok(rank.device_mut().link()))?.first() {
        note(link);
    }
    Ok(())
}

/// Says what is about to be loaded, and has it read ahead, when this process has joined the others of the
/// run, if it is one of several. They must mean the same, and have room for as much.
///
/// # Errors
/// What does not fit; what keeps the processes from each other.
pub fn meet(
    opened: &Opened,
    args: &ModelArgs,
    all_logits: bool,
    context: Option<usize>,
) -> Result<(Plan, Option<Arc<Link>>)> {
    let Some(place) = place(&args.split)? else {
        return Ok((opened.ready(args, all_logits, context)?, None));
    };
    let mut plan = opened.plan(args, all_logits, context)?;
    let link = join_others(opened, args, place, &plan)?;
    if link.context() < plan.sizes.context {
        plan = opened.plan(args, all_logits, Some(link.context()))?;
    }
    if link.is_first() {
        describe(opened, args, &plan, &link.devices());
    }
    opened.read_ahead(&plan)?;
    Ok((plan, Some(link)))
}

fn join_others(opened: &Opened, args: &ModelArgs, place: Place, plan: &Plan) -> Result<Arc<Link>> {
    let Place { process, processes, address, run, .. } = place;
    let Opened { config, checkpoint, dims, hardware, .. } = opened;
    let sizes = Sizes { context: 0, ..plan.sizes };
    let tensors: Vec<_> = checkpoint.tensors().collect();
    let kernels = kernel_sources(&args.kernel)?;
    let kernels: Vec<_> = kernels.iter().map(|source| (&source.text, &source.headers)).collect();
    let hash = hash([&*format!("{config:?}{sizes:?}{tensors:?}{kernels:?}")].into_iter());
    let machine = System::host_name().unwrap_or_else(|_| "a machine without a name".to_owned());
    let hello = Hello {
        version: env!("CHASKI_VERSION").to_owned(),
        run,
        process,
        processes,
        devices: hardware.iter().map(|device| format!("{} of {machine}", device.name())).collect(),
        model: format!(
            "{} layers {} in stages of {} ranks #{hash}",
            config.layers,
            checkpoint.types(),
            dims.share.parts
        ),
        context: plan.sizes.context,
    };
    join(hello, &address, args.split.timeout())
}

/// Tells the other processes of the run, if this is one of several, that it will not come.
pub fn cannot_meet(args: &ModelArgs, why: &Error) {
    if let Ok(Some(Place { process: process @ 1.., address, .. })) = place(&args.split) {
        excuse(process, &address, why);
    }
}

/// That weights which are in no file fit the memory beside the state: they cannot give way.
pub fn check_room(plan: &Plan, world: usize) -> Result<()> {
    let available_bytes = available_memory_bytes()?;
    let weight_bytes = plan.weight_bytes * world;
    let state_bytes = (plan.cache_bytes + plan.activation_bytes) * world;
    if weight_bytes + state_bytes <= available_bytes {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{} of synthetic weights and {} of state do not fit the {} of memory available: cut the \
         model with --layers, or lower --context",
        binary(weight_bytes),
        binary(state_bytes),
        binary(available_bytes)
    )))
}

/// Says what is about to be loaded on which devices.
pub fn describe(opened: &Opened, args: &ModelArgs, plan: &Plan, on: &str) {
    let Opened { source, config, checkpoint, dims, .. } = opened;
    let ranks = dims.world();
    note(format_args!(
        "{source}: {} layers, {} {}, on {}; context {} ({}), KV cache {}{}",
        config.layers,
        binary(plan.weight_bytes * ranks),
        checkpoint.types(),
        on,
        plan.sizes.context,
        match plan.limit {
            Limit::Request => "as asked",
            Limit::Model => "the model's limit",
            Limit::Memory => "what fits the memory",
        },
        binary(plan.cache_bytes * ranks),
        if plan.sizes.decode_as_prefill { "; activations in bf16" } else { "" },
    ));
    let (stages, parts) = (dims.stage.parts, dims.share.parts);
    if stages > 1 {
        let why = match args.split.pipeline_parallel {
            Some(_) => String::new(),
            None => format!(
                ", one for each machine, since {ranks} ranks are more than the model's {} KV heads; \
                 --tensor-parallel {ranks} does without",
                config.kv_heads
            ),
        };
        note(format_args!(
            "{stages} stages, {parts} ranks and up to {} layers in each{why}",
            dims.layers
        ));
    }
}
