//! What the memory of a case holds before its op runs.

use super::{Judge, SlotElement};
use crate::for_float;
use crate::vector::Element as _;

/// What kind of numbers an op gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Integers, and such that no result of any step has to be rounded: whatever the order of the
    /// sums, results are equal to the bit.
    Whole,
    /// Results differ as far as roundings do.
    Real,
}

pub const NUMBERS: [Numbers; 2] = [Numbers::Whole, Numbers::Real];

impl Numbers {
    /// One of two, for whole numbers and for real ones.
    pub fn pick<T>(self, whole: T, real: T) -> T {
        match self {
            Self::Whole => whole,
            Self::Real => real,
        }
    }

    /// Integers from `-most` to `most`, or real numbers as large.
    pub fn upto(self, most: u32) -> Content {
        let most = most as f32;
        self.pick(Content::Whole(-most, most), Content::Real(most))
    }

    /// A residual stream and the epsilon of its norm: numbers of the same magnitude have a root mean
    /// square without a rounding.
    pub fn to_norm(self) -> (Content, f32) {
        let twos = |i: usize| if i.wrapping_mul(0x9e37_79b9) >> 11 & 1 == 0 { 2.0 } else { -2.0 };
        self.pick((Content::each(twos), 0.0), (Content::Real(5.0), 1e-5))
    }

    /// Rotary frequencies for heads of `head_dim`: those of Llama 3, or none, so that rotations change
    /// nothing. `[D/2]`
    pub fn frequencies(self, head_dim: usize) -> Vec<f32> {
        let exponent = |i: usize| -2.0 * i as f32 / head_dim as f32;
        let real = (0..head_dim / 2).map(|i| 500_000f32.powf(exponent(i)));
        self.pick(vec![0.0; head_dim / 2], real.collect())
    }

    /// How results are judged that real numbers make inexact.
    pub fn judge(self, nmse: f64) -> Judge {
        self.pick(Judge::Exact, Judge::Close { nmse })
    }
}

/// What a slot or a weight holds before the op runs.
pub enum Content {
    /// Integers from one to the other, evenly distributed.
    Whole(f32, f32),
    /// Real numbers between minus this and this, evenly distributed.
    Real(f32),
    /// The number at each index.
    Each(Box<dyn Fn(usize) -> f32 + Send + Sync>),
    Bytes(Vec<u8>),
}

impl Content {
    pub fn each(number: impl Fn(usize) -> f32 + Send + Sync + 'static) -> Self {
        Self::Each(Box::new(number))
    }
}
/// Writes `content` into `stored`, which is all of it. Random numbers are those of `seed`.
pub(super) fn write(element: SlotElement, content: &Content, seed: u64, stored: &mut [u8]) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match content {
        Content::Bytes(bytes) => stored.copy_from_slice(bytes),
        Content::Whole(from, to) => {
            let count = (to - from) as u64 + 1;
            fill(element, stored, |_| from + (random.next() % count) as f32);
        }
        Content::Real(most) => {
            let unit = 2.0 / (1u64 << 24) as f32;
            fill(element, stored, |_| ((random.next() >> 40) as f32 * unit - 1.0) * most);
        }
        Content::Each(number) => fill(element, stored, number),
    }
}

fn fill(element: SlotElement, stored: &mut [u8], mut number: impl FnMut(usize) -> f32) {
    let SlotElement::Float(dtype) = element else { panic!("integers are given as bytes") };
    for_float!(dtype, E => {
        let stored: &mut [E] = bytemuck::cast_slice_mut(stored);
        stored.iter_mut().enumerate().for_each(|(i, stored)| *stored = E::narrow(number(i)));
    });
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
