//! Numbers of eight bits: a sign, four bits of exponent and three of mantissa, as OCP's "8-bit Floating Point
//! Specification" has E4M3. There is no infinity, and one NaN of either sign.

use pulp::{Simd, WithSimd};

use super::{LANES, Lanes, simd};

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
    fn with_simd<S: Simd>(self, _simd: S) {
        for (x, number) in self.x.iter_mut().zip(self.numbers) {
            *x = widen(*number) * self.scale;
        }
    }
}

/// Numbers of a step of a sum, times `scale`.
#[inline(always)]
pub fn scaled(numbers: &[u8; LANES], scale: f32) -> Lanes {
    let mut x = [0.0; LANES];
    for (x, number) in x.iter_mut().zip(numbers) {
        *x = widen(*number) * scale;
    }
    x
}

/// Exact. Exponent and mantissa move into place and are rescaled by the difference of the biases, 127 - 7,
/// which makes numbers without a leading one right, too.
#[inline(always)]
fn widen(number: u8) -> f32 {
    let number = u32::from(number);
    let scaled = f32::from_bits((number & 0x7f) << 20) * f32::from_bits((127 + 120) << 23);
    let nan = if number & 0x7f == 0x7f { 0x7fc0_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | nan | (number & 0x80) << 24)
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
