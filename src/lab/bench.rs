//! How long a kernel takes at the sizes of a model, alone or in turns with another in its place.

use std::time::Instant;

use serde_json::{Value, json};

use super::cut::Cut;
use super::op_bench::{Group, OpBench, RunResult};
use crate::bench::{Ceilings, Column, Conditions, Row, number, percent, percentile, text};
use crate::error::{Error, Result};
use crate::executor::cuda::LaunchOptions;
use crate::executor::{Captured, Hardware};
use crate::kernel::{Kernel, Replacement};
use crate::op::Op;

/// A run lasts at least this long, in seconds, so that starting it is no part worth mentioning...
pub(super) const RUN_TIME: f64 = 10e-3;
/// ...of this many launches at most...
const MOST_LAUNCHES: usize = 4096;
/// ...and after this long runs enough have been timed, if they are [`FEWEST`].
pub(super) const MOST_TIME: f64 = 3.0;
pub(super) const FEWEST: usize = 3;

/// What computes a group of ops.
#[derive(Debug, Clone)]
pub enum Candidate {
    /// The kernel that is part of this program; on the CPU, the op's reference.
    BuiltIn,
    /// A kernel in its place.
    Source(Replacement),
    /// NVIDIA's library, for what is a product.
    CublasLt,
    /// The built-in kernel, its rows cut into this number of parts.
    Parts(u32),
}

impl Candidate {
    /// As rows have it.
    pub fn name(&self) -> String {
        match self {
            Self::BuiltIn => "built-in".to_owned(),
            Self::Source(source) => source.path(),
            Self::CublasLt => "cuBLASLt".to_owned(),
            Self::Parts(1) => "whole rows".to_owned(),
            Self::Parts(parts) => format!("{parts} parts"),
        }
    }

    /// The source, if it is one that takes the kernel's place.
    pub fn source(&self) -> Option<&Replacement> {
        match self {
            Self::Source(source) => Some(source),
            _ => None,
        }
    }

    /// What it does `rounds` times for all of `group` that take turns.
    fn recording(&self, bed: &mut OpBench, group: &Group, rounds: usize) -> Result<Captured> {
        if let Self::CublasLt = self {
            let products = bed.products(group, rounds);
            return bed.device_mut().record_products(&products);
        }
        let mut program = bed.program(group, rounds);
        if let Self::Parts(parts) = self {
            let cut = |op| Box::new(Cut { op, parts: *parts }) as Box<dyn Op>;
            program.ops = program.ops.into_iter().map(cut).collect();
        }
        Ok(Captured::new(program))
    }

    /// Has what is recorded from now on on this hardware made of it.
    fn take_place(&self, kernel: &str, hardware: &Hardware) {
        let Hardware::Gpu(gpu) = hardware else { return };
        match self {
            Self::Source(source) => gpu.replace_kernel(source.clone()),
            _ => {
                let kernel = Kernel::find(kernel).expect("ops are named as their kernels");
                gpu.restore_kernel(kernel);
            }
        }
    }
}

/// Seconds a launch takes, each the mean over a run; of candidates the run of the same number came
/// right before or after.
pub type Times = Vec<f64>;

/// Times the candidates, in turns. `begins` is told before every run.
///
/// # Errors
/// A kernel that cannot be loaded or fails; what `begins` returns.
pub fn measure(
    bed: &mut OpBench,
    group: &Group,
    candidates: &[Candidate],
    repetitions: usize,
    begins: &dyn Fn() -> Result<()>,
) -> Result<Vec<Times>> {
    let mut rounds = None;
    let (mut runs, mut all_once) = (Vec::new(), Vec::new());
    for candidate in candidates {
        candidate.take_place(group.kernel, bed.hardware());
        let time = |bed: &mut OpBench, run: &mut Captured| {
            begins()?;
            bed.time(group.phase, run)
        };
        let mut once = candidate.recording(bed, group, 1)?;
        // The first loads the kernel and captures the graph.
        time(bed, &mut once)?;
        let warm = time(bed, &mut once)?;
        let enough = (RUN_TIME / warm.max(1e-9)).ceil() as usize;
        let enough = *rounds.get_or_insert(enough.clamp(1, MOST_LAUNCHES / group.instances));
        let mut run = candidate.recording(bed, group, enough)?;
        time(bed, &mut run)?;
        runs.push(run);
        all_once.push(once);
    }
    let launches = (rounds.unwrap_or(1) * group.instances) as f64;
    let mut times = vec![Vec::new(); runs.len()];
    let start = Instant::now();
    for repetition in 0..repetitions {
        if repetition >= FEWEST && start.elapsed().as_secs_f64() > MOST_TIME {
            break;
        }
        for (run, times) in runs.iter_mut().zip(&mut times) {
            begins()?;
            times.push(bed.time(group.phase, run)? / launches);
        }
    }
    judge(bed, group, candidates.iter().zip(&mut all_once), begins)?;
    Ok(times)
}

/// That sources compute what the built-in kernel does, now that they have been timed, on numbers that they
/// have not met: by the same loaded code, which may have counted its launches.
fn judge<'a>(
    bed: &mut OpBench,
    group: &Group,
    candidates: impl Iterator<Item = (&'a Candidate, &'a mut Captured)>,
    begins: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let sources = candidates.filter_map(|(candidate, once)| Some((candidate.source()?, once)));
    let mut found = Vec::new();
    for (source, once) in sources {
        begins()?;
        found.push((source, RunResult::by(once, bed, group)?));
    }
    if found.is_empty() {
        return Ok(());
    }
    Candidate::BuiltIn.take_place(group.kernel, bed.hardware());
    begins()?;
    let right = RunResult::by(&mut Candidate::BuiltIn.recording(bed, group, 1)?, bed, group)?;
    found.into_iter().try_for_each(|(source, left)| left.check(&right, source))
}

