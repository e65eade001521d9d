//! Tiles of 16-bit numbers in shared memory and the fragments that the tensor cores take from them.
//!
//! A row of a tile is a power of two of 16-byte chunks. They are stored swizzled: chunk c of row r
//! lies at place c ^ key(r), so that the eight rows which one step of ldmatrix reads at one column
//! fall into eight different groups of four banks, and so do the chunks that a quarter warp
//! fetches.
//!
//! Fragments of mma.m16n8k16 (lane l, g = l / 4, t = l % 4; a register holds two neighbouring k):
//!   A [16, 16]: a0 = (row g, k 2t), a1 = (g + 8, 2t), a2 = (g, 2t + 8), a3 = (g + 8, 2t + 8)
//!   B [16, 8]:  b0 = (k 2t, column g), b1 = (k 2t + 8, column g)
//!   C [16, 8]:  c0, c1 = (row g, columns 2t, 2t + 1), c2, c3 = (row g + 8, the same)
#pragma once
#include "lib/ptx.cuh"

// [ROWS, COLS] numbers of type E, row-major but for the swizzle.
template <class E, int ROWS, int COLS> struct Tile {
    static constexpr int CHUNKS = COLS / 8; // of a row
    static_assert(CHUNKS >= 4 && (CHUNKS & (CHUNKS - 1)) == 0, "rows of 4, 8, 16... chunks");

    uint4 chunks[ROWS * CHUNKS];

    // Rows of 64 bytes share the 128 bytes of all banks in pairs, so pairs share a key.
    static __device__ int key(int row) { return CHUNKS >= 8 ? row % 8 : row / 2 % 4; }

    __device__ uint4* chunk(int row, int column) {
        return &chunks[row * CHUNKS + (column ^ key(row))];
    }

    // The same for first + row + lane_row, column + lane_column where first and row are multiples
    // of 8 and column is even. What depends on the thread is found once; then a fragment's place is
    // one xor with its column and an offset by its row, both known to the compiler.
    __device__ uint4* chunk(int first, int row, int lane_row, int column, int lane_column) {
        const int place = (first + lane_row) * CHUNKS + (lane_column ^ key(lane_row));
        return &chunks[place ^ column] + row * CHUNKS;
    }
};

// Begins to copy a tile from matrices whose rows are `stride` numbers apart, with all THREADS
// threads of the block. As many rows as the threads copy at once come from each matrix in turn.
// What lies past the matrices' `rows` or the first `columns` numbers of a row (a multiple of 8) is
// not read and becomes zero.
template <int THREADS, int MATRICES, class E, int ROWS, int COLS>
__device__ void fetch(Tile<E, ROWS, COLS>& tile, const E* const (&matrices)[MATRICES],
                      uint32_t stride, uint32_t rows, uint32_t columns) {
    constexpr uint32_t CHUNKS = Tile<E, ROWS, COLS>::CHUNKS, AT_ONCE = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && ROWS % (AT_ONCE * MATRICES) == 0, "equal shares");
    const uint32_t column = threadIdx.x % CHUNKS;
    uint32_t row = threadIdx.x / CHUNKS;
    uint64_t place = uint64_t(row) * stride + column * 8;
    const bool inside = column * 8 < columns;
#pragma unroll
    for (int first = 0; first < ROWS; row += AT_ONCE, place += uint64_t(AT_ONCE) * stride)
#pragma unroll
        for (int matrix = 0; matrix < MATRICES; matrix++, first += AT_ONCE) {
            uint4* chunk = tile.chunk(first + threadIdx.x / CHUNKS, column);
            cp_async16(chunk, matrices[matrix] + place, inside && row < rows);
        }
}

// A: rows first + row.. + 16, chunks `column` and `column + 1`. Here and below `first` and `row`
// are multiples of 8, `column` is even, and all but `first` are known to the compiler.
template <class E, int ROWS, int COLS>
__device__ void load_a(uint32_t (&a)[4], Tile<E, ROWS, COLS>& tile, int first, int row,
                       int column) {
    const int lane = lane_id();
    ldmatrix_x4(a, tile.chunk(first, row, lane % 16, column, lane / 16));
}

// Two B side by side from a tile whose rows are B's columns: rows first + row.. + 16, chunks
// `column` and `column + 1`.
template <class E, int ROWS, int COLS>
__device__ void load_b(uint32_t (&left)[2], uint32_t (&right)[2], Tile<E, ROWS, COLS>& tile,
                       int first, int row, int column) {
    const int lane = lane_id();
    uint32_t r[4];
    ldmatrix_x4(r, tile.chunk(first, row, lane / 16 * 8 + lane % 8, column, lane / 8 % 2));
    left[0] = r[0], left[1] = r[1], right[0] = r[2], right[1] = r[3];
}

// Two B side by side from a tile whose rows are B's rows: rows `row`.. + 16, chunks `column` and
// `column + 1`.
template <class E, int ROWS, int COLS>
__device__ void load_b_trans(uint32_t (&left)[2], uint32_t (&right)[2], Tile<E, ROWS, COLS>& tile,
                             int row, int column) {
    const int lane = lane_id();
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile.chunk(0, row, lane % 16, column, lane / 16));
    left[0] = r[0], left[1] = r[1], right[0] = r[2], right[1] = r[3];
}
