//! Pairs of bf16: what they are multiplied with is bf16, what they are added to is f32.
//!
//! `sum + a b` is two fused multiply-adds, the second element's first, and whatever is smaller than the
//! smallest normal number counts as zero, in factors and in sums. So does VDPBF16PS (AVX512-BF16), on which
//! any machine can agree: the product of two bf16 is exact in f32. Where the instruction is missing, or
//! another maker's says otherwise, two multiply-adds of f32 do the same, several times as slowly.

use bytemuck::cast;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::steps::Steps;
use super::sums::Sum;
use super::{LANES, Lanes};

/// As many bf16 as a step has.
pub type PairStep = [bf16; 2 * LANES];

/// What works on pairs. Its `with_pairs` and all that it calls must be `#[inline(always)]`.
pub trait WithPairs {
    type Output;
    fn with_pairs<K: Steps<Element = bf16, Step = PairStep>>(self, pairs: K) -> Self::Output;
}

/// Runs `work` by the instruction, or compiled for `arch`, where that is all there is.
pub fn dispatch<W: WithPairs>(arch: Arch, native: Option<Native>, work: W) -> W::Output {
    match native {
        Some(native) => native.run(work),
        None => arch.dispatch(Emulate(work)),
    }
}

struct Emulate<W>(W);

impl<W: WithPairs> WithSimd for Emulate<W> {
    type Output = W::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> W::Output {
        self.0.with_pairs(Emulated(simd))
    }
}

/// By multiply-adds of f32.
#[derive(Clone, Copy)]
pub struct Emulated<S>(pub S);

impl<S: Simd> Steps for Emulated<S> {
    type Simd = S;
    type Element = bf16;
    type Step = PairStep;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn lanes(self, stored: &PairStep) -> Lanes {
        cast(flushed(*stored))
    }

    #[inline(always)]
    fn mul_add<const P: usize>(self, a: Sum<S, P>, b: Sum<S, P>, sum: &mut Sum<S, P>) {
        let simd = self.0;
        for p in 0..P {
            let [[a_0, a_1], [b_0, b_1]] = [halves(simd, a[p]), halves(simd, b[p])];
            sum[p] = mul_add(simd, a_1, b_1, sum[p]);
            sum[p] = mul_add(simd, a_0, b_0, sum[p]);
        }
    }
}

/// The first and the second elements of pairs, as f32.
#[inline(always)]
fn halves<S: Simd>(simd: S, pairs: S::f32s) -> [S::f32s; 2] {
    let pairs = simd.transmute_u32s_f32s(pairs);
    let first = simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16));
    let second = simd.and_u32s(pairs, simd.splat_u32s(0xffff_0000));
    [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
}

/// `sum + a b`; zero if that is smaller than the smallest normal number when it has been rounded to as many
/// bits as normal numbers have. Scaled up, all have as many, or overflow, and are not small.
#[inline(always)]
fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
    const UP: f32 = (1u32 << 24) as f32;
    let up = simd.splat_f32s(UP);
    let scaled = simd.mul_add_f32s(simd.mul_f32s(a, up), b, simd.mul_f32s(sum, up));
    let least = simd.splat_f32s(UP * f32::MIN_POSITIVE);
    let small = simd.less_than_f32s(simd.abs_f32s(scaled), least);
    let sum = simd.mul_add_f32s(a, b, sum);
    let sign = simd.and_u32s(simd.transmute_u32s_f32s(sum), simd.splat_u32s(1 << 31));
    simd.select_f32s(small, simd.transmute_f32s_u32s(sign), sum)
}

/// With zeros for what is smaller than the smallest normal number.
#[inline(always)]
pub fn flushed(mut step: PairStep) -> PairStep {
    for number in &mut step {
        let bits = number.to_bits();
        *number = bf16::from_bits(if bits & 0x7f80 == 0 { bits & 0x8000 } else { bits });
    }
    step
}

