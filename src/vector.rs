//! The arithmetic under every CPU op: dot products with f32 accumulation over weights of any type.
//!
//! **Same bits everywhere.** A dot product keeps [`LANES`] partial sums, each advanced by fused
//! multiply-adds in index order, and adds them up in a fixed tree. Neither the number of threads, nor
//! how many rows or tokens are computed together, nor the vector width of the machine changes a bit of
//! it. `pulp` picks the widest instruction set at run time.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytemuck::Pod;
use half::{bf16, f16};
pub use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::checkpoint::Dtype;
use crate::memory::Activation;

/// Partial sums of one dot product: one AVX-512 register, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// Weights one task reads: with their inputs they stay in a core's L2 cache, and reading them takes
/// longer than starting the task.
const WEIGHTS_PER_TASK: usize = 128 * 1024;

/// Bytes of input that are multiplied with a task's rows before the next tokens come: half of a
/// common L2 cache.
const INPUT_BLOCK_BYTES: usize = 512 * 1024;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `work` compiled for the widest instruction set of this machine. Its `with_simd` and all that
/// it calls must be `#[inline(always)]`, or they are compiled for the baseline.
pub fn simd<Work: WithSimd>(work: Work) -> Work::Output {
    ARCH.dispatch(work)
}

/// The name of that instruction set.
pub fn instruction_set() -> &'static str {
    match *ARCH {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => "AVX2",
        #[cfg(target_arch = "aarch64")]
        pulp::Arch::Neon(_) => "NEON",
        _ => "baseline",
    }
}

/// A number as it is stored in weights or in the KV cache.
pub trait Element: Pod + Send + Sync {
    const DTYPE: Dtype;
    /// Exact.
    fn widen(self) -> f32;
    /// Rounds to nearest even; f16 saturates at its largest finite value. NaN stays NaN.
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    /// Integer shifts and one multiplication, which vectorise on every machine: exponent and mantissa
    /// move into place and are rescaled by the difference of the biases, 2^(127-15); what was Inf or
    /// NaN then has magnitude 2^16 or more and gets its exponent back.
    #[inline(always)]
    fn widen(self) -> f32 {
        let shifted = ((i32::from(self.to_bits() as i16) << 13) as u32) & 0x8fff_e000;
        let scaled = f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23);
        let special = if scaled.abs() >= 65536.0 { 0x7f80_0000 } else { 0 };
        f32::from_bits(scaled.to_bits() | special)
    }

    fn narrow(value: f32) -> Self {
        let max = f16::MAX.to_f32();
        f16::from_f32(if value.is_nan() { value } else { value.clamp(-max, max) })
    }
}

/// Calls `$body` with `$element` bound to the Rust type that `$dtype` names.
#[macro_export]
macro_rules! for_dtype {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::checkpoint::Dtype::Bf16 => {
                type $element = half::bf16;
                $body
            }
            $crate::checkpoint::Dtype::F16 => {
                type $element = half::f16;
                $body
            }
            $crate::checkpoint::Dtype::F32 => {
                type $element = f32;
                $body
            }
        }
    };
}

/// The dot products of `R` rows with `T` inputs, all of one length.
#[inline(always)]
pub fn dots<S: Simd, W: Element, const R: usize, const T: usize>(
    simd: S,
    rows: [&[W]; R],
    inputs: [&[f32]; T],
) -> [[f32; T]; R] {
    match S::F32_LANES {
        16 => dots_in::<S, W, 1, R, T>(simd, rows, inputs),
        8 => dots_in::<S, W, 2, R, T>(simd, rows, inputs),
        4 => dots_in::<S, W, 4, R, T>(simd, rows, inputs),
        _ => dots_in::<S, W, LANES, R, T>(simd, rows, inputs),
    }
}

/// [`dots`] where `P` registers hold the lanes of a sum.
///
/// Plain loops, no iterator closures over arrays: the compiler must see through all of it to keep
/// the sums in registers.
#[inline(always)]
fn dots_in<S: Simd, W: Element, const P: usize, const R: usize, const T: usize>(
    simd: S,
    rows: [&[W]; R],
    inputs: [&[f32]; T],
) -> [[f32; T]; R] {
    let len = inputs[0].len();
    let steps = len / LANES;
    let mut w: [&[[W; LANES]]; R] = [&[]; R];
    for (w, row) in w.iter_mut().zip(rows) {
        *w = &row.as_chunks().0[..steps];
    }
    let mut x: [&[[f32; LANES]]; T] = [&[]; T];
    for (x, input) in x.iter_mut().zip(inputs) {
        *x = &input.as_chunks().0[..steps];
    }
    let mut sums = [[[simd.splat_f32s(0.0); P]; T]; R];
    for step in 0..steps {
        let mut xs = [[simd.splat_f32s(0.0); P]; T];
        for (registers, x) in xs.iter_mut().zip(x) {
            *registers = bytemuck::cast(x[step]);
        }
        for (sums, w) in sums.iter_mut().zip(w) {
            let mut wide = [0f32; LANES];
            for (wide, stored) in wide.iter_mut().zip(&w[step]) {
                *wide = stored.widen();
            }
            let w: [S::f32s; P] = bytemuck::cast(wide);
            for (sum, x) in sums.iter_mut().zip(xs) {
                for p in 0..P {
                    sum[p] = simd.mul_add_f32s(w[p], x[p], sum[p]);
                }
            }
        }
    }
    let rest = steps * LANES..len;
    let mut dots = [[0f32; T]; R];
    for ((dots, sums), row) in dots.iter_mut().zip(sums).zip(rows) {
        for ((dot, sum), input) in dots.iter_mut().zip(sums).zip(inputs) {
            let mut lanes: [f32; LANES] = bytemuck::cast(sum);
            for ((lane, w), x) in lanes.iter_mut().zip(&row[rest.clone()]).zip(&input[rest.clone()])
            {
                *lane = w.widen().mul_add(*x, *lane);
            }
            *dot = add_lanes(lanes);
        }
    }
    dots
}

