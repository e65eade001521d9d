//! Every op of the two programs for one token, at the shapes of the model, against what it must
//! move.
//!
//! Ops of one kind and size run through all layers, as in the model, so that their weights come
//! from memory and not from a cache.

mod support;

use std::collections::BTreeMap;

use chaski::checkpoint::{Checkpoint, Dtype};
use chaski::config::{Config, Dims};
use chaski::device::Cpu;
use chaski::memory::Layout;
use chaski::model::{self, Llama, Logits, Sizes, State, Weights};
use chaski::op::Program;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{measure, prompt, source};

/// Where the token stands: attention reads this many tokens of the cache.
const POSITION: usize = 1023;

fn ops(criterion: &mut Criterion) {
    let source = source();
    let config = Config::load(&source).unwrap();
    let dims = Dims::new(&config, 1).unwrap();
    let mut checkpoint = Checkpoint::open(&source).unwrap();
    checkpoint.make(&|_| ()).unwrap();
    let weights = Weights::locate(&checkpoint, &dims).unwrap();
    let mut layout = Layout::default();
    let sizes = Sizes {
        context: POSITION + 1,
        chunk: 1,
        logits: 1,
        cache: Dtype::F32,
        activations: Dtype::F32,
        attention_blocks: 1,
    };
    let state = State::plan(&dims, sizes, &mut layout);
    let mut cpu = Cpu::new(checkpoint, &layout).unwrap();
    cpu.write(state.ids, &prompt(1, dims.vocab));
    cpu.write(state.cursor, &[POSITION as u32]);
    cpu.write(state.frequencies, &config.rope.frequencies(config.head_dim));
    let model = Llama { dims, norm_eps: config.norm_eps, weights, state };

    let programs = [
        ("decode", model::decode(&model)),
        ("prefill of one token", model::prefill(&model, 1, Logits::Last)),
    ];
    for (name, program) in programs {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        for (id, program) in by_kind(program) {
            let cost = program.cost(POSITION);
            let throughput = match cost.weight_bytes + cost.cache_bytes {
                0 => Throughput::Elements(cost.flops),
                bytes => Throughput::Bytes(bytes),
            };
            let id = BenchmarkId::from_parameter(id);
            measure(&mut group, id, throughput, || cpu.run(&program).unwrap());
        }
    }
}

/// A program split by the name and the size of its ops.
fn by_kind(program: Program) -> BTreeMap<String, Program> {
    let mut kinds: BTreeMap<String, Program> = BTreeMap::new();
    for op in program.ops {
        let cost = op.cost(POSITION);
        let megabytes = (cost.weight_bytes + cost.cache_bytes) as f64 / 1e6;
        let kind = format!("{} {megabytes:.1} MB", op.name());
        kinds.entry(kind).or_default().ops.push(op);
    }
    kinds
}

criterion_group!(benches, ops);
criterion_main!(benches);
