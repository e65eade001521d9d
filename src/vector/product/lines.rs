//! A task's rows as tiles take them: some at a time, slice by slice.

use std::slice::from_ref;

use bytemuck::Pod;
use pulp::{Simd, WithSimd};

use super::Rows;
use super::advance::{Stored, Sums, Wide, Widening, advance, steps_of, tail_of};
use crate::encoding::Blocks;
use crate::for_blocks;
use crate::vector::blocks::Coding;
use crate::vector::steps::{Steps, step_len};
use crate::vector::{Element, Lanes};

/// Rows of one type. All of its functions are `#[inline(always)]`.
pub trait TileRows: Copy {
    /// What products take for their elements.
    type Element: Pod;

    fn count(self) -> usize;

    /// Adds to the sums of these rows the steps from `from` on, as many as `x` has. In `wide` there is room
    /// for that.
    fn advance<K: Steps<Element = Self::Element>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    );

    /// As [`Self::advance`], and leaves the rows' steps as lanes there.
    fn advance_and_keep<
        K: Steps<Element = Self::Element>,
        const P: usize,
        const R: usize,
        const U: usize,
    >(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    );
}

/// Plain numbers of one type.
#[derive(Clone, Copy)]
pub struct Plain<'a, W> {
    elements: &'a [W],
    width: usize,
    stride: usize,
}

impl<'a, W: Element> Plain<'a, W> {
    pub fn of(rows: Rows<'a>) -> Self {
        assert_eq!(rows.encoding, W::FLOAT.into());
        let elements = bytemuck::cast_slice(rows.bytes);
        Self { elements, width: rows.width, stride: rows.stride }
    }

    #[inline(always)]
    pub fn row(self, i: usize) -> &'a [W] {
        &self.elements[i * self.stride..][..self.width]
    }

    #[inline(always)]
    fn rows<const R: usize>(self, rows: [usize; R]) -> [&'a [W]; R] {
        let mut lines: [&[W]; R] = [&[]; R];
        for (line, row) in lines.iter_mut().zip(rows) {
            *line = self.row(row);
        }
        lines
    }

    /// Where the last whole one of these steps ends.
    #[inline(always)]
    fn whole<K: Steps>(self, from: usize, to: usize) -> usize {
        (self.width / step_len::<K>()).clamp(from, to)
    }
}

impl<W: Element> TileRows for Plain<'_, W> {
    type Element = W;

    #[inline(always)]
    fn count(self) -> usize {
        self.elements.len().div_ceil(self.stride)
    }

    #[inline(always)]
    fn advance<K: Steps<Element = W>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        _wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        let lines = self.rows(rows);
        let whole = self.whole::<K>(from, from + x.len());
        let (x, last) = x.split_at(whole - from);
        advance(kind, &mut Stored(steps_of::<K, R>(lines, from, whole)), x, sums);
        if !last.is_empty() {
            let tail = tail_of::<K, R>(lines);
            let rows = tail.each_ref().map(|tail| &tail[..]);
            advance(kind, &mut Stored(rows), last, sums);
        }
    }

    #[inline(always)]
    fn advance_and_keep<K: Steps<Element = W>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        let lines = self.rows(rows);
        let whole = self.whole::<K>(from, from + x.len());
        let ((x, last), (wide, last_wide)) =
            (x.split_at(whole - from), wide.split_at_mut(whole - from));
        let rows = steps_of::<K, R>(lines, from, whole);
        advance(kind, &mut Widening { rows, wide }, x, sums);
        if !last.is_empty() {
            let tail = tail_of::<K, R>(lines);
            let rows = tail.each_ref().map(|tail| &tail[..]);
            advance(kind, &mut Widening { rows, wide: last_wide }, last, sums);
        }
    }
}

/// Rows in blocks. With one token their numbers are made in registers, with more they are made once.
#[derive(Clone, Copy)]
pub struct Coded<'a> {
    blocks: Blocks,
    bytes: &'a [u8],
    /// Of a row, and from the start of one to that of the next.
    row_bytes: [usize; 2],
}

impl<'a> Coded<'a> {
    pub fn of(blocks: Blocks, rows: Rows<'a>) -> Self {
        let row_bytes = [rows.width, rows.stride].map(|columns| rows.encoding.row_bytes(columns));
        Self { blocks, bytes: rows.bytes, row_bytes }
    }

