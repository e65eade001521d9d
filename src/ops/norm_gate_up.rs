use super::gate_up_swiglu::swiglu;
use super::gemv::Gemv;
use super::matmul::matmul_cost;
use super::rms_norm::{normed, normed_scratch};
use super::{launch, size};
use crate::case::{Case, Content, F32_NMSE, HALF, NUMBERS, Setup};
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::{Rows, matmul};

/// Each token from the residual stream to the gated hidden units: the chain `rms_norm`, two `matmul`,
/// `swiglu`.
pub struct NormGateUp {
    /// `[R, C]`
    pub x: Slot<f32>,
    /// `[C]`
    pub norm: Slot<f32>,
    pub eps: f32,
    /// `[F, C]`
    pub w_gate: Weight,
    /// `[F, C]`
    pub w_up: Weight,
    /// Out. `[R, F]`
    pub hidden: Slot<f32>,
}

impl Op for NormGateUp {
    fn name(&self) -> &'static str {
        "norm_gate_up"
    }

    fn cost(&self, _position: usize) -> Cost {
        let norm = Cost { weight_bytes: self.norm.bytes() as u64, ..Cost::default() };
        let rows = self.x.len() / self.norm.len();
        norm + matmul_cost(self.w_gate, rows) + matmul_cost(self.w_up, rows)
    }

    fn scratch(&self, threads: usize) -> usize {
        normed_scratch(self.x, self.norm, threads)
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let weights = memory.weights;
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, norm, hidden) = region.slots((self.x, self.norm, self.hidden));
        let inputs = normed(x, norm, self.eps, &mut scratch);
        let gate_up = [self.w_gate, self.w_up].map(|weight| Rows::of(weights, weight));
        matmul([(gate_up, hidden)], inputs, &mut scratch, &swiglu);
    }

    fn operands(&self) -> Operands {
        let (input, norm) = (vec![1, self.norm.len()], Some(self.norm));
        Operands { input, matrices: vec![self.w_gate, self.w_up], norm }
    }

    fn launch(&self, target: &Target) -> Launch {
        let width = self.norm.len();
        assert_eq!(self.x.len(), width, "one token");
        let gemv = Gemv { pairs: self.w_gate.rows, width };
        let arguments = kernel::NormGateUp {
            x: self.x,
            norm: self.norm,
            w_gate: self.w_gate,
            w_up: self.w_up,
            hidden: self.hidden,
            width: size(width),
            ffn: size(self.w_gate.rows),
            parts: gemv.parts(self.name(), target),
            flow: target.tuning.flow(),
            eps: self.eps,
        }
        .arguments();
        launch(
            kernel::NormGateUp::KERNEL,
            (self.w_gate.encoding, 0),
            Gemv::grid(target),
            gemv.normed_shared_bytes(),
            arguments,
        )
    }
}

impl NormGateUp {
    /// Units fewer and more than a grid has warps; widths below, at and past what a warp takes at once,
    /// and those of real models. Of width 4096, parts of rows, several rounds of them on GPUs as small as
    /// emulated ones.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (8, 8),
            (40, 72),
            (264, 136),
            (1032, 200),
            (1024, 16),
            (2048, 64),
            (4096, 40),
            (8192, 8),
            (2048, 4352),
        ];
        let mut cases = Vec::new();
        for (width, ffn) in sizes {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                // Gates above 17 are their own sigmoid linear units, to the bit.
                let twos = (Content::each(|_| 2.0), 0.0);
                let (x, eps) = numbers.pick(twos, numbers.to_norm());
                let norm = numbers.pick(Content::Whole(1.0, 2.0), Content::Real(1.0));
                let gate = numbers.pick(Content::Whole(3.0, 5.0), Content::Real(1.0));
                let op = Self {
                    x: setup.read("x", &[1, width], x),
                    norm: setup.read("norm", &[width], norm),
                    eps,
                    w_gate: setup.weight(dtype, ffn, width, gate),
                    w_up: setup.weight(dtype, ffn, width, numbers.upto(2)),
                    hidden: setup.written("hidden", &[1, ffn], numbers.judge(F32_NMSE)),
                };
                let name = format!("{} {ffn} units, width {width}", dtype.name());
                cases.push(setup.case(name, op));
            }
        }
        cases
    }
}