/// That two kernels can take turns: what is not in a graph is looked up anew for each launch.
///
/// # Errors
/// When graphs are turned off.
pub fn check_turns(options: &LaunchOptions) -> Result<()> {
    match options.graphs && !options.synchronous {
        true => Ok(()),
        false => Err(Error::usage(
            "`against` compares CUDA graphs: leave CHASKI_GRAPHS=off and CHASKI_SYNC=on out",
        )),
    }
}

/// The row of a group; `times` are the candidates'.
pub fn kernel_row(
    bed: &OpBench,
    group: &Group,
    (candidates, times): (&[Candidate], &[Times]),
    ceilings: &Ceilings,
    conditions: &Conditions,
    subject: &Row,
) -> Row {
    let at = |times: &[f64], part| percentile(times, part);
    let us = |seconds: Option<f64>| seconds.map(|seconds| 1e6 * seconds);
    let [first, others @ ..] = times else { panic!("a row without times") };
    let time = at(first, 0.5).unwrap_or(f64::NAN);
    let ratios: Option<Vec<f64>> = others
        .first()
        .map(|others| first.iter().zip(others).map(|(own, against)| against / own).collect());
    let ratio = |part| ratios.as_ref().and_then(|ratios| percentile(ratios, part));
    let (bytes, flops) = (group.bytes() as f64, group.cost.flops as f64);
    let floor = (bytes / ceilings.read_bytes_per_s).max(flops / ceilings.flops_per_s);
    let throttled = conditions.throttle_reasons.as_ref().map(|reasons| !reasons.is_empty());
    let Value::Object(mut row) = json!({
        "kernel": group.kernel,
        "phase": group.phase.name(),
        "shape": group.shape,
        "source": candidates[0].name(),
        "count": group.count,
        "instances": group.instances,
        "samples": first.len(),
        "time_us": us(Some(time)),
        "p10_us": us(at(first, 0.1)),
        "p90_us": us(at(first, 0.9)),
        "bytes": group.bytes(),
        "flops": group.cost.flops,
        "gb_per_s": bytes / time / 1e9,
        "bandwidth_fraction": bytes / time / ceilings.read_bytes_per_s,
        "tflops": flops / time / 1e12,
        "flops_fraction": flops / time / ceilings.flops_per_s,
        "floor_us": 1e6 * floor,
        "ceiling_fraction": floor / time,
        "rotation_bytes": group.rotation_bytes(),
        "cache_bytes": bed.cache_bytes,
        "cold": group.rotation_bytes() > bed.cache_bytes as u64,
        "against": candidates.get(1).map_or(String::new(), Candidate::name),
        "against_us": us(others.first().and_then(|times| at(times, 0.5))),
        "ratio": ratio(0.5),
        "ratio_p10": ratio(0.1),
        "ratio_p90": ratio(0.9),
        "power_w": conditions.power_w,
        "sm_clock_mhz": conditions.sm_clock_mhz,
        "memory_clock_mhz": conditions.memory_clock_mhz,
        "temperature_c": conditions.temperature_c,
        "throttle_reasons": conditions.throttle_reasons,
        "throttled": throttled,
        "read_gb_per_s": ceilings.read_bytes_per_s / 1e9,
        "peak_tflops": ceilings.flops_per_s / 1e12,
    }) else {
        unreachable!("json! of braces is an object");
    };
    row.extend(subject.clone());
    row
}

/// What a person wants to see of a kernel's row.
pub const KERNEL_COLUMNS: &[Column] = &[
    ("kernel", |row| format!("{:<14}", text(row, "kernel"))),
    ("phase", |row| text(row, "phase")),
    ("shape", |row| format!("{:<49}", text(row, "shape"))),
    ("us", |row| number(row, "time_us", 2)),
    ("p10-p90", |row| {
        format!("{:>15}", format!("{}-{}", number(row, "p10_us", 2), number(row, "p90_us", 2)))
    }),
    ("MB", |row| row["bytes"].as_f64().map_or(String::new(), |b| format!("{:.2}", b / 1e6))),
    ("GB/s", |row| number(row, "gb_per_s", 1)),
    ("TFLOP/s", |row| number(row, "tflops", 3)),
    ("of ceiling", |row| percent(row, "ceiling_fraction")),
    ("against", |row| match row["ratio"].is_number() {
        true => format!(
            "{}x ({}-{}) {}",
            number(row, "ratio", 3),
            number(row, "ratio_p10", 3),
            number(row, "ratio_p90", 3),
            text(row, "against")
        ),
        false => "-".to_owned(),
    }),
    ("notes", |row| {
        let reasons = row["throttle_reasons"].as_array().into_iter().flatten();
        let reasons = reasons.filter_map(|reason| reason.as_str()).map(str::to_owned);
        let cold = row["cold"] == json!(true) || row["bytes"] == json!(0);
        let warm = (!cold).then(|| "in cache".to_owned());
        let notes: Vec<String> = reasons.map(|r| format!("THROTTLED: {r}")).chain(warm).collect();
        notes.join(", ")
    }),
    ("device", |row| text(row, "device")),
];
