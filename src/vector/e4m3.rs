//! Numbers of eight bits: a sign, four bits of exponent and three of mantissa, as OCP's "8-bit Floating Point
//! Specification" has E4M3. There is no infinity, and one NaN of either sign.

use half::f16;
use pulp::{Simd, WithSimd};

use super::{Element, LANES, Lanes, simd};

/// `x = numbers * scale`, of which only the product rounds.
///
/// # Panics
/// When there are more numbers or fewer.
pub fn scale_e4m3(numbers: &[u8], scale: f32, x: &mut [f32]) {
    assert_eq!(numbers.len(), x.len());
    simd(Scale { numbers, scale, x });
}

struct Scale<'a> {
    numbers: &'a [u8],
    scale: f32,
    x: &'a mut [f32],
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let scale = simd.splat_f32s(self.scale);
        for (numbers, x) in self.numbers.chunks(LANES).zip(self.x.chunks_mut(LANES)) {
            x.copy_from_slice(&scaled(simd, &step(numbers), scale)[..x.len()]);
        }
    }
}

/// The first numbers of these, and zeros where there are fewer than lanes.
#[inline(always)]
pub fn step(numbers: &[u8]) -> [u8; LANES] {
    if let Some(step) = numbers.first_chunk() {
        return *step;
    }
    let mut step = [0; LANES];
    step[..numbers.len()].copy_from_slice(numbers);
    step
}

/// A number a lane, times `scale`. By way of f16, which machines have an instruction to widen.
#[inline(always)]
pub fn scaled<S: Simd>(simd: S, numbers: &[u8; LANES], scale: S::f32s) -> Lanes {
    let mut halves = [0; LANES];
    for (half, number) in halves.iter_mut().zip(numbers) {
        *half = half_bits(*number);
    }
    let halves: [f16; LANES] = bytemuck::cast(halves);
    let mut wide = f16::widen_lanes(simd, &halves);
    for part in S::as_mut_simd_f32s(&mut wide).0 {
        let number = simd.mul_f32s(*part, simd.splat_f32s(256.0));
        *part = simd.mul_f32s(number, scale);
    }
    wide
}

/// The f16 that is a 256th of a number: its exponent and mantissa, where f16 has them, mean as much less, the
/// biases being 15 and 7.
#[inline(always)]
fn half_bits(number: u8) -> u16 {
    let bits = (i16::from(number as i8) << 7) as u16 & 0xbf80;
    let nan = if bits & 0x3f80 == 0x3f80 { 0x7c00 } else { 0 };
    bits | nan
}

#[cfg(test)]
mod tests {
    use super::super::sets;
    use super::*;

    /// Those of torch, by `scripts/golden_e4m3.py`.
    #[test]
    fn all_numbers_are_those_of_torch_in_every_instruction_set() {
        let golden = include_bytes!("../../tests/golden/e4m3.json");
        let golden: Vec<u32> = serde_json::from_slice(golden).unwrap();
        let numbers: Vec<u8> = (0..=u8::MAX).collect();
        for scale in [1.0, 0.0123, -3.0, 1e-38] {
            for set in sets() {
                let mut x = vec![0.0; 256];
                set.arch.dispatch(Scale { numbers: &numbers, scale, x: &mut x });
                for (x, bits) in x.iter().zip(&golden) {
                    let expected = f32::from_bits(*bits) * scale;
                    let is_it =
                        x.to_bits() == expected.to_bits() || x.is_nan() && expected.is_nan();
                    assert!(is_it, "{x} is not {expected}, {}", set.name());
                }
            }
        }
        let nan = golden.iter().enumerate().filter(|(_, bits)| f32::from_bits(**bits).is_nan());
        assert_eq!(nan.map(|(number, _)| number).collect::<Vec<_>>(), [0x7f, 0xff]);
    }
}
