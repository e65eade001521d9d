//! ggml's types of blocks, one by one.

use half::f16;
use pulp::Simd;

use super::lanes::{Affine, Scaled, above, bytes, each, five_bits, four_bits, half, spread, word};
use super::{Coding, LANES, Lanes};
use crate::vector::Element;

/// Scale; 32 numbers of a byte.
#[derive(Debug, Clone, Copy)]
pub struct Q8_0;

impl Coding for Q8_0 {
    type Group = [Lanes; 2];
    type Block = [u8; 34];
    type Scales<S: Simd> = Scaled<S, 0>;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 34]) -> Scaled<S, 0> {
        Scaled { scale: half(simd, block, 0) }
    }

    #[inline(always)]
    fn group<S: Simd>(
        simd: S,
        block: &[u8; 34],
        scaled: &Scaled<S, 0>,
        _group: usize,
    ) -> [Lanes; 2] {
        let mut run = [[0.0; LANES]; 2];
        for side in 0..2 {
            for i in 0..LANES {
                run[side][i] = f32::from(block[2 + LANES * side + i] as i8);
            }
        }
        [each(simd, run[0], *scaled), each(simd, run[1], *scaled)]
    }
}

/// Scale; 32 numbers of four bits, the first half in the low ones, from -8 on.
#[derive(Debug, Clone, Copy)]
pub struct Q4_0;

impl Coding for Q4_0 {
    type Group = [Lanes; 2];
    type Block = [u8; 18];
    type Scales<S: Simd> = Scaled<S, 8>;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 18]) -> Scaled<S, 8> {
        Scaled { scale: half(simd, block, 0) }
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 18], law: &Scaled<S, 8>, _group: usize) -> [Lanes; 2] {
        let packed = bytes(block, 2);
        [four_bits(simd, packed, *law), four_bits(simd, above(packed), *law)]
    }
}

/// Scale and minimum; 32 numbers of four bits.
#[derive(Debug, Clone, Copy)]
pub struct Q4_1;

impl Coding for Q4_1 {
    type Group = [Lanes; 2];
    type Block = [u8; 20];
    type Scales<S: Simd> = Affine<S>;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 20]) -> Affine<S> {
        Affine { scale: half(simd, block, 0), least: half(simd, block, 2) }
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 20], law: &Affine<S>, _group: usize) -> [Lanes; 2] {
        let packed = bytes(block, 4);
        [four_bits(simd, packed, *law), four_bits(simd, above(packed), *law)]
    }
}

/// Scale; the fifth bits of 32 numbers, then the others, from -16 on.
#[derive(Debug, Clone, Copy)]
pub struct Q5_0;

impl Coding for Q5_0 {
    type Group = [Lanes; 2];
    type Block = [u8; 22];
    type Scales<S: Simd> = Scaled<S, 16>;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 22]) -> Scaled<S, 16> {
        Scaled { scale: half(simd, block, 0) }
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 22], law: &Scaled<S, 16>, _group: usize) -> [Lanes; 2] {
        let (packed, fifth) = (bytes(block, 6), word(block, 2));
        [
            five_bits(simd, packed, spread(simd, fifth as u16), *law),
            five_bits(simd, above(packed), spread(simd, (fifth >> LANES) as u16), *law),
        ]
    }
}

/// Scale and minimum; the fifth bits of 32 numbers, then the others.
#[derive(Debug, Clone, Copy)]
pub struct Q5_1;

impl Coding for Q5_1 {
    type Group = [Lanes; 2];
    type Block = [u8; 24];
    type Scales<S: Simd> = Affine<S>;
    const GROUPS: usize = 1;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 24]) -> Affine<S> {
        Affine { scale: half(simd, block, 0), least: half(simd, block, 2) }
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 24], law: &Affine<S>, _group: usize) -> [Lanes; 2] {
        let (packed, fifth) = (bytes(block, 8), word(block, 4));
        [
            five_bits(simd, packed, spread(simd, fifth as u16), *law),
            five_bits(simd, above(packed), spread(simd, (fifth >> LANES) as u16), *law),
        ]
    }
}

/// [`six_bits`]; 256 numbers of four bits: 32 in the low ones of a group's bytes, then 32 in the high ones.
#[derive(Debug, Clone, Copy)]
pub struct Q4K;

impl Coding for Q4K {
    type Block = [u8; 144];
    type Scales<S: Simd> = Lanes;
    type Group = [Lanes; 4];
    const GROUPS: usize = 4;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 144]) -> Lanes {
        six_bits(simd, block)
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 144], scales: &Lanes, group: usize) -> [Lanes; 4] {
        let [low, high] = of_group(simd, scales, group);
        let (first, second) = (bytes(block, 16 + 32 * group), bytes(block, 32 + 32 * group));
        [
            four_bits(simd, first, low),
            four_bits(simd, second, low),
            four_bits(simd, above(first), high),
            four_bits(simd, above(second), high),
        ]
    }
}

/// [`six_bits`]; the fifth bits of 256 numbers, a byte for one of each 32; the others as of [`Q4K`].
#[derive(Debug, Clone, Copy)]
pub struct Q5K;

