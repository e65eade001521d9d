//! `chaski kernels bench`

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::all_reduce;
use super::check::passed;
use super::watch::time_limit;
use super::watchdog::Watchdog;
use crate::bench::{Ceilings, Conditions, Row, Table, watched};
use crate::cli::args::KernelBenchArgs;
use crate::cli::bench::{common_fields, note_ceilings};
use crate::cli::file::Output;
use crate::cli::interrupt::{interrupt, while_waiting};
use crate::cli::observer::observer;
use crate::cli::open::{check_alone, check_gpu, defaults, open, options};
use crate::cli::output::{note, print, progress};
use crate::config::Dims;
use crate::encoding::Float;
use crate::engine::{Device, Model, Options};
use crate::error::{Error, Result};
use crate::executor::Hardware;
use crate::executor::cuda::{Nvml, check_cublas};
use crate::kernel::{Kernel, Replacement};
use crate::lab::{
    BenchStep, Candidate, Group, GroupTuning, KERNEL_COLUMNS, OpBench, ROTATION, Times,
    check_turns, kernel_row, kernels_of, measure, table,
};
use crate::ops::MeasuredParts;
use crate::source::Source as ModelSource;

/// A CPU's last-level cache, where the system does not say.
const USUAL_CPU_CACHE: usize = 32 << 20;

/// Times kernels, and prints a row for each size that the model has of them.
///
/// # Errors
/// A kernel that does not compute what it should, or fails; a model that does not fit.
pub fn bench(args: &KernelBenchArgs, emulated: Option<u32>) -> Result<()> {
    let interrupt = interrupt()?;
    check_device(args, emulated)?;
    let candidates = candidates(args)?;
    let wanted = wanted(args, &candidates)?;
    if wanted.iter().any(|kernel| kernel.name == all_reduce::NAME) {
        return all_reduce::bench(args, &wanted, candidates[0].source(), interrupt, emulated);
    }
    check_alone(&args.model, "kernels bench")?;
    let tuned = args.tune.as_deref().map(Output::create).transpose()?;
    let phases = phases(args);
    let model = fitted(args, &phases)?;
    check_wanted(&model, &phases, &wanted, &candidates)?;
    let hardware = &model.hardware[0];
    for source in candidates.iter().filter_map(Candidate::source) {
        let Hardware::Gpu(gpu) = hardware else {
            return Err(Error::usage(format!(
                "{}: kernels run on a GPU; --emulate 1 emulates one",
                source.path()
            )));
        };
        while_waiting(|| passed(source, gpu.ordinal, emulated, args.time_limit))?;
    }
    let nvml = match hardware {
        Hardware::Cpu(_) => None,
        Hardware::Gpu(gpu) => gpu.nvml(),
    };
    let subject = common_fields(&model, nvml.as_ref())?;
    let weights = model.checkpoint.tensors().map(|(_, tensor)| tensor.bytes).sum();
    let ceilings = while_waiting(|| Ceilings::measure(hardware, Float::Bf16, weights))?;
    note_ceilings(&ceilings, Float::Bf16, 1);
    let bed = while_waiting(|| loaded(&model, args.n_depth))?;
    let is_wanted = |group: &Group| {
        let is_named = wanted.iter().any(|kernel| kernel.name == group.kernel);
        (wanted.is_empty() || is_named)
            && (!is_against_cublas(&candidates) || bed.has_products(group))
    };
    let groups: Vec<Group> =
        phases.into_iter().flat_map(|phase| bed.groups(phase)).filter(is_wanted).collect();
    let mut session = Session {
        watchdog: Watchdog::new(time_limit(args.time_limit, emulated), interrupt),
        table: Table::new(args.output.into(), "kernels", KERNEL_COLUMNS),
        bed,
        candidates,
        ceilings,
        nvml,
        subject,
    };
    let result = match tuned {
        None => session.run(&groups, args.repetitions, interrupt),
        Some(mut file) => session.tune(&groups, args.repetitions, interrupt).and_then(|found| {
            file.write(table(&found).as_bytes())?;
            file.finish()
        }),
    };
    // Whatever ends it, what was measured is a whole table.
    session.watchdog.rest();
    print(session.table.end())?;
    result
}

