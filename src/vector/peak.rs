//! What a thread multiplies at best: the ceiling over products.

use std::hint::black_box;

use bytemuck::{bytes_of, pod_read_unaligned};
use half::bf16;
use pulp::{Simd, WithSimd};

use super::pairs::{PairStep, WithPairs};
use super::steps::{Singles, Steps, step_len};
use super::sums::Sum;
use super::{LANES, SET};
use crate::encoding::Float;

/// Multiply-adds that wait for none but themselves, in f32 or of pairs of bf16. Returns the floating point
/// operations.
pub fn multiply_adds(dtype: Float, rounds: usize) -> usize {
    match dtype {
        Float::Bf16 => SET.dispatch_pairs(MultiplyAdds { rounds }),
        _ => SET.arch.dispatch(MultiplyAdds { rounds }),
    }
}

struct MultiplyAdds {
    rounds: usize,
}

impl WithSimd for MultiplyAdds {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        self.run(Singles::<S, f32>::new(simd), [0.999; LANES])
    }
}

impl WithPairs for MultiplyAdds {
    type Output = usize;

    #[inline(always)]
    fn with_pairs<K: Steps<Element = bf16, Step = PairStep>>(self, pairs: K) -> usize {
        self.run(pairs, [bf16::from_f32_const(0.125); 2 * LANES])
    }
}

impl MultiplyAdds {
    #[inline(always)]
    fn run<K: Steps>(self, steps: K, factors: K::Step) -> usize {
        /// Enough to hide their latency in two units, few enough for AVX2's registers.
        const SUMS: usize = 12;
        let lanes = steps.lanes(&black_box(factors));
        let register = &bytes_of(&lanes)[..size_of::<<K::Simd as Simd>::f32s>()];
        let (factor, one) = ([pod_read_unaligned(register)], steps.simd().splat_f32s(1.0));
        let mut sums: [Sum<K::Simd, 1>; SUMS] = [[one]; SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                steps.mul_add(factor, factor, sum);
            }
        }
        black_box(sums);
        2 * step_len::<K>() * K::Simd::F32_LANES / LANES * SUMS * self.rounds
    }
}