impl Coding for Q5K {
    type Block = [u8; 176];
    type Scales<S: Simd> = Lanes;
    type Group = [Lanes; 4];
    const GROUPS: usize = 4;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 176]) -> Lanes {
        six_bits(simd, block)
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 176], scales: &Lanes, group: usize) -> [Lanes; 4] {
        let laws = of_group(simd, scales, group);
        let mut numbers = [[0.0; LANES]; 4];
        for side in 0..2 {
            let packed = bytes(block, 48 + 32 * group + LANES * side);
            let high = bytes(block, 16 + LANES * side);
            let [mut of_low, mut of_high] = [[0; LANES]; 2];
            for i in 0..LANES {
                let bits = high[i] >> (2 * group);
                (of_low[i], of_high[i]) = ((bits & 1) << 4, (bits & 2) << 3);
            }
            numbers[side] = five_bits(simd, packed, of_low, laws[0]);
            numbers[2 + side] = five_bits(simd, above(packed), of_high, laws[1]);
        }
        numbers
    }
}

/// 256 numbers of six bits, from -32 on: the low four, then the high two; a scale of a byte for each 16; and
/// one for all. A group's low bits are in 64 bytes, those of its first half in the low ones; the high bits in
/// 32 bytes, two of each for a quarter.
#[derive(Debug, Clone, Copy)]
pub struct Q6K;

impl Coding for Q6K {
    type Block = [u8; 210];
    type Scales<S: Simd> = Lanes;
    type Group = [Lanes; 8];
    const GROUPS: usize = 2;

    #[inline(always)]
    fn scales<S: Simd>(simd: S, block: &[u8; 210]) -> Lanes {
        let mut scales = [0.0; LANES];
        for i in 0..LANES {
            scales[i] = f32::from(block[192 + i] as i8);
        }
        each(simd, scales, Scaled::<S, 0> { scale: half(simd, block, 208) })
    }

    #[inline(always)]
    fn group<S: Simd>(simd: S, block: &[u8; 210], scales: &Lanes, group: usize) -> [Lanes; 8] {
        let packed = &block[64 * group..][..64];
        let (low, high) = packed.split_at(32);
        let bits = &block[128 + 32 * group..][..32];
        let scales = &scales[8 * group..][..8];
        let quarters = [
            quarter::<0, 0>(low, bits),
            quarter::<0, 2>(high, bits),
            quarter::<4, 4>(low, bits),
            quarter::<4, 6>(high, bits),
        ];
        let mut numbers = [[0.0; LANES]; 8];
        for i in 0..8 {
            let quarter = &quarters[i / 2][LANES * (i % 2)..][..LANES];
            for lane in 0..LANES {
                numbers[i][lane] = f32::from(quarter[lane]);
            }
            let scale = simd.splat_f32s(scales[i]);
            numbers[i] = each(simd, numbers[i], Scaled::<S, 0> { scale });
        }
        numbers
    }
}

/// The numbers of six bits whose low ones and whose high ones begin at these bits. As bytes, of which a
/// register has more, as long as that is possible.
#[inline(always)]
fn quarter<const LOW: u32, const HIGH: u32>(low: &[u8], high: &[u8]) -> [i8; 32] {
    let mut numbers = [0; 32];
    for i in 0..32 {
        numbers[i] = (low[i] >> LOW & 15 | (high[i] >> HIGH & 3) << 4) as i8 - 32;
    }
    numbers
}

/// Of [`six_bits`] those of a group's low bits, and of its high ones.
#[inline(always)]
fn of_group<S: Simd>(simd: S, scales: &Lanes, group: usize) -> [Affine<S>; 2] {
    let (scales, least) = scales.split_at(LANES / 2);
    let (scales, least) = (&scales[2 * group..][..2], &least[2 * group..][..2]);
    [
        Affine { scale: simd.splat_f32s(scales[0]), least: simd.splat_f32s(least[0]) },
        Affine { scale: simd.splat_f32s(scales[1]), least: simd.splat_f32s(least[1]) },
    ]
}

/// Of each 32 numbers the scale, then of each the minimum, negative: six bits, of the first four in the low
/// ones of twelve bytes, of the others in what is left of them; an f16 for all scales, one for all minima.
#[inline(always)]
fn six_bits<S: Simd>(simd: S, block: &[u8]) -> Lanes {
    let (a, b, c) = (word(block, 4), word(block, 8), word(block, 12));
    let two = |low: u32, high: u32| u64::from(low & 0x3f3f_3f3f) | u64::from(high) << 32;
    let rest = |four: u32, two: u32| four & 0x0f0f_0f0f | two >> 2 & 0x3030_3030;
    let packed = [two(a, rest(c, a)), two(b, rest(c >> 4, b))].map(u64::to_le_bytes);
    let packed: &[u8; LANES] = bytemuck::cast_ref(&packed);
    let mut scales = [0.0; LANES];
    for i in 0..LANES {
        scales[i] = f32::from(packed[i]);
    }
    // Half of the lanes of the one, half of the other, negative.
    let both = word(block, 0);
    let mut halves = [f16::from_bits(both as u16); LANES];
    halves[LANES / 2..].fill(f16::from_bits((both >> 16) as u16 ^ 0x8000));
    let factors = f16::widen_lanes(simd, &halves);
    for i in 0..LANES {
        scales[i] *= factors[i];
    }
    scales
}
