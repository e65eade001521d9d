use super::matmul::{SHAPES, matmul_cost};
use super::{GateUpSwigluHopper, launch, size, tiles};
use crate::case::{Case, Content, HALF, HALF_NMSE, Judge, NUMBERS, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Activation, Memory, Weight};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::{
    Inputs, Rows, Simd, WithSimd, exp, fill, matmul, matmul_scratch, simd, wide_scratch,
};

/// `hidden[t] = silu(w_gate x[t]) * (w_up x[t])`, with `silu(g) = g / (1 + e^-g)` (Shazeer, 2020,
/// arXiv:2002.05202)
#[derive(Clone, Copy)]
pub struct GateUpSwiglu {
    /// `[T, C]`
    pub x: Activation,
    /// `[F, C]`
    pub w_gate: Weight,
    /// `[F, C]`
    pub w_up: Weight,
    /// Out. `[T, F]`
    pub hidden: Activation,
}

impl GateUpSwiglu {
    pub(super) fn tokens(&self) -> usize {
        self.x.len() / self.w_gate.cols
    }
}

impl Op for GateUpSwiglu {
    fn name(&self) -> &'static str {
        "gate_up_swiglu"
    }

    fn cost(&self, _position: usize) -> Cost {
        let gate = Cost { flops: 5 * self.hidden.len() as u64, ..Cost::default() };
        gate + matmul_cost(self.w_gate, self.tokens()) + matmul_cost(self.w_up, self.tokens())
    }

    fn scratch(&self, threads: usize) -> usize {
        let wide = wide_scratch(self.x) + wide_scratch(self.hidden);
        matmul_scratch(self.tokens(), self.w_gate.cols, threads) + wide
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let gate_up = [self.w_gate, self.w_up].map(|weight| Rows::of(memory.weights, weight));
        let (mut region, mut scratch) = memory.region_and_scratch();
        let (x, hidden) = region.slots((self.x.bytes, self.hidden.bytes));
        let inputs = Inputs::of(self.x, x, &[self.w_gate, self.w_up], &mut scratch);
        fill(self.hidden, hidden, &mut scratch, |hidden, scratch| {
            matmul([(gate_up, hidden)], inputs, scratch, &swiglu);
        });
    }

    fn operands(&self) -> Operands {
        let input = vec![self.tokens(), self.w_gate.cols];
        Operands { input, matrices: vec![self.w_gate, self.w_up], norm: None }
    }

    fn launch(&self, target: &Target) -> Launch {
        if target.kernels.contains(kernel::GateUpSwigluHopper::KERNEL) {
            return GateUpSwigluHopper(*self).launch(target);
        }
        let Weight { encoding, rows: ffn, cols: width, .. } = self.w_gate;
        assert!(width.is_multiple_of(8) && ffn.is_multiple_of(8), "sizes {ffn}, {width}");
        assert_eq!([self.x.dtype, self.hidden.dtype], [encoding.activation(); 2]);
        assert!(self.x.terms == 1 && self.hidden.terms == 1);
        let (tile, grid) = tiles::choose(&SHAPES, self.tokens(), &[2 * ffn], target, 2);
        let arguments = kernel::GateUpSwiglu {
            x: self.x.bytes,
            w_gate: self.w_gate,
            w_up: self.w_up,
            hidden: self.hidden.bytes,
            tokens: size(self.tokens()),
            width: size(width),
            ffn: size(ffn),
            tile,
        }
        .arguments();
        launch(kernel::GateUpSwiglu::KERNEL, (encoding, 0), grid, 0, arguments)
    }
}

/// `hidden = silu(gate) * up`
pub(super) fn swiglu(hidden: &mut [f32], [gate, up]: [&[f32]; 2]) {
    simd(Swiglu { hidden, gate, up });
}

