//! Arithmetic of numbers: conversions, exponentials, roundings.

use half::{bf16, f16};

use super::distinct;
use super::gpu::{each, run_on};

/// The ends of every range, what lies halfway between two 16-bit numbers, and what is no number.
fn special_floats() -> Vec<f32> {
    let mut floats = vec![0.0, 1.0, 0.1, 3.4e38, 1e-45, 1.1754942e-38, 65504.0, 65519.996, 65520.0];
    floats.extend([6e-8, 2.9802322e-8, 2.9802326e-8, 6.1e-5, f32::MIN_POSITIVE, f32::MAX]);
    floats.extend([f32::INFINITY, f32::NAN, f32::from_bits(0x7f80_0001)]);
    // 1 + (2k + 1) / 2^11 and / 2^8: ties, to the even neighbour.
    floats.extend((0..8).map(|k| 1.0 + (2 * k + 1) as f32 / 2048.0));
    floats.extend((0..8).map(|k| 1.0 + (2 * k + 1) as f32 / 256.0));
    floats.extend((0..30).map(|k| (k as f32 - 15.0).exp2() * 1.000_732_5));
    assert_eq!(floats.len(), 64);
    floats.iter().flat_map(|v| [*v, -*v]).collect()
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|v| v.to_bits()).collect()
}

/// Equal bits, or both no number.
fn assert_same<T: PartialEq + std::fmt::Debug>(ours: T, expected: T, are_nan: bool, of: f32) {
    assert!(ours == expected || are_nan, "{of:e}: {ours:?}, not {expected:?}");
}

#[test]
fn conversions_to_16_bits() {
    let floats = special_floats();
    let (halves, brains) =
        (each("floats_to_f16", &bits(&floats), 1), each("floats_to_bf16", &bits(&floats), 1));
    for ((v, half), brain) in floats.iter().zip(&halves).zip(&brains) {
        let (half, brain) = (f16::from_bits(*half as u16), bf16::from_bits(*brain as u16));
        assert_same(half.to_bits(), f16::from_f32(*v).to_bits(), v.is_nan() && half.is_nan(), *v);
        assert_same(
            brain.to_bits(),
            bf16::from_f32(*v).to_bits(),
            v.is_nan() && brain.is_nan(),
            *v,
        );
    }
    let numbers: Vec<f32> = floats.iter().map(|v| if v.is_nan() { 2.0 } else { *v }).collect();
    let pairs: Vec<u32> = (0..128)
        .flat_map(|i| [numbers[i].to_bits(), numbers[(i + 17) % 128].to_bits(), 0])
        .collect();
    let halves = each("pairs_to_f16", &pairs, 3);
    let brains = each("pairs_to_bf16", &pairs, 3);
    for i in 0..128 {
        let (low, high) = (numbers[i], numbers[(i + 17) % 128]);
        let pack = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        assert_eq!(halves[i], pack(f16::from_f32(low).to_bits(), f16::from_f32(high).to_bits()));
        assert_eq!(brains[i], pack(bf16::from_f32(low).to_bits(), bf16::from_f32(high).to_bits()));
    }
}

#[test]
fn conversions_to_float() {
    let all: Vec<u32> = (0..1 << 16).collect();
    for (bits, float) in all.iter().zip(each("f16_to_floats", &all, 1)) {
        let (half, float) = (f16::from_bits(*bits as u16), f32::from_bits(float));
        let are_nan = half.is_nan() && float.is_nan();
        assert_same(float.to_bits(), half.to_f32().to_bits(), are_nan, float);
    }
    let words: Vec<u32> = (0..128).map(distinct).collect();
    assert_eq!(each("bits_there_and_back", &words, 1), words);
}

#[test]
fn exponentials() {
    let mut inputs: Vec<f32> = (-125..=127).map(|n| n as f32 * 0.999).collect();
    inputs.extend([
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::NEG_INFINITY,
        f32::INFINITY,
        f32::NAN,
        -127.5,
        -200.0,
    ]);
    inputs.resize(384, 0.5);
    let special = |v: f32| match v {
        v if v.is_infinite() => Some(if v > 0.0 { v } else { 0.0 }),
        v if v < -126.5 => Some(0.0), // subnormal results are flushed
        _ => None,
    };
    for (v, result) in inputs.iter().zip(each("exponentials", &bits(&inputs), 1)) {
        let result = f32::from_bits(result);
        match special(*v) {
            Some(expected) => assert_eq!(result, expected, "2^{v}"),
            None if v.is_nan() => assert!(result.is_nan()),
            None => {
                let expected = f64::from(*v).exp2();
                let error = (f64::from(result) - expected).abs() / expected;
                assert!(error <= 2f64.powi(-22), "2^{v}: {result}, not {expected}");
            }
        }
    }
}

#[test]
fn products_and_sums_are_rounded_by_themselves() {
    // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24, of which the last is lost, unless the sum is fused.
    let a = 1.0 + 1.0 / 4096.0;
    assert_ne!(f32::mul_add(a, a, -(a * a)), 0.0);
    let cases = [[a, a, -(a * a)], [3.0, 0.1, -0.3], [1e20, 1e20, -1.0], [0.1, 0.2, 0.3]];
    let input: Vec<u32> = cases.iter().flatten().map(|v| v.to_bits()).collect();
    let expected: Vec<u32> = cases.iter().map(|[a, b, c]| (a * b + c).to_bits()).collect();
    assert_eq!(each("multiply_then_add", &input, 3), expected);
    let factors = [(0, 5), (u64::MAX, u64::MAX), (1 << 63, 2), (0x0123_4567_89ab_cdef, 1 << 60)];
    for (a, b) in factors {
        let words = [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32];
        let high = ((u128::from(a) * u128::from(b)) >> 64) as u64;
        let expected = [high as u32, (high >> 32) as u32];
        assert_eq!(run_on("high_products", 1, 1, &words, 2), expected, "{a} {b}");
    }
}
