//! `chaski bench`

mod startup;

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, RefreshKind};

use crate::bench::{
    BUSY, Bench, COLUMNS, Ceilings, Fill, Grid, LINK_COLUMNS, PROFILE_COLUMNS,
    PROFILE_LINK_COLUMNS, Profile, Repetition, Row, Run, STARTUP_COLUMNS, Table, Test, roofline,
    row, trace, watched, weights_type,
};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::cli::args::{BenchArgs, DepthFill, ModelArgs};
use crate::cli::file::Output;
use crate::cli::interrupt::{interrupt, while_waiting};
use crate::cli::observer::observer;
use crate::cli::open::{open, options, source};
use crate::cli::output::{note, print, progress};
use crate::config::Config;
use crate::encoding::Float;
use crate::engine::{Engine, Model, Options, system, weights};
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::executor::cuda::Nvml;
use crate::model::Plan;
use crate::source::Source;
use crate::vector;

pub fn run(args: &BenchArgs) -> Result<()> {
    let interrupt = interrupt()?;
    if args.model.split.join.is_some() {
        return Err(Error::usage("bench takes one process only: leave --join out"));
    }
    let (name, columns, link_columns) = match (args.startup, args.profile) {
        (true, _) => ("startup", STARTUP_COLUMNS, &[][..]),
        (_, true) => ("profile", PROFILE_COLUMNS, PROFILE_LINK_COLUMNS),
        _ => ("llama_bench", COLUMNS, LINK_COLUMNS), // where llama.cpp's tools look for it
    };
    let link_columns = if options(&args.model)?.split.world()? > 1 { link_columns } else { &[] };
    let mut table = Table::new(args.output.into(), name, [columns, link_columns].concat());
    let models = models(&args.model.model, &|path| Path::new(path).exists());
    let models = models.into_iter().map(|model| ModelArgs { model, ..args.model.clone() });
    let models: Vec<_> = models.collect();
    // What the last of them lacks is better told before the first is measured than after.
    for model in models.iter().skip(1) {
        let source = source(model)?;
        weights(&source, &Config::load(&source)?, model.quantize.map(Into::into))?;
    }
    let mut each = models.iter().map(|model| match (args.startup, args.profile) {
        (true, _) => startup::startup(model, &mut table),
        (_, true) => profile(args, model, &mut table, interrupt),
        _ => tests(args, model, &mut table, interrupt),
    });
    // Whatever ends it, what was measured is a whole table.
    let result = each.try_for_each(|result| result);
    drop(each);
    print(table.end())?;
    result
}

/// The models of a list. A comma that is part of a path which `exists` divides nothing.
fn models(list: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let parts: Vec<&str> = list.split(',').collect();
    let (mut models, mut begin) = (Vec::new(), 0);
    while begin < parts.len() {
        let ends = (begin + 1..=parts.len()).rev();
        let path = ends.map(|end| (end, parts[begin..end].join(","))).find(|(_, p)| exists(p));
        let (end, model) = path.unwrap_or_else(|| (begin + 1, parts[begin].to_owned()));
        models.push(model);
        begin = end;
    }
    models
}

/// A model on the bench, with all that its rows have in common.
struct Subject<'a> {
    bench: Bench<'a>,
    ceilings: Ceilings,
    nvml: Option<Nvml>,
    row: Row,
}