/// What is stored of `x` as f32, copied only where it is narrower.
pub fn widened(x: Activation, stored: &[u8]) -> Cow<'_, [f32]> {
    match x.dtype {
        Dtype::F32 => Cow::Borrowed(bytemuck::cast_slice(stored)),
        _ => for_dtype!(x.dtype, E => {
            let stored: &[E] = bytemuck::cast_slice(stored);
            let (leading, rest) = stored.split_at(x.len());
            let mut wide: Vec<f32> = leading.iter().map(|e| e.widen()).collect();
            wide.iter_mut().zip(rest).for_each(|(wide, rest)| *wide += rest.widen());
            Cow::Owned(wide)
        }),
    }
}

/// Stores what `fill` writes as f32 as `y`, in place where that is the stored type.
pub fn fill(y: Activation, stored: &mut [u8], fill: impl FnOnce(&mut [f32])) {
    match y.dtype {
        Dtype::F32 => fill(bytemuck::cast_slice_mut(stored)),
        _ => for_dtype!(y.dtype, E => {
            let stored: &mut [E] = bytemuck::cast_slice_mut(stored);
            let mut wide = vec![0.0; y.len()];
            fill(&mut wide);
            for term in stored.chunks_exact_mut(wide.len()) {
                for (stored, wide) in term.iter_mut().zip(&mut wide) {
                    *stored = E::narrow(*wide);
                    *wide -= stored.widen();
                }
            }
        }),
    }
}

/// `a . b`
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    struct Dot<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dots::<S, f32, 1, 1>(simd, [self.0], [self.1])[0][0]
        }
    }
    simd(Dot(a, b))
}

/// The sum of all lanes, halves onto halves.
#[inline(always)]
fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// `store(&mut y[t, n], w[n] . x[t])` for every row n and token t.
///
/// `w`: `[N, width]`, `x`: `[T, width]`, `y`: `[T, N]`. Tasks take rows, so that every weight is read
/// once from memory however many tokens there are.
pub fn matmul<W: Element>(
    w: &[W],
    x: &[f32],
    width: usize,
    y: &mut [f32],
    store: impl Fn(&mut f32, f32) + Sync,
) {
    matmul_strided(w, width, x, width, y, store);
}

/// [`matmul`] where the rows of `w` are `stride` elements apart; after the last there need be no gap.
pub fn matmul_strided<W: Element>(
    w: &[W],
    stride: usize,
    x: &[f32],
    width: usize,
    y: &mut [f32],
    store: impl Fn(&mut f32, f32) + Sync,
) {
    let (n, tokens) = (w.len().div_ceil(stride), x.len() / width);
    assert!(w.len() >= (n - 1) * stride + width, "{} elements of {n} rows", w.len());
    assert_eq!((x.len(), y.len()), (tokens * width, tokens * n));
    let rows = (WEIGHTS_PER_TASK / width).next_multiple_of(4).max(4);
    let mut columns: Vec<_> = y.chunks_mut(n).map(|row| row.chunks_mut(rows)).collect();
    let tasks: Vec<(&[W], Vec<&mut [f32]>)> = w
        .chunks(rows * stride)
        .map(|rows| (rows, columns.iter_mut().filter_map(Iterator::next).collect()))
        .collect();
    tasks.into_par_iter().for_each(|(w, y)| simd(Block { w, stride, x, width, y, store: &store }));
}

/// One task of [`matmul`].
struct Block<'a, 'y, W, Store> {
    /// `[rows, width]`, the rows `stride` apart
    w: &'a [W],
    stride: usize,
    /// `[T, width]`
    x: &'a [f32],
    width: usize,
    /// A token's part of the output each. `[T][rows]`
    y: Vec<&'y mut [f32]>,
    store: &'a Store,
}

impl<W: Element, Store: Fn(&mut f32, f32)> WithSimd for Block<'_, '_, W, Store> {
    type Output = ();