    /// Of these rows the blocks of `steps` steps from `from` on.
    #[inline(always)]
    fn blocks<F: Coding, const R: usize>(
        self,
        rows: [usize; R],
        from: usize,
        steps: usize,
    ) -> [&'a [F::Block]; R] {
        let [row_bytes, stride] = self.row_bytes;
        let mut lines: [&[F::Block]; R] = [&[]; R];
        for (line, row) in lines.iter_mut().zip(rows) {
            let blocks = bytemuck::cast_slice(&self.bytes[row * stride..][..row_bytes]);
            *line = &blocks[from / of_block::<F>()..(from + steps) / of_block::<F>()];
        }
        lines
    }

    #[inline(always)]
    fn advance_in_registers<
        F: Coding,
        K: Steps<Element = f32>,
        const P: usize,
        const R: usize,
        const U: usize,
    >(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        let lines = self.blocks::<F, R>(rows, from, x.len());
        let mut lanes = *sums;
        for (i, x) in x.chunks_exact(of_block::<F>()).enumerate() {
            let mut scales = [F::scales(kind.simd(), &lines[0][i]); R];
            for r in 1..R {
                scales[r] = F::scales(kind.simd(), &lines[r][i]);
            }
            for (group, x) in x.chunks_exact(of_group::<F>()).enumerate() {
                for r in 0..R {
                    let numbers = F::group(kind.simd(), &lines[r][i], &scales[r], group);
                    let numbers: &[Lanes] = bytemuck::cast_slice(from_ref(&numbers));
                    for (numbers, x) in numbers.iter().zip(x) {
                        for t in 0..U {
                            let (a, b) = (bytemuck::cast(*numbers), bytemuck::cast(x[t]));
                            kind.mul_add(a, b, &mut lanes[t][r]);
                        }
                    }
                }
            }
        }
        *sums = lanes;
    }
}

/// Steps of a group.
const fn of_group<F: Coding>() -> usize {
    size_of::<F::Group>() / size_of::<Lanes>()
}

/// Steps of a block.
const fn of_block<F: Coding>() -> usize {
    F::GROUPS * of_group::<F>()
}

/// Some rows' steps from `from` on, as many as there are in `wide`. A function of its own for each
/// instruction set, not a part of all that need it.
struct Make<'a, 'b, const R: usize> {
    coded: Coded<'a>,
    rows: [usize; R],
    from: usize,
    wide: &'b mut [[Lanes; R]],
}

impl<const R: usize> WithSimd for Make<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_blocks!(self.coded.blocks, F => self.of_coding::<S, F>(simd));
    }
}

impl<const R: usize> Make<'_, '_, R> {
    #[inline(always)]
    fn of_coding<S: Simd, F: Coding>(self, simd: S) {
        let lines = self.coded.blocks::<F, R>(self.rows, self.from, self.wide.len());
        for (i, wide) in self.wide.chunks_exact_mut(of_block::<F>()).enumerate() {
            for r in 0..R {
                let scales = F::scales(simd, &lines[r][i]);
                for (group, wide) in wide.chunks_exact_mut(of_group::<F>()).enumerate() {
                    let numbers = F::group(simd, &lines[r][i], &scales, group);
                    let numbers: &[Lanes] = bytemuck::cast_slice(from_ref(&numbers));
                    for (wide, numbers) in wide.iter_mut().zip(numbers) {
                        wide[r] = *numbers;
                    }
                }
            }
        }
    }
}

impl TileRows for Coded<'_> {
    type Element = f32;

    #[inline(always)]
    fn count(self) -> usize {
        self.bytes.len().div_ceil(self.row_bytes[1])
    }

    #[inline(always)]
    fn advance<K: Steps<Element = f32>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        if const { U > 1 } {
            return self.advance_and_keep(kind, rows, from, x, wide, sums);
        }
        for_blocks!(self.blocks, F => {
            self.advance_in_registers::<F, K, P, R, U>(kind, rows, from, x, sums);
        });
    }

    #[inline(always)]
    fn advance_and_keep<K: Steps<Element = f32>, const P: usize, const R: usize, const U: usize>(
        self,
        kind: K,
        rows: [usize; R],
        from: usize,
        x: &[[Lanes; U]],
        wide: &mut [[Lanes; R]],
        sums: &mut Sums<K, P, R, U>,
    ) {
        kind.simd().vectorize(Make { coded: self, rows, from, wide: &mut *wide });
        advance(kind, &mut Wide(wide), x, sums);
    }
}
