//! Dot products: sixteen partial sums, and the fixed tree that adds them up.

#[cfg(any(test, target_arch = "aarch64"))]
use std::array::from_fn;

use pulp::{Simd, WithSimd};

use super::{Element, LANES, Lanes, simd};

/// The lanes of one sum, in `P` registers.
pub type Sum<S, const P: usize> = [<S as Simd>::f32s; P];

/// Steps of a slice: what a dot product's lanes add up before the tree adds them up. The lanes need not be
/// kept any longer, and a few rows of a slice, widened, stay in the L1 cache.
pub const SLICE: usize = 64;

/// Nothing added yet.
#[inline(always)]
pub fn zero<S: Simd, const P: usize>(simd: S) -> Sum<S, P> {
    [simd.splat_f32s(0.0); P]
}

/// `sum + a b`, lane by lane.
#[inline(always)]
pub fn mul_add<S: Simd, const P: usize>(simd: S, a: Sum<S, P>, b: Sum<S, P>, sum: &mut Sum<S, P>) {
    for p in 0..P {
        sum[p] = simd.mul_add_f32s(a[p], b[p], sum[p]);
    }
}

/// The first elements of `stored`, of which there are fewer than lanes, and zeros.
#[inline(always)]
pub fn padded<E: Element>(stored: &[E]) -> [E; LANES] {
    let mut lanes = [E::zeroed(); LANES];
    lanes[..stored.len()].copy_from_slice(stored);
    lanes
}

/// The lanes of the dot products of `R` rows with `T` inputs, all of one length; a tail is padded with
/// zeros, unless the length is `WHOLE` steps: then the loop has the registers for itself.
///
/// Plain loops, no iterator closures over arrays: the compiler must see through all of it to keep the
/// sums in registers.
#[inline(always)]
pub fn lanes_of_dots<
    S: Simd,
    W: Element,
    const P: usize,
    const R: usize,
    const T: usize,
    const WHOLE: bool,
>(
    simd: S,
    rows: [&[W]; R],
    inputs: [&[f32]; T],
) -> [[Sum<S, P>; R]; T] {
    let len = inputs[0].len();
    let steps = len / LANES;
    let mut w: [&[[W; LANES]]; R] = [&[]; R];
    for (w, row) in w.iter_mut().zip(rows) {
        *w = &row.as_chunks().0[..steps];
    }
    let mut x: [&[Lanes]; T] = [&[]; T];
    for (x, input) in x.iter_mut().zip(inputs) {
        *x = &input.as_chunks().0[..steps];
    }
    let mut sums = [[zero::<S, P>(simd); R]; T];
    for step in 0..steps {
        let mut ws = [zero::<S, P>(simd); R];
        for r in 0..R {
            ws[r] = bytemuck::cast(W::widen_lanes(simd, &w[r][step]));
        }
        for t in 0..T {
            let x: Sum<S, P> = bytemuck::cast(x[t][step]);
            for r in 0..R {
                mul_add(simd, ws[r], x, &mut sums[t][r]);
            }
        }
    }
    if !WHOLE && steps * LANES < len {
        for t in 0..T {
            let x: Sum<S, P> = bytemuck::cast(padded(&inputs[t][steps * LANES..]));
            for r in 0..R {
                let w = padded(&rows[r][steps * LANES..len]);
                mul_add(simd, bytemuck::cast(W::widen_lanes(simd, &w)), x, &mut sums[t][r]);
            }
        }
    }
    sums
}

/// `a . b`
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    simd(Dot(a, b))
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        if const { S::F32_LANES == 16 } {
            self.in_registers::<S, 1>(simd)
        } else if const { S::F32_LANES == 8 } {
            self.in_registers::<S, 2>(simd)
        } else if const { S::F32_LANES == 4 } {
            self.in_registers::<S, 4>(simd)
        } else {
            self.in_registers::<S, LANES>(simd)
        }
    }
}

impl Dot<'_> {
    #[inline(always)]
    fn in_registers<S: Simd, const P: usize>(self, simd: S) -> f32 {
        const LEN: usize = SLICE * LANES;
        let of = |a, b| {
            let [[sum]] = lanes_of_dots::<S, f32, P, 1, 1, false>(simd, [a], [b]);
            add_lanes(bytemuck::cast(sum))
        };
        self.0
            .chunks(LEN)
            .zip(self.1.chunks(LEN))
            .map(|(a, b)| of(a, b))
            .reduce(|a, b| a + b)
            .unwrap_or(0.0)
    }
}