    /// In tiles that leave registers for their operands: 4 x 4 sums are the fastest measured on
    /// AVX-512, 2 x 2 of two registers each on AVX2.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match (self.y.len(), S::F32_LANES) {
            (1, _) => self.matvec(simd),
            (_, 16) => self.matmul::<S, 4, 4>(simd),
            (_, _) => self.matmul::<S, 2, 2>(simd),
        }
    }
}

impl<W: Element, Store: Fn(&mut f32, f32)> Block<'_, '_, W, Store> {
    /// For one token: row by row, in the order of memory. That alone comes near the rate of a plain
    /// read; several rows at a time halve it (EPYC 9004, 2026-11).
    #[inline(always)]
    fn matvec<S: Simd>(&mut self, simd: S) {
        for (y, w) in self.y[0].iter_mut().zip(self.w.chunks(self.stride)) {
            (self.store)(y, dots::<S, W, 1, 1>(simd, [&w[..self.width]], [self.x])[0][0]);
        }
    }

    /// For several tokens: `R` rows are widened once and met by a block of inputs, `T` at a time.
    #[inline(always)]
    fn matmul<S: Simd, const R: usize, const T: usize>(&mut self, simd: S) {
        let width = self.width;
        let block_tokens = (INPUT_BLOCK_BYTES / size_of::<f32>() / width / T).max(1) * T;
        let mut wide = vec![0f32; R * width];
        let blocks = self.x.chunks(block_tokens * width).zip(self.y.chunks_mut(block_tokens));
        for (x, y) in blocks {
            for (tile, w) in self.w.chunks(R * self.stride).enumerate() {
                let rows = w.len().div_ceil(self.stride);
                let wide = &mut wide[..rows * width];
                for (wide, w) in wide.chunks_exact_mut(width).zip(w.chunks(self.stride)) {
                    for (wide, stored) in wide.iter_mut().zip(w) {
                        *wide = stored.widen();
                    }
                }
                for (x, y) in x.chunks(T * width).zip(y.chunks_mut(T)) {
                    let sums = dots::<S, f32, R, T>(simd, lines(wide, width), lines(x, width));
                    for (t, y) in y.iter_mut().enumerate() {
                        for (y, sums) in y[R * tile..][..rows].iter_mut().zip(&sums) {
                            (self.store)(y, sums[t]);
                        }
                    }
                }
            }
        }
    }
}

/// The first `N` lines of `matrix`, `[_, width]`. Where it has fewer, the last stands in.
#[inline(always)]
fn lines<E, const N: usize>(matrix: &[E], width: usize) -> [&[E]; N] {
    let last = matrix.len() / width - 1;
    let mut lines: [&[E]; N] = [&[]; N];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = &matrix[i.min(last) * width..][..width];
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, half) = (f16::from_bits(bits).widen(), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == half.to_bits() || ours.is_nan() && half.is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn f16_saturates_and_keeps_nan() {
        assert_eq!(<f16 as Element>::narrow(1e9), f16::MAX);
        assert_eq!(<f16 as Element>::narrow(f32::NEG_INFINITY), f16::MIN);
        assert!(<f16 as Element>::narrow(f32::NAN).is_nan());
    }

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    /// Sizes past every block size, against f64; and bit-equal however many tokens go together.
    #[test]
    fn matmul_is_right_and_the_same_for_any_number_of_tokens() {
        for (n, width, tokens) in
            [(1, 1, 1), (3, 5, 2), (65, 40, 7), (130, 16, 33), (7, 333, 5), (66, 2048, 19)]
        {
            let w: Vec<bf16> = values(n * width, 1).into_iter().map(bf16::from_f32).collect();
            let stride = width + 13;
            let mut apart = vec![bf16::NAN; (n - 1) * stride + width];
            for (apart, w) in apart.chunks_mut(stride).zip(w.chunks(width)) {
                apart[..width].copy_from_slice(w);
            }
            let x = values(tokens * width, 2);
            let mut y = vec![0.25; tokens * n];
            matmul(&w, &x, width, &mut y, |y, sum| *y += sum);
            let mut strided = vec![0.25; tokens * n];
            matmul_strided(&apart, stride, &x, width, &mut strided, |y, sum| *y += sum);
            assert_eq!(y, strided);
            for t in 0..tokens {
                let x = &x[t * width..][..width];
                let mut alone = vec![0.25; n];
                matmul(&w, x, width, &mut alone, |y, sum| *y += sum);
                assert_eq!(alone, y[t * n..][..n], "n {n} width {width} token {t}");
                for (row, y) in alone.iter().enumerate() {
                    let terms = w[row * width..].iter().zip(x);
                    let exact: f64 = terms.map(|(w, x)| w.to_f64() * f64::from(*x)).sum();
                    assert!((exact + 0.25 - f64::from(*y)).abs() < 1e-5, "{exact} {y}");
                }
            }
        }
    }
}
