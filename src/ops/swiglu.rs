use rayon::prelude::*;

use crate::memory::{Memory, Slot};
use crate::op::{Cost, Op};

/// `gate = silu(gate) * up`, with `silu(g) = g / (1 + e^-g)` (Shazeer, 2020, arXiv:2002.05202)
pub struct Swiglu {
    /// In and out. `[T, F]`
    pub gate: Slot<f32>,
    /// `[T, F]`
    pub up: Slot<f32>,
}

impl Op for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost { flops: 5 * self.gate.len() as u64, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let (gate, up) = memory.slots((self.gate, self.up));
        swiglu(gate, up);
    }
}

pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    const TASK: usize = 4096;
    gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK)).for_each(|(gate, up)| {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_the_gated_unit_also_at_the_extremes() {
        let mut gate = [0.0, 1.0, -200.0, 200.0];
        super::swiglu(&mut gate, &[5.0, 2.0, 3.0, 0.5]);
        let silu_of_one = 1.0 / (1.0 + (-1f32).exp());
        assert_eq!(gate, [0.0, 2.0 * silu_of_one, -0.0, 100.0]);
    }
}
