//! Small whole numbers of a block, as many as lanes, and what they stand for.

#[cfg(target_arch = "x86_64")]
use bytemuck::cast;
use half::f16;
use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;

#[cfg(target_arch = "x86_64")]
use crate::vector::token;
use crate::vector::{Element, LANES, Lanes};

/// The f16 that begins at this byte, in all of a register.
#[inline(always)]
pub fn half<S: Simd>(simd: S, block: &[u8], at: usize) -> S::f32s {
    let number = f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]]));
    let wide = f16::widen_lanes(simd, &[number; LANES]);
    S::as_simd_f32s(&wide).0[0]
}

/// The u32 that begins at this byte.
#[inline(always)]
pub fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// As many bytes as lanes.
#[inline(always)]
pub fn bytes(block: &[u8], at: usize) -> [u32; LANES] {
    let mut bytes = [0; LANES];
    for (wide, byte) in bytes.iter_mut().zip(&block[at..at + LANES]) {
        *wide = u32::from(*byte);
    }
    bytes
}

/// Without their lowest four bits.
#[inline(always)]
pub fn above(mut numbers: [u32; LANES]) -> [u32; LANES] {
    for number in &mut numbers {
        *number >>= 4;
    }
    numbers
}

/// 16 where a bit is one, the lowest first.
#[inline(always)]
pub fn spread<S: Simd>(simd: S, bits: u16) -> [u32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = token::<S, V4>(simd) {
        return cast(v4.avx512f._mm512_maskz_set1_epi32(bits, 16));
    }
    let _ = simd;
    let mut lanes = [0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = (u32::from(bits) >> i & 1) << 4;
    }
    lanes
}

/// What a small whole number stands for.
pub trait Law<S: Simd>: Copy {
    fn of(self, simd: S, numbers: S::f32s) -> S::f32s;
}

/// `(number - FROM) scale`
#[derive(Debug, Clone, Copy)]
pub struct Scaled<S: Simd, const FROM: u8> {
    pub scale: S::f32s,
}

impl<S: Simd, const FROM: u8> Law<S> for Scaled<S, FROM> {
    #[inline(always)]
    fn of(self, simd: S, numbers: S::f32s) -> S::f32s {
        simd.mul_f32s(simd.sub_f32s(numbers, simd.splat_f32s(f32::from(FROM))), self.scale)
    }
}

/// `number scale + least`, rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Affine<S: Simd> {
    pub scale: S::f32s,
    pub least: S::f32s,
}

impl<S: Simd> Law<S> for Affine<S> {
    #[inline(always)]
    fn of(self, simd: S, numbers: S::f32s) -> S::f32s {
        simd.mul_add_f32s(numbers, self.scale, self.least)
    }
}

#[inline(always)]
pub fn each<S: Simd>(simd: S, mut numbers: Lanes, law: impl Law<S>) -> Lanes {
    for part in S::as_mut_simd_f32s(&mut numbers).0 {
        *part = law.of(simd, *part);
    }
    numbers
}

/// All that four bits can be, and all that five can with the fifth.
const FOUR_BITS: [Lanes; 2] = {
    let mut all = [[0.0; LANES]; 2];
    let mut i = 0;
    while i < 2 * LANES {
        all[i / LANES][i % LANES] = i as f32;
        i += 1;
    }
    all
};

/// What the lowest four bits of numbers stand for. In AVX-512 a register holds all that these can be, and
/// one instruction looks 16 of them up.
#[inline(always)]
pub fn four_bits<S: Simd>(simd: S, numbers: [u32; LANES], law: impl Law<S>) -> Lanes {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = token::<S, V4>(simd) {
        let all = each(simd, FOUR_BITS[0], law);
        return cast(v4.avx512f._mm512_permutexvar_ps(cast(numbers), cast(all)));
    }
    let mut wide = [0.0; LANES];
    for i in 0..LANES {
        wide[i] = (numbers[i] & 15) as i32 as f32;
    }
    each(simd, wide, law)
}

/// As [`four_bits`], with a fifth bit: 16 or 0.
#[inline(always)]
pub fn five_bits<S: Simd>(
    simd: S,
    numbers: [u32; LANES],
    fifth: [u32; LANES],
    law: impl Law<S>,
) -> Lanes {
    let mut index = [0; LANES];
    for i in 0..LANES {
        index[i] = numbers[i] & 15 | fifth[i];
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = token::<S, V4>(simd) {
        let [low, high] = [each(simd, FOUR_BITS[0], law), each(simd, FOUR_BITS[1], law)];
        return cast(v4.avx512f._mm512_permutex2var_ps(cast(low), cast(index), cast(high)));
    }
    let mut wide = [0.0; LANES];
    for i in 0..LANES {
        wide[i] = index[i] as i32 as f32;
    }
    each(simd, wide, law)
}