impl<'a> Subject<'a> {
    /// Measures the machine, then loads the model with room for `context` tokens.
    fn new(
        args: &BenchArgs,
        model: &ModelArgs,
        context: usize,
        interrupt: &'a AtomicBool,
    ) -> Result<Self> {
        let context = context.max(model.context.unwrap_or(0));
        let options = Options { context: Some(context), text: false, ..options(model)? };
        let mut opened = open(model, options)?;
        opened.qualify(&observer())?;
        if context > opened.config.max_context {
            note(format_args!(
                "a context of {context} is beyond the model's {}: times are what they would be, text \
                 would not",
                opened.config.max_context
            ));
            opened.config.max_context = context;
        }
        opened.plan()?; // what does not fit is told before anything is measured
        let (_, weights) = sizes(&opened.checkpoint);
        let devices = devices(&opened.hardware);
        let multiplied = match (&opened.hardware[0], opened.options.activations) {
            (Hardware::Gpu(_), _) | (_, Some(Float::Bf16)) => Float::Bf16,
            _ => Float::F32,
        };
        let (hardware, weights) = (&opened.hardware[0], weights / devices);
        let ceilings = Ceilings::measure(hardware, multiplied, weights)? * devices;
        note_ceilings(&ceilings, multiplied, devices);
        let nvml = match &opened.hardware[0] {
            Hardware::Cpu(_) => None,
            Hardware::Gpu(gpu) => gpu.nvml(),
        };
        let mut row = common_fields(&opened, nvml.as_ref())?;
        let fill = match args.depth_fill {
            DepthFill::Prefill => Fill::Prefill,
            DepthFill::Random => Fill::Random,
        };
        let Engine { team, plan, .. } = opened.load(&observer())?;
        row.extend(llama_bench_fields(&opened, &plan)?);
        row.insert("kv_type".to_owned(), json!(plan.sizes.cache.name()));
        row.insert("activations".to_owned(), json!(plan.sizes.activations.name()));
        if plan.sizes.decode_as_prefill {
            let device = format!("{}, activations in bf16", row["device"].as_str().unwrap_or(""));
            row.insert("device".to_owned(), json!(device));
        }
        row.insert("context".to_owned(), json!(plan.sizes.context));
        row.insert("prefill_chunk".to_owned(), json!(plan.sizes.chunk));
        row.insert("depth_fill".to_owned(), json!(format!("{:?}", fill).to_lowercase()));
        Ok(Self { bench: Bench::new(team, fill, interrupt), ceilings, nvml, row })
    }
}

/// Gets something ready. Ctrl-C ends the process meanwhile, unless that would leave half a table.
fn ready<R>(table: &Table, make: impl FnOnce() -> R) -> R {
    if table.is_empty() { while_waiting(make) } else { make() }
}

/// The number of different devices.
fn devices(hardware: &[Hardware]) -> usize {
    let ordinals = hardware.iter().filter_map(|hardware| match hardware {
        Hardware::Cpu(_) => None,
        Hardware::Gpu(gpu) => Some(gpu.ordinal),
    });
    ordinals.collect::<BTreeSet<_>>().len().max(1)
}

/// What llama-bench says of a run.
fn llama_bench_fields(opened: &Model, plan: &Plan) -> Result<Row> {
    let Model { source, config, checkpoint, dims, hardware, options, .. } = opened;
    let file = match source {
        Source::Gguf(model) if options.quantise.is_none() => Some(&model.parts()[0].gguf),
        _ => None,
    };
    let (parameters, weight_bytes) = sizes(checkpoint);
    let gpus = hardware.iter().filter_map(|hardware| match hardware {
        Hardware::Cpu(_) => None,
        Hardware::Gpu(gpu) => Some((gpu.name.clone(), gpu.ordinal)),
    });
    let gpus: Vec<_> = gpus.collect();
    let run = Run {
        config,
        model: source.to_string(),
        weights: weights_type(file, checkpoint.encoding()),
        cache: plan.sizes.cache,
        weight_bytes,
        parameters,
        chunk: plan.sizes.chunk,
        threads: match &hardware[0] {
            Hardware::Cpu(threads) => threads.count(),
            Hardware::Gpu(_) => vector::cores(),
        },
        cpu: cpu()?.0,
        is_mapped: gpus.is_empty() && checkpoint.made_bytes() < checkpoint.total_bytes(),
        gpus,
        split: (dims.share.parts, dims.stage.parts),
    };
    Ok(run.fields())
}

/// Parameters, and bytes of weights.
fn sizes(checkpoint: &Checkpoint) -> (usize, usize) {
    let tensors = || checkpoint.tensors().map(|(_, tensor)| tensor);
    let parameters = tensors().map(Tensor::len).sum();
    (parameters, tensors().map(|tensor| tensor.bytes).sum())
}