/// The sum of all lanes, halves onto halves.
#[inline(always)]
pub fn add_lanes(lanes: Lanes) -> f32 {
    let mut sums = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// [`add_lanes`] of 4 x 4 sums at once; that of `sums[b][j]` at `4 b + j`.
///
/// Each level of shuffles brings the halves of two registers together, so that one addition does both.
#[inline(always)]
pub fn add_lanes_of_16<S: Simd, const P: usize>(simd: S, sums: [[Sum<S, P>; 4]; 4]) -> Lanes {
    let mut lanes = [[[0.0; LANES]; 4]; 4];
    for b in 0..4 {
        for j in 0..4 {
            lanes[b][j] = bytemuck::cast(sums[b][j]);
        }
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = super::token::<S, pulp::x86::V4>(simd) {
        return avx512(v4, lanes);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = super::token::<S, pulp::x86::V3>(simd) {
        let [a, b, c, d] = lanes;
        return bytemuck::cast([avx2(v3, [a, b]), avx2(v3, [c, d])]);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(neon) = super::token::<S, pulp::aarch64::Neon>(simd) {
        let [a, b, c, d] = lanes;
        return bytemuck::cast([a, b, c, d].map(|four| neon_tree(neon, four)));
    }
    let mut sums = [[0.0; 4]; 4];
    for b in 0..4 {
        for j in 0..4 {
            sums[b][j] = add_lanes(lanes[b][j]);
        }
    }
    bytemuck::cast(sums)
}

/// A level of the tree: of each two neighbours of `$n`, by two shuffles and an addition, one.
#[cfg(target_arch = "x86_64")]
macro_rules! level {
    ($simd:ident, $n:literal, $from:ident, $add:ident, $shuffle:ident, $low:literal, $high:literal) => {{
        let mut sums = [$from[0]; $n / 2];
        for i in 0..$n / 2 {
            let (a, b) = ($from[2 * i], $from[2 * i + 1]);
            let low = $simd.$shuffle::<$low>(a, b);
            sums[i] = $simd.$add(low, $simd.$shuffle::<$high>(a, b));
        }
        sums
    }};
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn avx512(simd: pulp::x86::V4, lanes: [[Lanes; 4]; 4]) -> Lanes {
    let simd = simd.avx512f;
    // Column by column: shuffles of quarters keep the column, and find the row's place.
    let mut sums = [simd._mm512_setzero_ps(); 16];
    for i in 0..16 {
        sums[i] = bytemuck::cast(lanes[i % 4][i / 4]);
    }
    let sums = level!(simd, 16, sums, _mm512_add_ps, _mm512_shuffle_f32x4, 0x44, 0xee);
    let sums = level!(simd, 8, sums, _mm512_add_ps, _mm512_shuffle_f32x4, 0x88, 0xdd);
    let sums = level!(simd, 4, sums, _mm512_add_ps, _mm512_shuffle_ps, 0x44, 0xee);
    bytemuck::cast(level!(simd, 2, sums, _mm512_add_ps, _mm512_shuffle_ps, 0x88, 0xdd))
}

/// Of half of the sums.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn avx2(simd: pulp::x86::V3, lanes: [[Lanes; 4]; 2]) -> [f32; 8] {
    use std::arch::x86_64::__m256;
    let simd = simd.avx;
    // The upper half of a register holds the second row's.
    let mut sums = [simd._mm256_setzero_ps(); 8];
    for i in 0..8 {
        let [low, high]: [__m256; 2] = bytemuck::cast(lanes[i % 2][i / 2]);
        sums[i] = simd._mm256_add_ps(low, high);
    }
    let sums = level!(simd, 8, sums, _mm256_add_ps, _mm256_permute2f128_ps, 0x20, 0x31);
    let sums = level!(simd, 4, sums, _mm256_add_ps, _mm256_shuffle_ps, 0x44, 0xee);
    bytemuck::cast(level!(simd, 2, sums, _mm256_add_ps, _mm256_shuffle_ps, 0x88, 0xdd))
}

/// Of a quarter of the sums.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn neon_tree(simd: pulp::aarch64::Neon, sums: [Lanes; 4]) -> [f32; 4] {
    use std::arch::aarch64::float32x4_t;
    let simd = simd.neon;
    let fours: [float32x4_t; 4] = from_fn(|i| {
        let [a, b, c, d]: [float32x4_t; 4] = bytemuck::cast(sums[i]);
        simd.vaddq_f32(simd.vaddq_f32(a, c), simd.vaddq_f32(b, d))
    });
    let twos: [float32x4_t; 2] = from_fn(|i| {
        let pair = [fours[2 * i], fours[2 * i + 1]].map(|four| simd.vreinterpretq_f64_f32(four));
        let low = simd.vtrn1q_f64(pair[0], pair[1]);
        let high = simd.vtrn2q_f64(pair[0], pair[1]);
        simd.vaddq_f32(simd.vreinterpretq_f32_f64(low), simd.vreinterpretq_f32_f64(high))
    });
    let even = simd.vuzp1q_f32(twos[0], twos[1]);
    bytemuck::cast(simd.vaddq_f32(even, simd.vuzp2q_f32(twos[0], twos[1])))
}

#[cfg(test)]
mod tests {
    use super::super::{oracle, sets};
    use super::*;

    struct Tree([[Lanes; 4]; 4]);

    impl WithSimd for Tree {
        type Output = Lanes;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Lanes {
            match S::F32_LANES {
                16 => add_lanes_of_16::<S, 1>(simd, self.0.map(|four| four.map(bytemuck::cast))),
                8 => add_lanes_of_16::<S, 2>(simd, self.0.map(|four| four.map(bytemuck::cast))),
                4 => add_lanes_of_16::<S, 4>(simd, self.0.map(|four| four.map(bytemuck::cast))),
                _ => add_lanes_of_16::<S, LANES>(simd, self.0.map(|four| four.map(bytemuck::cast))),
            }
        }
    }

    #[test]
    fn trees_of_all_instruction_sets_add_the_same_pairs() {
        let numbers = oracle::numbers(256, 7);
        let sums: [[Lanes; 4]; 4] =
            from_fn(|b| from_fn(|j| from_fn(|i| numbers[64 * b + 16 * j + i])));
        let alone: Lanes = from_fn(|i| add_lanes(sums[i / 4][i % 4]));
        for set in sets() {
            assert_eq!(set.arch.dispatch(Tree(sums)), alone, "{}", set.name());
        }
    }
}