/// That there is what runs kernels, and whether its times mean anything.
fn check_device(args: &KernelBenchArgs, emulated: Option<u32>) -> Result<()> {
    if !args.model.kernel.is_empty() {
        return Err(Error::usage("kernels bench times --source FILE.cu: leave --kernel out"));
    }
    if matches!(args.model.device, Device::Cuda(_)) {
        check_gpu()?;
    }
    if emulated.is_some() {
        note(
            "an emulated GPU shows that kernels run and what rows there are: its times say nothing",
        );
    }
    Ok(())
}

/// All that rows come from.
struct Session {
    watchdog: Watchdog,
    table: Table,
    bed: OpBench,
    candidates: Vec<Candidate>,
    ceilings: Ceilings,
    nvml: Option<Nvml>,
    subject: Row,
}

impl Session {
    /// A row for each group.
    fn run(&mut self, groups: &[Group], repetitions: usize, interrupt: &AtomicBool) -> Result<()> {
        let bar = progress(groups.len() as u64, "kernels");
        let candidates = self.candidates.clone();
        for group in groups {
            bar.set_message(group.kernel);
            let (times, conditions) = self.measure(group, &candidates, repetitions, interrupt)?;
            let row = self.row(group, (&candidates, &times), &conditions);
            bar.suspend(|| self.print(&row))?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// A row for each choice that a group has, and the best of them.
    fn tune(
        &mut self,
        groups: &[Group],
        repetitions: usize,
        interrupt: &AtomicBool,
    ) -> Result<Vec<MeasuredParts>> {
        let bar = progress(groups.len() as u64, "kernels");
        let mut found = Vec::new();
        for group in groups {
            bar.set_message(group.kernel);
            if let Some(tuning) = GroupTuning::of(&self.bed, group) {
                let all = tuning.candidates();
                let (times, conditions) = self.measure(group, &all, repetitions, interrupt)?;
                for (own, time) in all.iter().zip(&times) {
                    let pair = ([own.clone(), all[0].clone()], [time.clone(), times[0].clone()]);
                    let row = self.row(group, (&pair.0, &pair.1), &conditions);
                    bar.suspend(|| self.print(&row))?;
                }
                found.push(tuning.best(group, &all, &times));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        match found.is_empty() {
            true => Err(Error::usage("--tune: none of these kernels has a choice on this device")),
            false => Ok(found),
        }
    }

    fn print(&mut self, row: &Row) -> Result<()> {
        self.watchdog.rest();
        print(&self.table.row(row))?;
        self.watchdog.ends_with(self.table.end());
        Ok(())
    }

    /// Times, and the state of the machine meanwhile.
    fn measure(
        &mut self,
        group: &Group,
        candidates: &[Candidate],
        repetitions: usize,
        interrupt: &AtomicBool,
    ) -> Result<(Vec<Times>, Conditions)> {
        let Self { watchdog, bed, nvml, .. } = self;
        let begins = || match interrupt.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => {
                watchdog.watch(group.kernel);
                Ok(())
            }
        };
        let measured = || measure(bed, group, candidates, repetitions, &begins);
        let (times, conditions) = watched(nvml.as_ref(), measured);
        Ok((times?, conditions))
    }

    fn row(
        &self,
        group: &Group,
        measured: (&[Candidate], &[Times]),
        conditions: &Conditions,
    ) -> Row {
        let Self { bed, ceilings, subject, .. } = self;
        kernel_row(bed, group, measured, ceilings, conditions, subject)
    }
}

/// What is timed, and what it is compared with.
fn candidates(args: &KernelBenchArgs) -> Result<Vec<Candidate>> {
    let candidate = |path: &Path| match path.to_str() {
        Some("built-in") => Ok(Candidate::BuiltIn),
        Some("cublaslt") => check_cublas().map(|()| Candidate::CublasLt),
        _ => Replacement::read(path).map(Candidate::Source),
    };
    let own = args.source.as_deref().map_or(Ok(Candidate::BuiltIn), candidate)?;
    let Some(against) = args.against.as_deref() else { return Ok(vec![own]) };
    check_turns(&defaults()?.cuda.unchecked())?;
    let against = candidate(against)?;
    match (own.source(), against.source()) {
        (Some(own), Some(against)) if own.kernel.name != against.kernel.name => {
            Err(Error::usage(format!(
                "{} replaces {}, and {} replaces {}: nothing to compare",
                own.path(),
                own.kernel.name,
                against.path(),
                against.kernel.name
            )))
        }
        _ => Ok(vec![own, against]),
    }
}

/// The kernels to time; none: all.
fn wanted(args: &KernelBenchArgs, candidates: &[Candidate]) -> Result<Vec<&'static Kernel>> {
    let named = &args.names;
    let Some(source) = candidates.iter().find_map(Candidate::source) else {
        return Ok(named.clone());
    };
    match named.iter().find(|kernel| kernel.name != source.kernel.name) {
        None => Ok(vec![source.kernel]),
        Some(other) => Err(Error::usage(format!(
            "{} replaces {}: {} cannot be timed with it",
            source.path(),
            source.kernel.name,
            other.name
        ))),
    }
}

/// The model, with room for the steps asked for. Of a synthetic one only as many layers as are interleaved,
/// unless it is said how many.
fn fitted(args: &KernelBenchArgs, phases: &[BenchStep]) -> Result<Model> {
    let prefill_chunk = Some(args.n_prompt.max(1));
    let options = Options { prefill_chunk, text: false, ..options(&args.model)? };
    let mut model = open(&args.model, options)?;
    if let (ModelSource::Synthetic(whole), None) = (&model.source, args.model.synthetic.layers) {
        let Dims { width, kv_heads, head_dim, layers, .. } = model.dims;
        // The smallest matrices of a layer are those of keys and values.
        let smallest = 2 * kv_heads * head_dim * model.checkpoint.encoding().row_bytes(width);
        let enough = (ROTATION * cache_bytes(&model.hardware[0])?).div_ceil(smallest);
        let cut = ModelSource::Synthetic(whole.cut(enough.clamp(1, layers))?);
        model = Model::of(cut, model.options)?;
    }
    let context = phases.iter().map(|phase| phase.end()).max().unwrap_or(1);
    let context = context.max(model.options.context.unwrap_or(0));
    model.config.max_context = model.config.max_context.max(context);
    model.options.context = Some(context);
    model.qualify(&observer())?;
    Ok(model)
}

/// The steps whose kernels are timed.
fn phases(args: &KernelBenchArgs) -> Vec<BenchStep> {
    let decode = BenchStep::Decode { depth: args.n_depth };
    let prefill = (args.n_prompt > 0).then_some(BenchStep::Prefill { tokens: args.n_prompt });
    [decode].into_iter().chain(prefill).collect()
}

fn is_against_cublas(candidates: &[Candidate]) -> bool {
    matches!(candidates, [_, Candidate::CublasLt])
}

/// That the steps of this model have the kernels to time, and the library what they are compared with.
///
/// # Errors
/// A kernel that no step has.
fn check_wanted(
    model: &Model,
    phases: &[BenchStep],
    wanted: &[&Kernel],
    candidates: &[Candidate],
) -> Result<()> {
    let sizes = model.plan()?.sizes;
    let found = kernels_of(&model.config, &model.checkpoint, sizes, phases)?;
    if let Some(absent) = wanted.iter().find(|kernel| !found.contains_key(kernel.name)) {
        let names: Vec<_> = found.into_keys().collect();
        return Err(Error::usage(format!(
            "no step of this model has kernel {}: there are {}",
            absent.name,
            names.join(", ")
        )));
    }
    let products = |kernel: &&Kernel| found[kernel.name];
    if is_against_cublas(candidates) && !wanted.is_empty() && !wanted.iter().any(products) {
        let names: Vec<_> = wanted.iter().map(|kernel| kernel.name).collect();
        let what = "cuBLASLt has no such operation: leave the name out to time all that it has";
        return Err(Error::usage(format!("{}: {what}", names.join(", "))));
    }
    Ok(())
}

/// The model in memory, for its ops to be timed.
fn loaded(model: &Model, depth: usize) -> Result<OpBench> {
    let plan = model.ready(&observer())?;
    let (checkpoint, hardware) = (model.checkpoint.clone(), model.hardware[0].clone());
    let missed = (depth, cache_bytes(&hardware)?);
    let bar = progress(plan.weight_bytes as u64, "weights");
    let on_progress = |bytes| {
        bar.inc(bytes);
        Ok(())
    };
    let bed = OpBench::new(&model.config, checkpoint, hardware, plan.sizes, missed, &on_progress);
    bar.finish_and_clear();
    bed
}

/// The size of the last cache before the memory.
fn cache_bytes(hardware: &Hardware) -> Result<usize> {
    let Hardware::Gpu(gpu) = hardware else {
        let text = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
        let kibibytes = text.ok().and_then(|text| text.trim().strip_suffix('K')?.parse().ok());
        return Ok(kibibytes.map_or(USUAL_CPU_CACHE, |kibibytes: usize| kibibytes << 10));
    };
    gpu.cache_bytes()
}