/// The CPU's name, and its clock in MHz where that is known.
fn cpu() -> Result<(String, Option<u64>)> {
    let frequency = CpuRefreshKind::nothing().with_frequency();
    let system = system(RefreshKind::nothing().with_cpu(frequency))?;
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    let clock = system.cpus().iter().map(sysinfo::Cpu::frequency).max();
    Ok((name.to_owned(), clock.filter(|mhz| *mhz > 0)))
}

/// What rows say of the model, the machine and this program.
pub(super) fn common_fields(opened: &Model, nvml: Option<&Nvml>) -> Result<Row> {
    let Model { source, checkpoint, dims, hardware, .. } = opened;
    let (parameters, weight_bytes) = sizes(checkpoint);
    let (cpu, clock) = cpu()?;
    let (device, threads, tuning) = match &hardware[0] {
        Hardware::Cpu(threads) => {
            let device = format!("{cpu}, {}", vector::instruction_set());
            (device, Some(threads.count()), None)
        }
        Hardware::Gpu(gpu) => (gpu.name.clone(), None, Some(gpu.options.tuning.to_string())),
    };
    let Value::Object(row) = json!({
        "model": source.to_string(),
        "parameters": parameters,
        "weight_bytes": weight_bytes,
        "dtype": checkpoint.types(),
        "device": device,
        "tensor_parallel": dims.share.parts,
        "pipeline_parallel": dims.stage.parts,
        "device_count": devices(hardware),
        "threads": threads,
        "cpu_clock_mhz": clock,
        "qualified": opened.qualified,
        "tuning": tuning,
        "driver": nvml.and_then(Nvml::driver),
        "commit": env!("CHASKI_VERSION"),
        "date": jiff::Timestamp::now().to_string(),
    }) else {
        unreachable!("json! of braces is an object");
    };
    Ok(row)
}

