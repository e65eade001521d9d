//! Plain numbers as ggml's blocks: which types can be made, of which weights, and how each is rounded,
//! exactly as `quantize_row_*_ref` (ggml-quants.c) does it.

use half::f16;

use crate::encoding::{Blocks, Encoding};

/// Columns of a block.
const COLUMNS: usize = 32;

/// What a model's matrices are made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantisation {
    Q8_0,
    Q4_0,
}

impl Quantisation {
    pub const ALL: [Self; 2] = [Self::Q8_0, Self::Q4_0];

    /// That of most matrices.
    pub const fn blocks(self) -> Blocks {
        match self {
            Self::Q8_0 => Blocks::Q8_0,
            Self::Q4_0 => Blocks::Q4_0,
        }
    }

    /// What a tensor of this shape becomes, which is stored as `own`. Vectors stay as they are, and so do
    /// rows that are not of whole blocks. Beside four bits the LM head has eight, since each of its errors
    /// is one of a logit; `llama-quantize` gives it six, of a type that we do not make.
    pub fn of(self, shape: &[usize], own: Encoding, is_head: bool) -> Encoding {
        match shape {
            [_, columns] if columns.is_multiple_of(COLUMNS) => match is_head {
                true => Encoding::Blocks(Blocks::Q8_0),
                false => Encoding::Blocks(self.blocks()),
            },
            _ => own,
        }
    }
}

/// Rounds numbers to whole blocks.
///
/// # Errors
/// A number that is none, or too large to be rounded.
///
/// # Panics
/// When the blocks have more or fewer numbers, and of types that are no [`Quantisation`]'s.
pub fn quantise(blocks: Blocks, x: &[f32], bytes: &mut [u8]) -> Result<(), f32> {
    let (numbers, rest) = x.as_chunks();
    assert!(rest.is_empty() && numbers.len() * blocks.size().1 == bytes.len());
    match blocks {
        Blocks::Q8_0 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).try_for_each(|(x, b)| q8_0(x, b))
        }
        Blocks::Q4_0 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).try_for_each(|(x, b)| q4_0(x, b))
        }
        _ => panic!("{} is not made here", blocks.name()),
    }
}

/// The scale as it is stored, if that is a number.
fn stored(scale: f32, largest: f32) -> Result<[u8; 2], f32> {
    let scale = f16::from_f32(scale);
    if scale.is_finite() { Ok(scale.to_le_bytes()) } else { Err(largest) }
}

/// Or zero. The stored scale has been rounded, this one has not.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// That of the largest magnitude, and the first of several.
fn largest(x: &[f32; COLUMNS]) -> f32 {
    let mut largest = 0.0f32;
    for x in x {
        if x.is_nan() || x.abs() > largest.abs() {
            largest = *x;
        }
        if largest.is_nan() {
            break;
        }
    }
    largest
}

/// To the nearest whole number, ties away from zero; `f32::round` calls a function where there is no
/// instruction for it.
fn rounded(number: f32) -> i32 {
    let whole = number as i32;
    whole + (2.0 * (number - whole as f32)) as i32
}

/// The largest is 127 or -127 scales; ties are rounded away from zero.
fn q8_0(x: &[f32; COLUMNS], block: &mut [u8; 34]) -> Result<(), f32> {
    let largest = largest(x);
    let scale = largest.abs() / 127.0;
    let factor = inverse(scale);
    block[..2].copy_from_slice(&stored(scale, largest)?);
    for (byte, x) in block[2..].iter_mut().zip(x) {
        *byte = rounded(x * factor) as i8 as u8;
    }
    Ok(())
}

/// The largest is -8 scales.
fn q4_0(x: &[f32; COLUMNS], block: &mut [u8; 18]) -> Result<(), f32> {
    let largest = largest(x);
    let scale = largest / -8.0;
    let factor = inverse(scale);
    block[..2].copy_from_slice(&stored(scale, largest)?);
    let four = |x: f32| ((x * factor + 8.5) as u8).min(15);
    let (low, high) = x.split_at(COLUMNS / 2);
    for ((byte, low), high) in block[2..].iter_mut().zip(low).zip(high) {
        *byte = four(*low) | four(*high) << 4;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &serde_json::Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes().as_chunks::<2>().0;
        let byte = |d: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
        digits.iter().map(byte).collect()
    }

    /// Those of `scripts/golden_blocks.py`.
    #[test]
    fn numbers_are_rounded_as_the_package_gguf_does() {
        let golden = include_bytes!("../tests/golden/quantised.json");
        let golden: serde_json::Value = serde_json::from_slice(golden).unwrap();
        let x: Vec<f32> = bytes(&golden["numbers"])
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        assert!(x.len() >= 64 * COLUMNS);
        for blocks in Quantisation::ALL.map(Quantisation::blocks) {
            let expected = bytes(&golden[blocks.name()]);
            let mut ours = vec![0xff; expected.len()];
            quantise(blocks, &x, &mut ours).unwrap();
            assert!(ours == expected, "{}", blocks.name());
        }
    }

    #[test]
    fn what_is_no_number_is_not_rounded() {
        for blocks in Quantisation::ALL.map(Quantisation::blocks) {
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
                let mut x = [1.0; 3 * COLUMNS];
                x[COLUMNS + 5] = wrong;
                let mut made = vec![0; 3 * blocks.size().1];
                let found = quantise(blocks, &x, &mut made).unwrap_err();
                assert!(found == wrong || found.is_nan() && wrong.is_nan());
            }
        }
    }
}
