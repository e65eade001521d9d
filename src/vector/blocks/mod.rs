//! Weights in ggml's blocks, as the numbers that they stand for.
//!
//! A block has small whole numbers and what they are multiplied with (and, of some types, lessened by),
//! exactly as llama.cpp's `dequantize_row_*` (ggml-quants.c) has them. Of each number at most one operation
//! rounds, so all machines agree, and so do all ways to come by it: [`Coding`] is the only one.

mod formats;
mod lanes;

use bytemuck::Pod;
use pulp::{Simd, WithSimd};

pub use formats::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

use super::{LANES, Lanes, simd};
use crate::encoding::Blocks;

/// One of ggml's types. All of its functions are `#[inline(always)]`: they are compiled for the instruction
/// set of whoever calls them.
pub trait Coding: Copy + Send + Sync + 'static {
    /// Its bytes.
    type Block: Pod + Send + Sync;
    /// What all of a block's groups need: unpacked once.
    type Scales<S: Simd>: Copy;
    /// Numbers that are made at once: several of `Lanes`.
    type Group: Pod;
    /// Of a block.
    const GROUPS: usize;

    fn scales<S: Simd>(simd: S, block: &Self::Block) -> Self::Scales<S>;

    fn group<S: Simd>(
        simd: S,
        block: &Self::Block,
        scales: &Self::Scales<S>,
        group: usize,
    ) -> Self::Group;
}

/// Calls `$body` with `$format` bound to the type that `$blocks` names.
#[macro_export]
macro_rules! for_blocks {
    ($blocks:expr, $format:ident => $body:expr) => {
        $crate::for_blocks!(@ $blocks, $format, $body; Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4K Q5K Q6K)
    };
    (@ $blocks:expr, $format:ident, $body:expr; $($name:ident)+) => {
        match $blocks {
            $($crate::encoding::Blocks::$name => {
                type $format = $crate::vector::blocks::$name;
                $body
            })+
        }
    };
}

/// Writes the numbers of whole blocks.
///
/// # Panics
/// When the blocks have more or fewer.
pub fn dequantise(blocks: Blocks, bytes: &[u8], x: &mut [f32]) {
    let (columns, block_bytes) = blocks.size();
    assert_eq!(bytes.len() / block_bytes * columns, x.len());
    simd(Dequantise { blocks, bytes, x });
}

struct Dequantise<'a> {
    blocks: Blocks,
    bytes: &'a [u8],
    x: &'a mut [f32],
}

impl WithSimd for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_blocks!(self.blocks, F => numbers::<S, F>(simd, self.bytes, self.x));
    }
}

#[inline(always)]
fn numbers<S: Simd, F: Coding>(simd: S, bytes: &[u8], x: &mut [f32]) {
    let blocks: &[F::Block] = bytemuck::cast_slice(bytes);
    let groups: &mut [F::Group] = bytemuck::cast_slice_mut(x);
    for (block, groups) in blocks.iter().zip(groups.chunks_exact_mut(F::GROUPS)) {
        let scales = F::scales(simd, block);
        for (i, group) in groups.iter_mut().enumerate() {
            *group = F::group(simd, block, &scales, i);
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
        let golden = include_bytes!("../../../tests/golden/blocks.json");
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
