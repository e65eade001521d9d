//! Tokens of several sequences in one decode step, over one cache: each as if it were alone.

use std::path::Path;

use chaski::checkpoint::Checkpoint;
use chaski::config::{Config, Dims};
use chaski::encoding::Float;
use chaski::executor::{Blueprint, Executor, Hardware};
use chaski::model::{Llama, Logits, Sizes, Weights, decode, prefill};
use chaski::op::Program;

use crate::golden;

const CONTEXT: usize = 24;

/// A model on the CPU.
struct Bed {
    model: Llama,
    executor: Executor,
}

impl Bed {
    fn new(case: &Path, cache: Float, [sequences, rows]: [usize; 2]) -> Self {
        let source = golden::source(case);
        let (config, checkpoint) =
            (Config::load(&source).unwrap(), Checkpoint::open(&source).unwrap());
        let dims = Dims::new(&config, 1).unwrap();
        let weights = Weights::locate(&checkpoint, &dims).unwrap();
        let matrices: Vec<_> = weights.matrices().collect();
        let sizes = Sizes {
            context: CONTEXT,
            sequences,
            rows,
            chunk: CONTEXT,
            logits: 1,
            cache,
            activations: Float::F32,
            decode_as_prefill: false,
            attention_blocks: 1,
            threads: 2,
        };
        let (model, layout) = Llama::lay_out(&config, dims, weights, sizes);
        let initial = model.initial_state(&config, &checkpoint).unwrap();
        let cpu = Hardware::cpu().unwrap();
        let blueprint = Blueprint::new(checkpoint, &matrices, &layout);
        let mut executor = Executor::new(&cpu, blueprint).unwrap();
        for (slot, bytes) in initial {
            executor.write(slot, &bytes).unwrap();
        }
        Self { model, executor }
    }

    /// Runs `program` on these tokens and returns the logits of each row.
    fn run(&mut self, program: &Program, ids: &[u32], placed: &[(u32, u32)]) -> Vec<Vec<f32>> {
        let (positions, sequences): (Vec<u32>, Vec<u32>) = placed.iter().copied().unzip();
        let state = &self.model.state;
        self.executor.write(state.ids, ids).unwrap();
        self.executor.write(state.placement.positions, &positions).unwrap();
        self.executor.write(state.placement.sequences, &sequences).unwrap();
        self.executor.run(program).unwrap();
        let vocab = self.model.dims.vocab;
        let logits = self.executor.read(state.logits.part(0, placed.len() * vocab)).unwrap();
        logits.chunks(vocab).map(<[f32]>::to_vec).collect()
    }
}

#[test]
fn rows_of_several_sequences_are_as_if_each_were_alone() {
    let prompts: [&[u32]; 3] = [&[5, 6, 7, 8, 9, 10, 11], &[3], &[60, 50, 40, 30]];
    let next: [[u32; 2]; 3] = [[12, 13], [1, 2], [20, 10]];
    for name in ["gqa4-hd64-bf16-tied", "gqa8-hd64-f16", "mha7-hd32-bf16"] {
        let case = golden::folder().join(name);
        for cache in [Float::F32, Float::F16] {
            let alone = |i: usize| {
                let mut bed = Bed::new(&case, cache, [1, 1]);
                let (prompt, end) = (prompts[i], prompts[i].len() as u32);
                let program = prefill(&bed.model, prompt.len(), Logits::Last);
                bed.run(&program, prompt, &[(0, 0)]);
                let step = decode(&bed.model, 1);
                [0, 1].map(|k| bed.run(&step, &[next[i][k as usize]], &[(end + k, 0)]).remove(0))
            };
            let alone = [0, 1, 2].map(alone);
            let mut bed = Bed::new(&case, cache, [3, 3]);
            for (sequence, prompt) in prompts.iter().enumerate() {
                let program = prefill(&bed.model, prompt.len(), Logits::Last);
                bed.run(&program, prompt, &[(0, sequence as u32)]);
            }
            // All three in an order of their own, then two of them.
            for (k, order) in [&[2usize, 0, 1][..], &[1, 2]].into_iter().enumerate() {
                let ids: Vec<u32> = order.iter().map(|i| next[*i][k]).collect();
                let placed = order.iter().map(|i| ((prompts[*i].len() + k) as u32, *i as u32));
                let placed: Vec<_> = placed.collect();
                let step = decode(&bed.model, order.len());
                for (i, logits) in order.iter().zip(bed.run(&step, &ids, &placed)) {
                    assert!(logits == alone[*i][k], "{name}, {cache:?}: sequence {i}, step {k}");
                }
            }
        }
    }
}
