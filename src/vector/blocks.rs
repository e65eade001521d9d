//! Weights in ggml's blocks, as the numbers that they stand for.
//!
//! A block has small whole numbers and what they are multiplied with (and, of some types, lessened by),
//! exactly as llama.cpp's `dequantize_row_*` (ggml-quants.c) has them. Of each number at most one operation
//! rounds, so all machines agree.

use half::f16;
use pulp::{Simd, WithSimd};

use super::{Element, simd};
use crate::encoding::Blocks;

/// Writes the numbers of whole blocks.
///
/// # Panics
/// When the blocks have more or fewer.
pub fn dequantise(blocks: Blocks, bytes: &[u8], x: &mut [f32]) {
    let (columns, block_bytes) = blocks.size();
    assert_eq!(bytes.len() / block_bytes * columns, x.len());
    simd(Dequantise { blocks, bytes, x });
}

/// A macro, not a function that takes a function: that would not be compiled for the instruction set.
macro_rules! each {
    ($bytes:ident, $x:ident, $block:ident) => {
        for (bytes, x) in $bytes.as_chunks().0.iter().zip($x.as_chunks_mut().0) {
            $block(bytes, x);
        }
    };
}

struct Dequantise<'a> {
    blocks: Blocks,
    bytes: &'a [u8],
    x: &'a mut [f32],
}

impl WithSimd for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { blocks, bytes, x } = self;
        match blocks {
            Blocks::Q8_0 => each!(bytes, x, q8_0),
            Blocks::Q4_0 => each!(bytes, x, q4_0),
            Blocks::Q4_1 => each!(bytes, x, q4_1),
            Blocks::Q5_0 => each!(bytes, x, q5_0),
            Blocks::Q5_1 => each!(bytes, x, q5_1),
            Blocks::Q4K => each!(bytes, x, q4_k),
            Blocks::Q5K => each!(bytes, x, q5_k),
            Blocks::Q6K => each!(bytes, x, q6_k),
        }
    }
}

/// The f16 that begins at this byte.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]])).widen()
}

/// Scale; 32 numbers of a byte.
#[inline(always)]
fn q8_0(block: &[u8; 34], x: &mut [f32; 32]) {
    let scale = half(block, 0);
    for i in 0..32 {
        x[i] = f32::from(block[2 + i] as i8) * scale;
    }
}

/// Scale; 32 numbers of four bits, the first half in the low ones, from -8 on.
#[inline(always)]
fn q4_0(block: &[u8; 18], x: &mut [f32; 32]) {
    let scale = half(block, 0);
    let numbers = four_bits(&block[2..18]);
    for i in 0..32 {
        x[i] = (numbers[i] - 8.0) * scale;
    }
}

/// Scale and minimum; 32 numbers of four bits.
#[inline(always)]
fn q4_1(block: &[u8; 20], x: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let numbers = four_bits(&block[4..20]);
    for i in 0..32 {
        x[i] = numbers[i].mul_add(scale, least);
    }
}

/// Scale; the fifth bits of 32 numbers, then the others, from -16 on.
#[inline(always)]
fn q5_0(block: &[u8; 22], x: &mut [f32; 32]) {
    let scale = half(block, 0);
    let numbers = fifth_bits(&block[2..6], &block[6..22]);
    for i in 0..32 {
        x[i] = (numbers[i] - 16.0) * scale;
    }
}

/// Scale and minimum; the fifth bits of 32 numbers, then the others.
#[inline(always)]
fn q5_1(block: &[u8; 24], x: &mut [f32; 32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let numbers = fifth_bits(&block[4..8], &block[8..24]);
    for i in 0..32 {
        x[i] = numbers[i].mul_add(scale, least);
    }
}

/// Numbers of four bits, the first half in the low ones.
#[inline(always)]
fn four_bits(packed: &[u8]) -> [f32; 32] {
    let mut numbers = [0.0; 32];
    for i in 0..32 {
        let number = if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 };
        numbers[i] = i32::from(number) as f32;
    }
    numbers
}

/// Numbers of five bits, the highest ones apart.
#[inline(always)]
fn fifth_bits(high: &[u8], low: &[u8]) -> [f32; 32] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let mut numbers = [0.0; 32];
    for i in 0..32 {
        let low = if i < 16 { low[i] & 15 } else { low[i - 16] >> 4 };
        numbers[i] = (u32::from(low) | (high >> i & 1) << 4) as i32 as f32;
    }
    numbers
}

