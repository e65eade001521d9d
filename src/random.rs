//! Random numbers that need no state: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel
//! random numbers: as easy as 1, 2, 3" (SC 2011).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The random 128 bits at `counter` in the sequence that `key` selects.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [a, b] = [counter[0], counter[2]];
        let products =
            [u64::from(MULTIPLIERS[0]) * u64::from(a), u64::from(MULTIPLIERS[1]) * u64::from(b)];
        let [(high0, low0), (high1, low1)] = products.map(|p| ((p >> 32) as u32, p as u32));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The random 64 bits at `position` in the sequence of `seed`.
pub fn random(seed: u64, position: u64) -> u64 {
    let halves = |number: u64| [number as u32, (number >> 32) as u32];
    let [low, high] = halves(position);
    let random = philox([low, high, 0, 0], halves(seed));
    u64::from(random[0]) | u64::from(random[1]) << 32
}

/// `count` random ids below `vocab`.
pub fn random_ids(seed: u64, count: usize, vocab: usize) -> Vec<u32> {
    let id = |i| ((u128::from(random(seed, i)) * vocab as u128) >> 64) as u32;
    (0..count as u64).map(id).collect()
}

/// A seed that differs from call to call, of a length that people can type.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8) & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that the authors publish with their library Random123 (`kat_vectors`).
    #[test]
    fn published_vectors() {
        let zeros = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(philox([0; 4], [0; 2]), zeros);
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
        let digits_of_pi = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(counter, [0xa409_3822, 0x299f_31d0]), digits_of_pi);
    }

    #[test]
    fn all_bits_of_seed_and_position_count() {
        let numbers: std::collections::HashSet<u64> =
            (0..64).flat_map(|bit| [random(1 << bit, 0), random(0, 1 << bit)]).collect();
        assert_eq!(numbers.len(), 128);
    }
}
