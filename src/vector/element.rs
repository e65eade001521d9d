//! Numbers as they are stored, and as f32.

use std::borrow::Cow;

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{LANES, Lanes, simd};
use crate::encoding::Float;
use crate::memory::{Activation, Scratch};

/// A number as it is stored in weights or in the KV cache.
pub trait Element: Pod + Send + Sync {
    const FLOAT: Float;
    /// Exact.
    fn widen(self) -> f32;
    /// Rounds to nearest even; f16 saturates at its largest finite value. NaN stays NaN.
    fn narrow(value: f32) -> Self;

    /// [`Self::widen`] of as many as a sum has lanes, by the instruction that there may be for it.
    #[inline(always)]
    fn widen_lanes<S: Simd>(_simd: S, stored: &[Self; LANES]) -> Lanes {
        widen_each(stored)
    }
}

#[inline(always)]
fn widen_each<E: Element>(stored: &[E; LANES]) -> Lanes {
    let mut wide = [0.0; LANES];
    for (wide, stored) in wide.iter_mut().zip(stored) {
        *wide = stored.widen();
    }
    wide
}

impl Element for f32 {
    const FLOAT: Float = Float::F32;

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
    const FLOAT: Float = Float::Bf16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let to_even = 0x7fff + (bits >> 16 & 1);
        let quiet = bits | 0x0040_0000; // else a NaN might lose all that makes it one
        let bits = if value.is_nan() { quiet } else { bits.wrapping_add(to_even) };
        bf16::from_bits((bits >> 16) as u16)
    }
}

impl Element for f16 {
    const FLOAT: Float = Float::F16;

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

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn widen_lanes<S: Simd>(simd: S, stored: &[Self; LANES]) -> Lanes {
        if let Some(v4) = super::token::<S, pulp::x86::V4>(simd) {
            return bytemuck::cast(v4.avx512f._mm512_cvtph_ps(bytemuck::cast(*stored)));
        }
        widen_each(stored)
    }
}

/// Calls `$body` with `$element` bound to the Rust type that `$dtype` names.
#[macro_export]
macro_rules! for_float {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::encoding::Float::Bf16 => {
                type $element = half::bf16;
                $body
            }
            $crate::encoding::Float::F16 => {
                type $element = half::f16;
                $body
            }
            $crate::encoding::Float::F32 => {
                type $element = f32;
                $body
            }
        }
    };
}

/// What is stored of `x` as f32, copied only where it is narrower.
pub fn widened(x: Activation, stored: &[u8]) -> Cow<'_, [f32]> {
    match x.dtype {
        Float::F32 => Cow::Borrowed(bytemuck::cast_slice(stored)),
        _ => {
            let mut wide = vec![0.0; x.len()];
            widen(x, stored, &mut wide);
            Cow::Owned(wide)
        }
    }
}

/// As [`widened`], with room from an op's scratch: [`wide_scratch`].
pub fn widened_in<'a, 's: 'a>(
    x: Activation,
    stored: &'a [u8],
    scratch: &mut Scratch<'s>,
) -> &'a [f32] {
    match x.dtype {
        Float::F32 => bytemuck::cast_slice(stored),
        _ => {
            let wide = scratch.take(x.len());
            widen(x, stored, wide);
            wide
        }
    }
}

/// Stores what `fill` writes as f32 as `y`, in place where that is the stored type; else in [`wide_scratch`].
/// `fill` has the rest of the scratch.
pub fn fill(
    y: Activation,
    stored: &mut [u8],
    scratch: &mut Scratch<'_>,
    fill: impl FnOnce(&mut [f32], &mut Scratch<'_>),
) {
    match y.dtype {
        Float::F32 => fill(bytemuck::cast_slice_mut(stored), scratch),
        _ => for_float!(y.dtype, E => {
            let stored: &mut [E] = bytemuck::cast_slice_mut(stored);
            let wide = scratch.take(y.len());
            fill(wide, scratch);
            for term in stored.chunks_exact_mut(y.len()) {
                let parts = term.par_chunks_mut(TASK).zip(wide.par_chunks_mut(TASK));
                parts.for_each(|(stored, wide)| simd(Narrow { stored, wide }));
            }
        }),
    }
}

/// Bytes of scratch that [`widened_in`] or [`fill`] takes.
pub fn wide_scratch(x: Activation) -> usize {
    if x.dtype == Float::F32 { 0 } else { Scratch::bytes_of::<f32>(x.len()) }
}

/// Elements that are worth a task of their own.
const TASK: usize = 16 * 1024;

/// The sums of all terms.
fn widen(x: Activation, stored: &[u8], wide: &mut [f32]) {
    for_float!(x.dtype, E => {
        let stored: &[E] = bytemuck::cast_slice(stored);
        for (i, term) in stored.chunks_exact(x.len()).enumerate() {
            let parts = wide.par_chunks_mut(TASK).zip(term.par_chunks(TASK));
            parts.for_each(|(wide, stored)| {
                for (wide, stored) in wide.iter_mut().zip(stored) {
                    *wide = if i == 0 { stored.widen() } else { *wide + stored.widen() };
                }
            });
        }
    });
}

/// Rounds numbers, and leaves what that took away from them.
struct Narrow<'a, E> {
    stored: &'a mut [E],
    wide: &'a mut [f32],
}

impl<E: Element> WithSimd for Narrow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (stored, wide) in self.stored.iter_mut().zip(self.wide) {
            *stored = E::narrow(*wide);
            *wide -= stored.widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{WithSimd, sets};
    use super::*;

    struct Widen<'a>(&'a [f16; LANES]);

    impl WithSimd for Widen<'_> {
        type Output = Lanes;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Lanes {
            f16::widen_lanes(simd, self.0)
        }
    }

    #[test]
    fn every_f16_widens_exactly_in_every_instruction_set() {
        for bits in (0..=u16::MAX).step_by(LANES) {
            let stored: [f16; LANES] = std::array::from_fn(|i| f16::from_bits(bits + i as u16));
            let alone = stored.map(Element::widen);
            let together = sets().map(|set| set.arch.dispatch(Widen(&stored)));
            for wide in together.chain([alone]) {
                for (ours, half) in wide.into_iter().zip(stored.map(f16::to_f32)) {
                    let same = ours.to_bits() == half.to_bits() || ours.is_nan() && half.is_nan();
                    assert!(same, "{half}");
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_as_the_crate_half_does() {
        let edges = [0u32, 0x7f7f_7fff, 0x7f7f_8000, 0x7f80_0000, 0x7f80_0001, 0x7fff_ffff, 0x8000];
        for bits in
            (0..=u32::MAX).step_by(4093).chain(edges).flat_map(|bits| [bits, bits ^ 1 << 31])
        {
            let (ours, half) =
                (bf16::narrow(f32::from_bits(bits)), bf16::from_f32(f32::from_bits(bits)));
            assert_eq!(ours.to_bits(), half.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn f16_saturates_and_keeps_nan() {
        assert_eq!(<f16 as Element>::narrow(1e9), f16::MAX);
        assert_eq!(<f16 as Element>::narrow(f32::NEG_INFINITY), f16::MIN);
        assert!(<f16 as Element>::narrow(f32::NAN).is_nan());
    }
}