#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::x86_64::_mm512_dpbf16_ps;

    use pulp::x86::V4;

    use super::*;

    pulp::simd_type! {
        /// All of AVX-512 that the code around the instruction is compiled for, and the instruction.
        struct Features {
            sse: "sse",
            sse2: "sse2",
            sse3: "sse3",
            ssse3: "ssse3",
            sse4_1: "sse4.1",
            sse4_2: "sse4.2",
            popcnt: "popcnt",
            avx: "avx",
            avx2: "avx2",
            bmi1: "bmi1",
            bmi2: "bmi2",
            fma: "fma",
            lzcnt: "lzcnt",
            avx512f: "avx512f",
            avx512bw: "avx512bw",
            avx512cd: "avx512cd",
            avx512dq: "avx512dq",
            avx512vl: "avx512vl",
            avx512bf16: "avx512bf16",
        }
    }

    /// By the instruction.
    #[derive(Debug, Clone, Copy)]
    pub struct Native {
        features: Features,
        v4: V4,
    }

    impl Native {
        /// If this machine has the instruction and means the same by it.
        pub fn try_new() -> Option<Self> {
            let native = Self { features: Features::try_new()?, v4: V4::try_new()? };
            native.agrees().then_some(native)
        }

        pub fn run<W: WithPairs>(self, work: W) -> W::Output {
            struct Call<W>(Native, W);
            impl<W: WithPairs> pulp::NullaryFnOnce for Call<W> {
                type Output = W::Output;

                #[inline(always)]
                fn call(self) -> W::Output {
                    self.1.with_pairs(self.0)
                }
            }
            self.features.vectorize(Call(self, work))
        }

        /// Whether it does to [`QUESTIONS`] what multiply-adds do.
        pub(super) fn agrees(self) -> bool {
            let ours = Simd::vectorize(self.v4, Emulate(Ask));
            self.run(Ask).map(f32::to_bits) == ours.map(f32::to_bits)
        }
    }

    /// A sum, then the first and the second two numbers that are multiplied and added to it. Each comes out
    /// otherwise in another order, if rounded more or less often or not to even, or if small numbers counted.
    const QUESTIONS: [[f32; 5]; LANES] = [
        [1.0, -two(12), two(12), two(12), two(12)],
        [two(24), 1.0, 1.0, 1.0, 1.0],
        [1.0, two(-12), two(-12), 0.0, 0.0],
        [1.0, 1.0078125 * two(-12), two(-12), 0.0, 0.0],
        [-1.0, 0.0, 0.0, two(-13), -two(-12)],
        [1.0, two(-127), two(120), 0.0, 0.0],
        [1.0, 0.0, 0.0, -two(120), two(-128)],
        [0.0, two(-70), two(-60), 0.0, 0.0],
        [0.0, two(-60), two(-70), two(-60), -two(-70)],
        [1.5 * two(-126), 1.25, two(-126), -two(-126), 1.0],
        [-1.5 * two(-126), two(-126), 1.0, 0.0, 0.0],
        [two(-126), two(-75), -two(-76), 0.0, 0.0],
        [two(-126), 1.5 * two(-75), -two(-76), 0.0, 0.0],
        [two(-126), two(-75), two(-76), 0.0, 0.0],
        [-two(100), two(100), 1.0, two(80), two(80)],
        [-0.0, 0.0, 1.0, -0.0, 1.0],
    ];

    /// 2^`exponent`
    const fn two(exponent: i32) -> f32 {
        f32::from_bits(match exponent {
            -126.. => ((127 + exponent) as u32) << 23,
            _ => 1 << (149 + exponent),
        })
    }

    #[derive(Clone, Copy)]
    struct Ask;

    impl WithPairs for Ask {
        type Output = Lanes;

        /// With AVX-512, of which one register holds all lanes.
        #[inline(always)]
        fn with_pairs<K: Steps<Element = bf16, Step = PairStep>>(self, pairs: K) -> Lanes {
            let factors = |first: usize| -> PairStep {
                std::array::from_fn(|i| bf16::from_f32(QUESTIONS[i / 2][first + 2 * (i % 2)]))
            };
            let [a, b] = [factors(1), factors(2)].map(|step| [cast(pairs.lanes(&step))]);
            let mut sums: Sum<K::Simd, 1> = [cast(QUESTIONS.map(|question| question[0]))];
            pairs.mul_add(a, b, &mut sums);
            cast(sums)
        }
    }

    impl Steps for Native {
        type Simd = V4;
        type Element = bf16;
        type Step = PairStep;

        #[inline(always)]
        fn simd(self) -> V4 {
            self.v4
        }

        #[inline(always)]
        fn lanes(self, stored: &PairStep) -> Lanes {
            cast(*stored)
        }

        #[inline(always)]
        fn mul_add<const P: usize>(self, a: Sum<V4, P>, b: Sum<V4, P>, sum: &mut Sum<V4, P>) {
            for p in 0..P {
                // SAFETY: there are `Features` only where the machine has them.
                sum[p] = cast(unsafe { _mm512_dpbf16_ps(cast(sum[p]), cast(a[p]), cast(b[p])) });
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use native::Native;

/// No other machine's instruction is known to mean the same.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Clone, Copy)]
pub enum Native {}

#[cfg(not(target_arch = "x86_64"))]
impl Native {
    pub fn try_new() -> Option<Self> {
        None
    }

    pub fn run<W: WithPairs>(self, _work: W) -> W::Output {
        match self {}
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What multiply-adds say to questions, by the oracle; the emulation is held to it here, the instruction
    /// by its `try_new`. Where a machine has it and it disagrees, nobody would know otherwise.
    #[test]
    fn the_instruction_of_this_machine_means_the_same() {
        let has = std::arch::is_x86_feature_detected!("avx512bf16");
        assert_eq!(Native::try_new().is_some(), has);
    }
}