/// Of eight runs of 32 numbers, the scale and the minimum, six bits each: of the first four in the low bits
/// of twelve bytes, of the others in what is left of them.
#[inline(always)]
fn scales(block: &[u8]) -> [(f32, f32); 8] {
    let (scale, least) = (half(block, 0), half(block, 2));
    let packed = &block[4..16];
    let mut pairs = [(0.0, 0.0); 8];
    for i in 0..8 {
        let (a, b) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let (low, a, b) = (packed[i + 4], packed[i - 4] >> 6, packed[i] >> 6);
            (low & 15 | a << 4, low >> 4 | b << 4)
        };
        pairs[i] = (scale * f32::from(a), least * f32::from(b));
    }
    pairs
}

/// [`scales`]; 256 numbers of four bits, a run in the low ones and the next in the high ones.
#[inline(always)]
fn q4_k(block: &[u8; 144], x: &mut [f32; 256]) {
    let scales = scales(block);
    for two in 0..4 {
        let bytes = &block[16 + 32 * two..][..32];
        let [(scale, least), (high_scale, high_least)] = [scales[2 * two], scales[2 * two + 1]];
        let x = &mut x[64 * two..][..64];
        let low = four_bits(&bytes[..16]);
        let high = four_bits(&bytes[16..]);
        for i in 0..16 {
            x[i] = low[i].mul_add(scale, -least);
            x[16 + i] = high[i].mul_add(scale, -least);
            x[32 + i] = low[16 + i].mul_add(high_scale, -high_least);
            x[48 + i] = high[16 + i].mul_add(high_scale, -high_least);
        }
    }
}

/// [`scales`]; the fifth bits of 256 numbers, a byte for one of each run; the others as of [`q4_k`].
#[inline(always)]
fn q5_k(block: &[u8; 176], x: &mut [f32; 256]) {
    let scales = scales(block);
    let high = &block[16..48];
    for two in 0..4 {
        let bytes = &block[48 + 32 * two..][..32];
        let [(scale, least), (high_scale, high_least)] = [scales[2 * two], scales[2 * two + 1]];
        let x = &mut x[64 * two..][..64];
        for i in 0..32 {
            let number = bytes[i] & 15 | (high[i] >> (2 * two) & 1) << 4;
            x[i] = f32::from(number).mul_add(scale, -least);
        }
        for i in 0..32 {
            let number = bytes[i] >> 4 | (high[i] >> (2 * two + 1) & 1) << 4;
            x[32 + i] = f32::from(number).mul_add(high_scale, -high_least);
        }
    }
}

/// 256 numbers of six bits, from -32 on: the low four, then the high two; a scale of a byte for each 16; and
/// one for all.
#[inline(always)]
fn q6_k(block: &[u8; 210], x: &mut [f32; 256]) {
    let scale = half(block, 208);
    for side in 0..2 {
        let (low, high) = (&block[64 * side..][..64], &block[128 + 32 * side..][..32]);
        let scales = &block[192 + 8 * side..][..8];
        let x = &mut x[128 * side..][..128];
        for run in 0..4 {
            for i in 0..32 {
                let four = low[32 * (run % 2) + i] >> (4 * (run / 2)) & 15;
                let number = (four | (high[i] >> (2 * run) & 3) << 4) as i8 - 32;
                let of_run = scale * f32::from(scales[2 * run + i / 16] as i8);
                x[32 * run + i] = of_run * f32::from(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sets;
    use super::*;

    fn bytes(hex: &serde_json::Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes().as_chunks::<2>().0;
        let byte = |d: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
        digits.iter().map(byte).collect()
    }

    /// Those of `scripts/golden_blocks.py`.
    #[test]
    fn blocks_stand_for_what_the_package_gguf_says_in_every_instruction_set() {
        let golden = include_bytes!("../../tests/golden/blocks.json");
        let golden: serde_json::Value = serde_json::from_slice(golden).unwrap();
        for blocks in Blocks::ALL {
            let [stored, numbers] =
                ["blocks", "numbers"].map(|key| bytes(&golden[blocks.name()][key]));
            let expected: Vec<u32> =
                numbers.as_chunks().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect();
            assert!(expected.len() >= 6 * blocks.size().0);
            for set in sets() {
                let mut x = vec![f32::NAN; expected.len()];
                set.arch.dispatch(Dequantise { blocks, bytes: &stored, x: &mut x });
                let ours: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
                assert_eq!(ours, expected, "{} {}", blocks.name(), set.name());
            }
        }
    }
}
