//! Hopper's own functions; other GPUs have none of them.

use half::{bf16, f16};

use super::gpu::{box_of, is_hopper, run_on};
use super::{distinct, lanes};

#[test]
fn phases_of_a_barrier() {
    if !is_hopper() {
        return;
    }
    let heard = |phase| lanes(move |lane| distinct(31 - lane).wrapping_add(phase));
    let expected = [heard(0), heard(0), heard(1), heard(1)].concat();
    assert_eq!(run_on("phases", 1, 64, &lanes(distinct), 128), expected);
}

/// CUDA driver API, "CU_TENSOR_MAP_SWIZZLE_128B", drawn out by row: which chunk of 16 bytes lies where.
const SWIZZLE: [[usize; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 2, 1, 0, 7, 6, 5, 4],
    [4, 5, 6, 7, 0, 1, 2, 3],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 7, 4, 5, 2, 3, 0, 1],
    [7, 6, 5, 4, 3, 2, 1, 0],
];

#[test]
fn boxes_of_a_matrix() {
    if !is_hopper() {
        return;
    }
    let (rows, columns) = (21, 104);
    let matrix: Vec<u16> = (0..rows * columns).map(|i| i as u16 + 1).collect();
    for (row, column) in [(0, 0), (3, 8), (5, 40), (10, 64), (20, 96), (21, 0)] {
        let found = box_of(&matrix, columns as u64, row as u32, column as u32);
        for (at, found) in found.iter().enumerate() {
            let (r, place, i) = (at / 64, at / 8 % 8, at % 8);
            let (r, c) = (row + r, column + SWIZZLE[r % 8][place] * 8 + i);
            let inside = r < rows && c < columns;
            let expected = if inside { matrix[r * columns + c] } else { 0 };
            assert_eq!(*found, expected, "{at} of the box at {row}, {column}");
        }
    }
}

/// PTX ISA, "WGMMA .m64nNk16 register fragment layout for accumulator matrix D": row and column of d[j][i].
fn place(thread: usize, j: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + 8 * (i / 2), 8 * j + 2 * (lane % 4) + i % 2)
}

fn a(row: usize, k: usize) -> f32 {
    ((row * 31 + k * 17) % 13) as f32 - 6.0
}

fn b(column: usize, k: usize) -> f32 {
    ((k * 11 + column * 29) % 17) as f32 - 8.0
}

/// A matrix of `rows` and `columns` in 16 bits.
fn stored(
    (rows, columns): (usize, usize),
    of: fn(usize, usize) -> f32,
    half: fn(f32) -> u16,
) -> Vec<u32> {
    let half = |at: usize| u32::from(half(of(at / columns, at % columns)));
    (0..rows * columns / 2).map(|pair| half(2 * pair) | half(2 * pair + 1) << 16).collect()
}

/// That what was found is 64 rows and all columns of `first` + A B, over 32 of k.
fn assert_products(name: &str, found: &[u32], first: f32) {
    for (at, found) in found.iter().enumerate() {
        let (row, column) = place(at % 128, at / 512, at / 128 % 4);
        let expected = first + (0..32).map(|k| a(row, k) * b(column, k)).sum::<f32>();
        assert_eq!(f32::from_bits(*found), expected, "{name}: row {row}, column {column}");
    }
}

fn products(name: &str, columns: usize, half: fn(f32) -> u16) {
    let input = [stored((64, 32), a, half), stored((columns, 32), b, half)].concat();
    assert_products(name, &run_on(name, 1, 128, &input, 64 * columns), 0.0);
}

#[test]
fn products_of_a_warpgroup() {
    if is_hopper() {
        products("wide_products_of_f16", 256, |v| f16::from_f32(v).to_bits());
        products("wide_products_of_bf16", 256, |v| bf16::from_f32(v).to_bits());
        products("half_as_wide_products_of_f16", 128, |v| f16::from_f32(v).to_bits());
        products("half_as_wide_products_of_bf16", 128, |v| bf16::from_f32(v).to_bits());
    }
}

/// PTX ISA, "WGMMA .m64nNk16 register fragment layout for matrix A"; B lies N-major, in panels of 64 columns
/// (CUTLASS, `make_gmma_desc<Major::MN>`, 128 bytes: the leading dimension steps from panel to panel).
#[test]
fn products_of_a_warpgroup_from_registers() {
    if !is_hopper() {
        return;
    }
    let half = |v| f16::from_f32(v).to_bits();
    for (name, columns) in
        [("products_from_registers_64", 64), ("products_from_registers_128", 128)]
    {
        let by_rows = stored((32, columns), |k, column| b(column, k), half);
        let input = [stored((64, 32), a, half), by_rows].concat();
        assert_products(name, &run_on(name, 1, 128, &input, 64 * columns), 1.0);
    }
}

#[test]
fn barriers_of_some_warps() {
    if is_hopper() {
        let input: Vec<u32> = (0..64).map(distinct).collect();
        let heard = |round| lanes(move |lane| distinct(2 * (31 - lane) + round));
        let found = run_on("some_warps", 1, 96, &input, 64);
        assert_eq!(found, [heard(0), heard(1)].concat());
    }
}

#[test]
fn registers_move_and_addresses_count_bytes() {
    if is_hopper() {
        let moved = (0..384).map(|thread| distinct(thread % 32) + thread / 128);
        let expected: Vec<u32> = moved.chain([12; 384]).collect();
        assert_eq!(run_on("moved_registers", 1, 384, &lanes(distinct), 768), expected);
    }
}
