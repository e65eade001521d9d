//! The arithmetic under every CPU op: dot products with f32 accumulation over weights of any type.
//!
//! **Same bits everywhere.** A dot product keeps [`LANES`] partial sums, each advanced by fused
//! multiply-adds in index order, and adds them up in a fixed tree. Neither the number of threads, nor
//! how many rows or tokens are computed together, nor the vector width of the machine changes a bit of
//! it. `pulp` picks the widest instruction set at run time; the compiler vectorises over the lanes.

use std::array::from_fn;
use std::sync::LazyLock;

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::checkpoint::Dtype;

/// Partial sums of one dot product: one AVX-512 register, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// Weight rows one task computes: with their inputs they stay in a core's L2 cache.
const ROWS_PER_TASK: usize = 64;

/// Bytes of input that are multiplied with a task's rows before the next tokens come.
const INPUT_BLOCK_BYTES: usize = 128 * 1024;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `work` compiled for the widest instruction set of this machine. What it calls must be
/// `#[inline(always)]` to be compiled so as well.
pub fn simd<R>(work: impl FnOnce() -> R) -> R {
    ARCH.dispatch(work)
}

/// The name of the instruction set that [`simd`] uses.
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
pub fn dots<W: Element, const R: usize, const T: usize>(
    rows: [&[W]; R],
    inputs: [&[f32]; T],
) -> [[f32; T]; R] {
    let len = inputs[0].len();
    let rows = rows.map(|row| &row[..len]);
    let inputs = inputs.map(|input| &input[..len]);
    let mut sums = [[[0f32; LANES]; T]; R];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let x: [[f32; LANES]; T] = from_fn(|t| from_fn(|lane| inputs[t][start + lane]));
        for r in 0..R {
            let w: [f32; LANES] = from_fn(|lane| rows[r][start + lane].widen());
            for t in 0..T {
                for lane in 0..LANES {
                    sums[r][t][lane] = w[lane].mul_add(x[t][lane], sums[r][t][lane]);
                }
            }
        }
    }
    for i in whole..len {
        for r in 0..R {
            for t in 0..T {
                let sum = &mut sums[r][t][i - whole];
                *sum = rows[r][i].widen().mul_add(inputs[t][i], *sum);
            }
        }
    }
    sums.map(|row| row.map(add_lanes))
}

/// The sum of all lanes, halves onto halves.
#[inline(always)]
fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
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
    let (n, tokens) = (w.len() / width, x.len() / width);
    assert_eq!((w.len(), x.len(), y.len()), (n * width, tokens * width, tokens * n));
    let mut columns: Vec<_> = y.chunks_mut(n).map(|row| row.chunks_mut(ROWS_PER_TASK)).collect();
    let tasks: Vec<(&[W], Vec<&mut [f32]>)> = w
        .chunks(ROWS_PER_TASK * width)
        .map(|rows| (rows, columns.iter_mut().filter_map(Iterator::next).collect()))
        .collect();
    tasks.into_par_iter().for_each(|(rows, mut outputs)| {
        simd(|| match &mut outputs[..] {
            [output] => matvec_block(rows, x, output, &store),
            outputs => matmul_block(rows, x, width, outputs, &store),
        });
    });
}

/// One task of [`matmul`] for one token: the weights are used as they stream by.
#[inline(always)]
fn matvec_block<W: Element>(w: &[W], x: &[f32], y: &mut [f32], store: &impl Fn(&mut f32, f32)) {
    const ROWS: usize = 4;
    let width = x.len();
    let (quads, rest) = y.split_at_mut(y.len() / ROWS * ROWS);
    let (quad_rows, rest_rows) = w.split_at(quads.len() * width);
    for (y, w) in quads.chunks_exact_mut(ROWS).zip(quad_rows.chunks_exact(ROWS * width)) {
        let sums = dots::<W, ROWS, 1>(from_fn(|r| &w[r * width..][..width]), [x]);
        for (y, [sum]) in y.iter_mut().zip(sums) {
            store(y, sum);
        }
    }
    for (y, w) in rest.iter_mut().zip(rest_rows.chunks_exact(width)) {
        store(y, dots::<W, 1, 1>([w], [x])[0][0]);
    }
}

/// One task of [`matmul`] for several tokens: two rows are widened once and met by a block of inputs,
/// two at a time (the fastest tile measured on AVX-512, and one that fits AVX2's registers).
#[inline(always)]
fn matmul_block<W: Element>(
    w: &[W],
    x: &[f32],
    width: usize,
    y: &mut [&mut [f32]],
    store: &impl Fn(&mut f32, f32),
) {
    let block_tokens = (INPUT_BLOCK_BYTES / size_of::<f32>() / width).max(2);
    let mut wide = vec![0f32; 2 * width];
    for (x, y) in x.chunks(block_tokens * width).zip(y.chunks_mut(block_tokens)) {
        for (pair, w) in w.chunks(2 * width).enumerate() {
            for (wide, w) in wide.iter_mut().zip(w) {
                *wide = w.widen();
            }
            let (first, second) = wide.split_at(width);
            let rows = w.len() / width;
            for (x, y) in x.chunks(2 * width).zip(y.chunks_mut(2)) {
                let (x0, x1) = (&x[..width], &x[x.len() - width..]);
                let sums = dots::<f32, 2, 2>([first, second], [x0, x1]);
                for (t, y) in y.iter_mut().enumerate() {
                    for (r, y) in y[2 * pair..][..rows].iter_mut().enumerate() {
                        store(y, sums[r][t]);
                    }
                }
            }
        }
    }
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
            let x = values(tokens * width, 2);
            let mut y = vec![0.25; tokens * n];
            matmul(&w, &x, width, &mut y, |y, sum| *y += sum);
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
