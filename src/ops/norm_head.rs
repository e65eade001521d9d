use super::gemv::Gemv;
use super::matmul::matmul_cost;
use super::rms_norm::{normed, normed_scratch};
use super::{launch, size};
use crate::case::{Case, F32_NMSE, HALF, NUMBERS, Setup};
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::{Rows, matmul, set};

/// Each token's logits: the chain `rms_norm`, `matmul`.
pub struct NormHead {
    /// `[R, C]`
    pub x: Slot<f32>,
    /// `[C]`
    pub norm: Slot<f32>,
    pub eps: f32,
    /// The LM head. `[V, C]`
    pub head: Weight,
    /// Out. `[R, V]`
    pub logits: Slot<f32>,
}

impl Op for NormHead {
    fn name(&self) -> &'static str {
        "norm_head"
    }

    fn cost(&self, _position: usize) -> Cost {
        let norm = Cost { weight_bytes: self.norm.bytes() as u64, ..Cost::default() };
        norm + matmul_cost(self.head, self.x.len() / self.norm.len())
    }

    fn scratch(&self, threads: usize) -> usize {
        normed_scratch(self.x, self.norm, threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let weights = memory.weights;
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, norm, logits) = region.slots((self.x, self.norm, self.logits));
        let inputs = normed(x, norm, self.eps, &mut scratch);
        let head = Rows::of(weights, self.head);
        matmul([([head], logits)], inputs, &mut scratch, &set);
    }

    fn operands(&self) -> Operands {
        let (input, norm) = (vec![1, self.norm.len()], Some(self.norm));
        Operands { input, matrices: vec![self.head], norm }
    }

    fn launch(&self, target: &Target) -> Launch {
        let width = self.norm.len();
        assert_eq!(self.x.len(), width, "one token");
        let gemv = Gemv::of_rows(self.head.rows, width);
        let arguments = kernel::NormHead {
            x: self.x,
            norm: self.norm,
            head: self.head,
            logits: self.logits,
            width: size(width),
            vocab: size(self.head.rows),
            parts: gemv.parts(self.name(), target),
            flow: target.tuning.flow(),
            eps: self.eps,
        }
        .arguments();
        launch(
            kernel::NormHead::KERNEL,
            (self.head.encoding, 0),
            Gemv::grid(target),
            gemv.normed_shared_bytes(),
            arguments,
        )
    }
}

impl NormHead {
    /// Vocabularies of any size, and those of Llama 3 (but for a part of its rows).
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 8),
            (3, 40),
            (129, 264),
            (301, 1032),
            (33, 2048),
            (7, 4096),
            (3, 8192),
            (12_827, 2048),
        ];
        let mut cases = Vec::new();
        for (vocab, width) in sizes {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                let (x, eps) = numbers.to_norm();
                let op = Self {
                    x: setup.read("x", &[1, width], x),
                    norm: setup.read("norm", &[width], numbers.upto(3)),
                    eps,
                    head: setup.weight(dtype, vocab, width, numbers.upto(4)),
                    logits: setup.written("logits", &[1, vocab], numbers.judge(F32_NMSE)),
                };
                let name = format!("{} {vocab} tokens, width {width}", dtype.name());
                cases.push(setup.case(name, op));
            }
        }
        cases
    }
}