fn tests(
    args: &BenchArgs,
    model: &ModelArgs,
    table: &mut Table,
    interrupt: &AtomicBool,
) -> Result<()> {
    let grid = Grid {
        prompts: args.n_prompt.clone(),
        generations: args.n_gen.clone(),
        pairs: args.pg.clone(),
        depths: args.n_depth.clone(),
        real_loop: !args.no_loop,
    };
    let tests = grid.tests();
    let Some(context) = tests.iter().map(Test::context).max() else {
        return Err(Error::usage("nothing to measure: -p, -n and -pg are all 0"));
    };
    let mut subject = ready(table, || Subject::new(args, model, context, interrupt))?;
    let bar = progress((tests.len() * args.repetitions) as u64, "bench");
    for test in &tests {
        bar.set_message(test.name());
        let Subject { bench, ceilings, nvml, row: common } = &mut subject;
        if !args.no_warmup {
            bench.warm_up(test)?;
        }
        bench.fill_to(test.depth)?;
        let ((samples, result), mut conditions) =
            watched(nvml.as_ref(), || repeat(bench, test, args.repetitions, &bar));
        // Those of the first device; what the others take is not known.
        conditions.energy_j = conditions.energy_j.filter(|_| common["device_count"] == 1);
        if !samples.is_empty() {
            let cost = bench.cost(test)?;
            let row = row(test, &samples, cost, ceilings, &conditions, common);
            bar.suspend(|| print(&table.row(&row)))?;
        }
        result?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// As many repetitions as come before an error, and the error.
fn repeat(
    bench: &mut Bench<'_>,
    test: &Test,
    repetitions: usize,
    bar: &ProgressBar,
) -> (Vec<Repetition>, Result<()>) {
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        match bench.sample(test) {
            Ok(sample) => samples.push(sample),
            Err(error) => return (samples, Err(error)),
        }
        bar.inc(1);
    }
    (samples, Ok(()))
}

fn profile(
    args: &BenchArgs,
    model: &ModelArgs,
    table: &mut Table,
    interrupt: &AtomicBool,
) -> Result<()> {
    let prompts = args.n_prompt.iter().filter(|prompt| **prompt > 0).map(|prompt| Some(*prompt));
    let phases: Vec<Option<usize>> = prompts.chain([None]).collect();
    let longest = phases.iter().map(|phase| phase.unwrap_or(1)).max().unwrap_or(1);
    let deepest = args.n_depth.iter().max().copied().unwrap_or(0);
    // What cannot be written is better told before than after.
    let create = |file: &Option<PathBuf>| file.as_deref().map(Output::create).transpose();
    let (trace_file, roofline_file) = (create(&args.trace)?, create(&args.roofline)?);
    let context = deepest + longest;
    let mut subject = ready(table, || Subject::new(args, model, context, interrupt))?;
    let bar = progress((args.n_depth.len() * phases.len()) as u64, "profile");
    let mut profiles = Vec::new();
    for depth in &args.n_depth {
        for phase in &phases {
            let Subject { bench, ceilings, row: common, .. } = &mut subject;
            let profile = Profile::measure(bench, *phase, *depth, args.repetitions)?;
            let rows = profile.rows(ceilings, common);
            let text: String = rows.iter().map(|row| table.row(row)).collect();
            bar.suspend(|| print(&text))?;
            bar.suspend(|| note_difference(&profile));
            profiles.push(profile);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let name = |field: &str| subject.row[field].as_str().unwrap_or_default().to_owned();
    let (model, device) = (name("model"), name("device"));
    if let Some(mut file) = trace_file {
        file.write(format!("{}\n", trace(&profiles, &model, &device)).as_bytes())?;
        file.finish()?;
    }
    if let Some(mut file) = roofline_file {
        let title = format!("{model} on {device}");
        file.write(roofline(&profiles, &subject.ceilings, &title).as_bytes())?;
        file.finish()?;
    }
    Ok(())
}

fn note_difference(profile: &Profile) {
    let Profile { phase, sum, step, .. } = profile;
    note(format_args!(
        "{phase}: {:.3} ms summed over the ops, {:.3} ms uninstrumented: {:+.1}%",
        1e3 * sum,
        1e3 * step,
        100.0 * (sum / step - 1.0)
    ));
    let communication = profile.communication();
    if communication > 0.0 {
        note(format_args!(
            "{phase}: {:.3} ms of it between ranks, including the wait for the slowest: {:.1}%",
            1e3 * communication,
            100.0 * communication / sum
        ));
    }
}

/// Says what the machine reaches, and when it is too busy to measure on.
pub(super) fn note_ceilings(ceilings: &Ceilings, multiplied: Float, devices: usize) {
    let together = match devices {
        1 => String::new(),
        several => format!(", {several} devices like the first together"),
    };
    let [read, multiply] = ceilings.spreads.map(|spread| 100.0 * spread);
    note(format_args!(
        "ceilings, measured now: read {:.1} GB/s (median {read:.0}% slower), multiply {:.3} TFLOP/s in {} \
         (median {multiply:.0}% slower){together}",
        ceilings.read_bytes_per_s / 1e9,
        ceilings.flops_per_s / 1e12,
        multiplied.name().to_lowercase()
    ));
    if ceilings.spreads.into_iter().any(|spread| spread > BUSY) {
        note(
            "the machine is busy: the rates below are too low and vary; measure on an idle machine",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_is_divided_between_them_alone() {
        let here = ["/m/a,b", "/m/c", "a,b", "x,y,z", "x"];
        let models = |list: &str| models(list, &|path| here.contains(&path));
        assert_eq!(models("demo"), ["demo"]);
        assert_eq!(models("demo,synthetic:llama3-8b"), ["demo", "synthetic:llama3-8b"]);
        assert_eq!(models("/m/a,b"), ["/m/a,b"]);
        assert_eq!(models("demo,/m/a,b,/m/c,org/name"), ["demo", "/m/a,b", "/m/c", "org/name"]);
        assert_eq!(models("x,y,z,a,b"), ["x,y,z", "a,b"]);
        assert_eq!(models("x,y"), ["x", "y"]);
    }
}
