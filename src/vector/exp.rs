//! The exponential function, the same to the bit on every machine, which libm's is not.

/// e^x, within one unit in the last place; results below the smallest normal number are zero.
///
/// e^x = 2^n e^r, with n the whole number nearest to x / ln 2 and |r| <= ln 2 / 2; e^r by the polynomial
/// of Cephes' `expf` (Moshier, 1992). Every operation rounds once, so vectors agree with scalars.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves a whole number in the lowest bits: 1.5 * 2^23.
    const WHOLE: f32 = 12_582_912.0;
    /// ln 2 in two parts; products of the first with whole numbers up to 128 are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// ln 2^128 and ln 2^-126, both rounded down.
    const RANGE: [f32; 2] = [88.722_83, -87.336_55];
    let shifted = x.mul_add(std::f32::consts::LOG2_E, WHOLE);
    let n = shifted - WHOLE;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let p = 1.987_569_1e-4f32.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3).mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1).mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x > RANGE[0] {
        f32::INFINITY
    } else if x < RANGE[1] {
        0.0
    } else if x.is_nan() {
        x
    } else {
        scaled
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Simd, WithSimd, sets};
    use super::exp;

    struct Each<'a>(&'a mut [f32]);

    impl WithSimd for Each<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) {
            self.0.iter_mut().for_each(|x| *x = exp(*x));
        }
    }

    #[test]
    fn is_within_one_unit_in_the_last_place_and_the_same_in_every_instruction_set() {
        let inputs: Vec<f32> = (0..0x7f80_0000u32)
            .step_by(4099)
            .flat_map(|bits| [f32::from_bits(bits), -f32::from_bits(bits)])
            .chain((-90_000..90_000).map(|i| i as f32 * 1e-3))
            .collect();
        let ours: Vec<f32> = inputs.iter().map(|x| exp(*x)).collect();
        for set in sets() {
            let mut together = inputs.clone();
            set.arch.dispatch(Each(&mut together));
            assert!(ours.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        for (x, ours) in inputs.into_iter().zip(ours) {
            let exact = f64::from(x).exp();
            let rounded = exact as f32;
            let unit = f64::from(f32::from_bits(rounded.to_bits() + 1) - rounded);
            let tiny = rounded < f32::MIN_POSITIVE && (ours == 0.0 || ours == f32::MIN_POSITIVE);
            let right = tiny || ours == rounded || (f64::from(ours) - exact).abs() < unit;
            assert!(right, "e^{x}: {ours:e}, not {exact:e}");
        }
    }

    #[test]
    fn knows_the_edges() {
        let edges = [0.0, f32::INFINITY, f32::NEG_INFINITY, 88.722_84, -88.0].map(exp);
        assert_eq!(edges, [1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
        for bits in [0x7fc0_0000, 0x7fc1_2345, 0xffff_ffff, 0x7f80_0001] {
            assert!(exp(f32::from_bits(bits)).is_nan(), "{bits:#x}");
        }
    }
}