struct Swiglu<'a> {
    hidden: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl WithSimd for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for ((hidden, gate), up) in self.hidden.iter_mut().zip(self.gate).zip(self.up) {
            *hidden = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

impl GateUpSwiglu {
    /// Below, at and past the tiles of every shape (of 32, 64, 128 columns, half of them gates) and the
    /// K-tiles, of which there are more than stages.
    pub fn cases() -> Vec<Case> {
        let sizes = [
            (1, 8, 8),
            (2, 8, 1032),
            (33, 40, 328),
            (130, 72, 136),
            (3, 24, 40),
            (31, 72, 136),
            (33, 136, 200),
            (65, 64, 264),
            (130, 104, 72),
            (1, 32, 4096),
            (2, 16, 8192),
            (100, 1456, 64),
            (1030, 648, 128),
            (20, 168, 40),
        ];
        Self::cases_of(&sizes, |op| op)
    }

    /// Cases of these sizes - tokens, units, columns -, each op in the form that `of` gives it.
    pub(super) fn cases_of<O: Op + 'static>(
        sizes: &[(usize, usize, usize)],
        of: fn(Self) -> O,
    ) -> Vec<Case> {
        let mut cases = Vec::new();
        for (tokens, ffn, width) in sizes.iter().copied() {
            for (dtype, numbers) in HALF.into_iter().flat_map(|d| NUMBERS.map(|n| (d, n))) {
                let mut setup = Setup::new(numbers);
                // Gates above 17 are their own sigmoid linear units, to the bit; eight weights a row
                // that are not zero keep the product small.
                let x = numbers.pick(Content::Whole(1.0, 2.0), Content::Real(1.0));
                let eighth = width / 8;
                let gate = move |i: usize| {
                    let (row, column) = (i / width, i % width);
                    if (column + 7 * row) % eighth == 0 { 3.0 + (i % 2) as f32 } else { 0.0 }
                };
                let up = move |i: usize| {
                    let (row, column) = (i / width, i % width);
                    if (column + 5 * row) % eighth == 0 { (i % 9) as f32 - 4.0 } else { 0.0 }
                };
                let gate = numbers.pick(Content::each(gate), Content::Real(1.0));
                let up = numbers.pick(Content::each(up), Content::Real(1.0));
                let op = Self {
                    x: setup.read_as("x", (dtype, 1), &[tokens, width], x),
                    w_gate: setup.weight(dtype, ffn, width, gate),
                    w_up: setup.weight(dtype, ffn, width, up),
                    hidden: setup.written_as(
                        "hidden",
                        (dtype, 1),
                        &[tokens, ffn],
                        numbers.judge(HALF_NMSE),
                    ),
                };
                let name = format!("{} [{tokens}, {width}] x 2 x {ffn} rows", dtype.name());
                cases.push(setup.case(name, of(op)));
            }
        }
        cases.extend(HALF.map(|dtype| Self::overflow(dtype, of)));
        cases
    }

    /// Units beyond what f16 can hold.
    fn overflow<O: Op + 'static>(dtype: Float, of: fn(Self) -> O) -> Case {
        let mut setup = Setup::new(Numbers::Whole);
        let hundred = |i: usize| if i.is_multiple_of(2) { 100.0 } else { 0.0 };
        let op = Self {
            x: setup.read_as("x", (dtype, 1), &[3, 8], Content::each(|_| 1.0)),
            w_gate: setup.weight(dtype, 16, 8, Content::each(hundred)),
            w_up: setup.weight(dtype, 16, 8, Content::Whole(-200.0, 200.0)),
            hidden: setup.written_as("hidden", (dtype, 1), &[3, 16], Judge::Exact),
        };
        setup.case(format!("{} with an overflow", dtype.name()), of(op))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_the_gated_unit_also_at_the_extremes() {
        let mut hidden = [f32::NAN; 4];
        super::swiglu(&mut hidden, [&[0.0, 1.0, -200.0, 200.0], &[5.0, 2.0, 3.0, 0.5]]);
        let silu_of_one = 1.0 / (1.0 + crate::vector::exp(-1.0));
        assert_eq!(hidden, [0.0, 2.0 * silu_of_one, -0.0, 100.0]);
    }
}
