//! Numbers as they are stored, and as f32.

use std::borrow::Cow;

use bytemuck::Pod;
use half::{bf16, f16};
use pulp::Simd;

use super::{LANES, Lanes};
use crate::checkpoint::Dtype;
use crate::memory::Activation;

/// A number as it is stored in weights or in the KV cache.
pub trait Element: Pod + Send + Sync {
    const DTYPE: Dtype;
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

#[cfg(test)]
mod tests {
    use super::super::{Arch, WithSimd, sets};
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
            let together = sets().map(|arch: Arch| arch.dispatch(Widen(&stored)));
            for wide in together.chain([alone]) {
                for (ours, half) in wide.into_iter().zip(stored.map(f16::to_f32)) {
                    let same = ours.to_bits() == half.to_bits() || ours.is_nan() && half.is_nan();
                    assert!(same, "{half}");
                }
            }
        }
    }

    #[test]
    fn f16_saturates_and_keeps_nan() {
        assert_eq!(<f16 as Element>::narrow(1e9), f16::MAX);
        assert_eq!(<f16 as Element>::narrow(f32::NEG_INFINITY), f16::MIN);
        assert!(<f16 as Element>::narrow(f32::NAN).is_nan());
    }
}
