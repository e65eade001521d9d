//! What must be checked before a GPU runs a model, or any.

use super::{Check, Small};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Dims};
use crate::encoding::Float;
use crate::error::Result;
use crate::executor::cuda::{Gpu, LaunchOptions};
use crate::kernel::{KERNELS, Kernel, KernelSet, Synthesize};
use crate::model::{self, Llama, Logits, Sizes, Weights};
use crate::op::{Exchange, Op, Program, Target};

/// Tokens of the prefill whose kernels are asked for; they are the same for any number.
const TOKENS: usize = 2;

/// The checks for a rank of this model under `options`: each function that its programs launch, or would
/// if the GPU's special kernels were wrong, then how they are launched, then what is the fastest.
///
/// # Errors
/// Tensors that do not suit the config.
pub fn of_model(
    gpu: &Gpu,
    options: LaunchOptions,
    config: &Config,
    dims: &Dims,
    checkpoint: &Checkpoint,
) -> Result<Vec<Check>> {
    let sizes = Sizes {
        context: 2 * TOKENS,
        sequences: 1,
        rows: 1,
        chunk: TOKENS,
        logits: 1,
        cache: Float::F16,
        activations: checkpoint.encoding().activation(),
        decode_as_prefill: false,
        attention_blocks: gpu.attention_blocks(),
        threads: 0,
    };
    let (model, _) = Llama::lay_out(config, *dims, Weights::locate(checkpoint, dims)?, sizes);
    let programs = [model::prefill(&model, TOKENS, Logits::Last), model::step(&model)];
    let mut exports: Vec<&'static str> = Vec::new();
    if checkpoint.is_synthetic() {
        let makes = Synthesize::KERNEL.export(checkpoint.encoding(), 0);
        exports.extend(makes.map(|export| export.name));
    }
    let reaches_peers = dims.share.parts > 1;
    for kernels in [KernelSet::PORTABLE, options.kernels] {
        let target = Target { reaches_peers, kernels, ..Target::portable(gpu.multiprocessors) };
        programs.iter().for_each(|program| launched(program, &target, &mut exports));
    }
    let mut checks: Vec<Check> = exports.into_iter().map(|e| Check::Kernel(e.to_owned())).collect();
    add_launches(&mut checks, Small::of(checkpoint.encoding(), dims.head_dim), options);
    Ok(checks)
}

/// The functions that a program launches, those that are new at the end.
fn launched(program: &Program, target: &Target, exports: &mut Vec<&'static str>) {
    let is_launched = |op: &&dyn Op| matches!(op.exchange(target), None | Some(Exchange::Sum(_)));
    for op in program.ops.iter().map(|op| &**op).filter(is_launched) {
        let name = op.launch(target).export.name;
        if !exports.contains(&name) {
            exports.push(name);
        }
    }
}

/// The checks for any model, and of the kernels that measure.
pub fn all(gpu: &Gpu, options: LaunchOptions) -> Vec<Check> {
    let suits = |kernel: &&Kernel| kernel.suits(gpu.capability) && options.kernels.contains(kernel);
    let exports = KERNELS.iter().filter(suits).flat_map(|kernel| kernel.exports);
    let mut checks: Vec<_> = exports.map(|export| Check::Kernel(export.name.to_owned())).collect();
    for (f16, head_dim) in [(false, 64), (false, 128), (true, 64), (true, 128)] {
        add_launches(&mut checks, Small { f16, head_dim }, options);
    }
    checks
}

fn add_launches(checks: &mut Vec<Check>, small: Small, options: LaunchOptions) {
    if options.graphs && !options.synchronous {
        checks.push(Check::Graphs(small));
    }
    if options.programmatic {
        checks.push(Check::Programmatic(small));
    }
    checks.push(Check::Tuning(small));
}
