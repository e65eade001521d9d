//! What tokens of the real models cost in launches on an H100. Nothing runs: programs are data.

use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::encoding::Float;
use chaski::kernel::{Kernel, Launch};
use chaski::lab::products;
use chaski::model::{Llama, Logits, Sizes, Weights, prefill, step};
use chaski::op::{Op, Target};
use chaski::source::Source;

const H100: Target = Target::portable(132);
/// What a multiprocessor of it has for blocks.
const REGISTERS: u32 = 65536;
const SHARED_BYTES: u32 = 227 << 10;

fn llama(model: &str) -> Llama {
    let source = Source::find(model).unwrap();
    let config = Config::load(&source).unwrap();
    let dims = Dims::new(&config, 1).unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let sizes = Sizes {
        context: 8192,
        sequences: 1,
        rows: 1,
        chunk: 512,
        logits: 1,
        cache: Float::F16,
        activations: checkpoint.encoding().activation(),
        decode_as_prefill: false,
        attention_blocks: H100.multiprocessors as usize,
        threads: 0,
    };
    let weights = Weights::locate(&checkpoint, &dims).unwrap();
    Llama::lay_out(&config, dims, weights, sizes).0
}

/// Every op from one token's logits to the next one's, and the number of layers.
fn token(model: &str) -> (Vec<Box<dyn Op>>, usize) {
    let model = llama(model);
    (step(&model).ops, model.dims.layers)
}

const MODELS: [&str; 4] = [
    "synthetic:llama3.2-1b",
    "synthetic:llama3.2-3b",
    "synthetic:llama3-8b",
    "synthetic:llama3-70b",
];

#[test]
fn a_token_is_five_kernels_a_layer_and_three() {
    for model in MODELS {
        let (ops, layers) = token(model);
        assert_eq!(ops.len(), 5 * layers + 3, "{model}");
    }
}

#[test]
fn a_prompt_is_eight_kernels_a_layer_and_three() {
    for model in MODELS {
        let model = llama(model);
        let ops = prefill(&model, 512, Logits::Last).ops;
        assert_eq!(ops.len(), 8 * model.dims.layers + 3);
        let products =
            ops.iter().filter(|op| op.name() == "matmul").map(|op| products(&**op).len());
        assert_eq!(products.max(), Some(3), "q, k and v in one launch");
    }
}

/// Blocks that wait for each other, and those that leave room for the next kernel's, are at most one a
/// multiprocessor; and of 132 few are idle.
#[test]
fn decoding_kernels_have_a_block_a_multiprocessor() {
    for model in MODELS {
        for op in token(model).0 {
            let Launch { grid: [x, y, z], .. } = op.launch(&H100);
            let blocks = x * y * z;
            let least = if op.name() == "embed" { 1 } else { 124 };
            assert!((least..=132).contains(&blocks), "{model}: {}: {blocks} blocks", op.name());
        }
    }
}

/// A block of one kernel and a block of the next fit a multiprocessor together, so that the next can
/// ask for its weights before this one has ended.
#[test]
fn each_kernel_finds_room_beside_the_one_before() {
    for model in MODELS {
        let (ops, _) = token(model);
        let needs: Vec<_> = ops.iter().map(|op| (op.name(), block_needs(op.as_ref()))).collect();
        for pair in needs.windows(2) {
            let [(before, Some(b)), (after, Some(a))] = pair else { return };
            let fits = b.0 + a.0 <= REGISTERS && b.1 + a.1 <= SHARED_BYTES;
            assert!(fits, "{model}: {before} {b:?} and {after} {a:?}");
        }
    }
}

/// The first layer's weights are in flight while the token is chosen: there is a kernel between, which
/// has few blocks.
#[test]
fn the_first_layer_finds_room_beside_sampling() {
    for model in MODELS {
        let (ops, _) = token(model);
        assert_eq!([0, 1, 2].map(|i| ops[i].name()), ["sample", "embed", "norm_qkv"]);
        let needs = [0, 2].map(|i| block_needs(&*ops[i]));
        let [Some(sample), Some(layer)] = needs else { return };
        let fits = sample.0 + layer.0 <= REGISTERS && sample.1 + layer.1 <= SHARED_BYTES;
        assert!(fits, "{model}: {sample:?} and {layer:?}");
    }
}

/// Registers and shared memory of a block; none where the build had no NVRTC.
fn block_needs(op: &dyn Op) -> Option<(u32, u32)> {
    let launch = op.launch(&H100);
    let build = Kernel::find(op.name())?.build(9, 0)?;
    let needs = build.resources.iter().find(|needs| needs.export == launch.export.name)?;
    // A warp gets registers in pieces of 256; a block's shared memory takes 1 KiB more.
    let registers = needs.registers.next_multiple_of(8) * launch.block;
    Some((registers, needs.shared_bytes + launch.shared_bytes + 1024))
}
