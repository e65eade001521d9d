//! One op at the sizes of a model's decode step, timed from memory rather than from caches:
//! `cargo run --release --example bench_kernel [OP] [MODEL]`. On the CPU that is the op's definition, on
//! a GPU its kernel.

use chaski::engine::{Model, Options};
use chaski::error::{Error, Result};
use chaski::lab::{BenchStep, Candidate, OpBench, measure};

/// More than any cache between memory and what computes holds.
const CACHE_BYTES: usize = 64 << 20;
const REPETITIONS: usize = 5;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let op = arguments.next().unwrap_or_else(|| "norm_gate_up".to_owned());
    let name = arguments.next().unwrap_or_else(|| "synthetic:tiny".to_owned());
    let options = Options { context: Some(256), text: false, ..Options::default() };
    let model = Model::open(&name, options)?;
    let plan = model.plan()?;
    let (checkpoint, hardware) = (model.checkpoint.clone(), model.hardware[0].clone());
    let missed = (0, CACHE_BYTES);
    let mut bed =
        OpBench::new(&model.config, checkpoint, hardware, plan.sizes, missed, &|_| Ok(()))?;
    let groups = bed.groups(BenchStep::Decode { depth: 0 });
    let group = groups.iter().find(|group| group.kernel == op);
    let group = group.ok_or_else(|| Error::failed(format!("no op {op} in a decode step")))?;
    let runs = measure(&mut bed, group, &[Candidate::BuiltIn], REPETITIONS, &|| Ok(()))?;
    let fastest = runs[0].iter().copied().fold(f64::INFINITY, f64::min);
    let gb_per_s = group.bytes() as f64 / fastest / 1e9;
    println!("{:.2} us, {gb_per_s:.1} GB/s: {op} {}", 1e6 * fastest, group.shape);
    Ok(())
}
