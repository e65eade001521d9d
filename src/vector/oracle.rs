//! The slow and plain versions that the fast ones are held to, bit by bit, and what the tests feed both.

use half::bf16;

use super::sums::SLICE;
use super::{Element, LANES, exp};

/// As [`super::dot`] means it: slice by slice lanes, then the tree.
pub fn dot<W: Element>(w: &[W], x: &[f32]) -> f32 {
    let slices = w.chunks(SLICE * LANES).zip(x.chunks(SLICE * LANES));
    slices.map(|(w, x)| dot_slice(w, x)).reduce(|a, b| a + b).unwrap_or(0.0)
}

fn dot_slice<W: Element>(w: &[W], x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let len = x.len().next_multiple_of(LANES);
    for i in 0..len {
        let (w, x) = (w[..x.len()].get(i).map_or(0.0, |w| w.widen()), x.get(i).copied());
        lanes[i % LANES] = w.mul_add(x.unwrap_or(0.0), lanes[i % LANES]);
    }
    tree(&lanes)
}

/// As products of pairs are meant ([`super::pairs`]).
pub fn dot_pairs(w: &[bf16], x: &[bf16]) -> f32 {
    let slices = w.chunks(2 * SLICE * LANES).zip(x.chunks(2 * SLICE * LANES));
    slices.map(|(w, x)| dot_slice_of_pairs(w, x)).reduce(|a, b| a + b).unwrap_or(0.0)
}

fn dot_slice_of_pairs(w: &[bf16], x: &[bf16]) -> f32 {
    let mut lanes = [0f32; LANES];
    for i in 0..x.len().next_multiple_of(2 * LANES) {
        let other = i ^ 1; // the second one of a pair comes first
        let [w, x] =
            [w, x].map(|all| all[..x.len()].get(other).map_or(0.0, |e| normal(e.to_f32())));
        let sum = &mut lanes[i / 2 % LANES];
        // Exact wherever the sum is next to the smallest normal number.
        let exact = f64::from(w) * f64::from(x) + f64::from(*sum);
        let least = f64::from(f32::MIN_POSITIVE);
        let small = exact.abs() < least - least / f64::from(1 << 25);
        let rounded = w.mul_add(x, *sum);
        *sum = if small { 0f32.copysign(rounded) } else { rounded };
    }
    tree(&lanes)
}

/// Or zero.
fn normal(number: f32) -> f32 {
    if number.is_subnormal() { 0f32.copysign(number) } else { number }
}

fn tree(lanes: &[f32]) -> f32 {
    match lanes {
        [sum] => *sum,
        _ => {
            let (low, high) = lanes.split_at(lanes.len() / 2);
            tree(&low.iter().zip(high).map(|(low, high)| low + high).collect::<Vec<_>>())
        }
    }
}

/// One query over the first `len` rows of its KV head, `row` elements apart.
pub fn attend<E: Element>(q: &[f32], keys: &[E], values: &[E], row: usize, len: usize) -> Vec<f32> {
    let scale = 1.0 / (q.len() as f32).sqrt();
    let (mut max, mut sum, mut y) = (f32::NEG_INFINITY, 0f32, vec![0f32; q.len()]);
    for start in (0..len).step_by(super::attention::BLOCK) {
        let block = start..(start + super::attention::BLOCK).min(len);
        let score = |s: usize| dot(&keys[s * row..][..q.len()], q) * scale;
        let scores: Vec<f32> = block.clone().map(score).collect();
        let largest =
            scores.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let least = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - least)).collect();
        let mut partial = [0f32; 4];
        weights.iter().enumerate().for_each(|(i, weight)| partial[i % 4] += weight);
        let total = (partial[0] + partial[2]) + (partial[1] + partial[3]);
        let (mine, other) = match () {
            () if largest > max => (exp(max - largest), 1.0),
            () if largest == max => (1.0, 1.0),
            () => (1.0, exp(largest - max)),
        };
        sum = sum.mul_add(mine, total * other);
        max = if largest > max { largest } else { max };
        for (i, y) in y.iter_mut().enumerate() {
            let value = |s: usize| values[s * row + i].widen();
            let terms = block.clone().zip(&weights);
            let found = terms.fold(0f32, |sum, (s, weight)| weight.mul_add(value(s), sum)) + 0.0;
            *y = y.mul_add(mine, found * other);
        }
    }
    let factor = 1.0 / sum;
    y.iter().map(|y| y * factor).collect()
}

/// Numbers between -0.5 and 0.5.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Numbers whose products are about as small as normal numbers can be; some are smaller themselves, and some
/// large.
pub fn tiny(count: usize, seed: u32) -> Vec<bf16> {
    let tiny = |(i, number): (usize, f32)| {
        let exponent = match (i + seed as usize) % 13 {
            0 => -127,
            1 => 127,
            k => -60 - k as i32 % 6,
        };
        bf16::from_f64(f64::from(number) * f64::from(exponent).exp2())
    };
    numbers(count, seed).into_iter().enumerate().map(tiny).collect()
}

/// The bits of numbers, of which all NaN are one.
pub fn bits(numbers: &[f32]) -> Vec<u32> {
    let bits = |number: &f32| if number.is_nan() { f32::NAN.to_bits() } else { number.to_bits() };
    numbers.iter().map(bits).collect()
}
