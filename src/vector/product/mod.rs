//! Matrix products: a weight's rows with one token, with a few, or with many.
//!
//! Weights are read where they lie. Inputs are packed first: [`Tile`]-wide panels of tokens, so that a
//! step of a tile reads one run of memory, whatever the width.

mod advance;
mod lines;
mod queue;
mod scaled;
mod tile;

use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use super::pairs::flushed;
use super::sums::SLICE;
use super::{Element, LANES, Lanes, SET, Set, dequantise, scale_e4m3, widened_in};
use crate::checkpoint::Checkpoint;
use crate::encoding::{Encoding, Float};
use crate::for_float;
use crate::memory::{Activation, Scratch, Weight};
use lines::Plain;
use queue::{Queue, share};
use tile::{BLOCK, WORKER_LANES, panel_tokens, task};

/// The rows of a weight `[N, K]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    encoding: Encoding,
    /// From the first element of the first row to the last of the last.
    bytes: &'a [u8],
    /// K
    width: usize,
    /// Columns from the start of a row to that of the next.
    stride: usize,
    /// Of each row, where the encoding has them.
    scales: &'a [f32],
}

impl<'a> Rows<'a> {
    pub fn new(encoding: Encoding, bytes: &'a [u8], width: usize, stride: usize) -> Self {
        assert!(0 < width && width <= stride, "rows of {width} elements, {stride} apart");
        let rows = Self { encoding, bytes, width, stride, scales: &[] };
        let before = rows.count().saturating_sub(1) * encoding.row_bytes(stride);
        let least = before + encoding.row_bytes(width);
        assert!(bytes.len() >= least, "{} bytes of {} rows", bytes.len(), rows.count());
        rows
    }

    /// Those of `weight`, where they lie in the weight region.
    pub fn of(region: &'a Checkpoint, weight: Weight) -> Self {
        let rows = Self::new(weight.encoding, weight.span(region), weight.cols, weight.stride);
        match weight.encoding {
            Encoding::E4m3 => {
                let scales = region.scales(weight.offset, weight.rows, weight.stride_bytes());
                Self { scales, ..rows }
            }
            Encoding::Plain(_) | Encoding::Blocks(_) => rows,
        }
    }

    /// Row `row` as f32 into `x`, `[K]`.
    pub fn widen(self, row: usize, x: &mut [f32]) {
        match self.encoding {
            Encoding::Plain(float) => for_float!(float, W => {
                let stored = Plain::<W>::of(self).row(row);
                x.iter_mut().zip(stored).for_each(|(x, w)| *x = w.widen());
            }),
            Encoding::Blocks(blocks) => {
                let [stride, width] =
                    [self.stride, self.width].map(|cols| self.encoding.row_bytes(cols));
                dequantise(blocks, &self.bytes[row * stride..][..width], x);
            }
            Encoding::E4m3 => {
                let numbers = &self.bytes[row * self.stride..][..self.width];
                scale_e4m3(numbers, self.scales[row], x);
            }
        }
    }

    /// N
    fn count(self) -> usize {
        self.bytes.len().div_ceil(self.encoding.row_bytes(self.stride))
    }

    /// Splits off the first `count` rows.
    fn take(&mut self, count: usize) -> Self {
        let at = (count * self.encoding.row_bytes(self.stride)).min(self.bytes.len());
        let (bytes, rest) = self.bytes.split_at(at);
        self.bytes = rest;
        let (scales, rest) = self.scales.split_at(count.min(self.scales.len()));
        self.scales = rest;
        Self { bytes, scales, ..*self }
    }
}

/// What products multiply weights with, packed for the tiles of an instruction set.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    set: Set,
    /// F32, or BF16: pairs of them, for weights of that type.
    dtype: Float,
    /// K
    width: usize,
    /// T
    tokens: usize,
    /// `[block][slice][panel][step][token of the panel]`; the last of each may be smaller. What is used
    /// together lies together, so that it does not compete for the same lines of a cache. Zeros fill up
    /// the last step.
    panels: &'a [Lanes],
}

impl<'a> Inputs<'a> {
    /// Bytes of scratch that they take at most.
    pub const fn bytes(tokens: usize, width: usize) -> usize {
        Scratch::bytes_of::<Lanes>(tokens.saturating_mul(width.div_ceil(LANES)))
    }

    /// `x`: `[T, K]`
    pub fn pack(x: &[f32], width: usize, scratch: &mut Scratch<'a>) -> Self {
        Self::pack_for(*SET, x, width, scratch)
    }

    pub(super) fn pack_for(set: Set, x: &[f32], width: usize, scratch: &mut Scratch<'a>) -> Self {
        let own: fn([f32; LANES]) -> _ = |step| step;
        Self::pack_by(own, set, Float::F32, x, width, scratch)
    }

    /// For weights in bf16, with which they are multiplied in pairs. `x`: `[T, K]`
    pub fn pack_pairs(x: &[bf16], width: usize, scratch: &mut Scratch<'a>) -> Self {
        Self::pack_pairs_for(*SET, x, width, scratch)
    }

    pub(super) fn pack_pairs_for(
        set: Set,
        x: &[bf16],
        width: usize,
        scratch: &mut Scratch<'a>,
    ) -> Self {
        Self::pack_by(flushed, set, Float::Bf16, x, width, scratch)
    }

    /// `x`, `[T, K]`, as products with `weights` take it: in pairs if all are bf16 and `x` has one term.
    /// Takes [`Self::bytes`] of scratch and those of [`super::wide_scratch`].
    pub fn of(x: Activation, stored: &[u8], weights: &[Weight], scratch: &mut Scratch<'a>) -> Self {
        let width = weights[0].cols;
        let all = weights.iter().all(|weight| weight.encoding == Float::Bf16.into());
        if all && x.dtype == Float::Bf16 && x.terms == 1 {
            return Self::pack_pairs(bytemuck::cast_slice(stored), width, scratch);
        }
        Self::pack(widened_in(x, stored, scratch), width, scratch)
    }

    fn pack_by<E: Pod + Send + Sync, const L: usize>(
        lanes_of: fn([E; L]) -> [E; L],
        set: Set,
        dtype: Float,
        x: &[E],
        width: usize,
        scratch: &mut Scratch<'a>,
    ) -> Self {
        /// Tokens by elements that are worth a task.
        const TASK: usize = 32 * 1024;
        let (tokens, steps) = (x.len() / width, width.div_ceil(L));
        let panel_width = panel_tokens(set.arch);
        assert_eq!(x.len(), tokens * width);
        let panels = scratch.take::<Lanes>(tokens * steps);
        let blocks = panels.par_chunks_mut(BLOCK * steps).zip(x.par_chunks(BLOCK * width));
        blocks.for_each(|(block, x)| {
            let tokens = x.len() / width;
            let slices = block.par_chunks_mut(tokens * SLICE).enumerate();
            slices.with_min_len((TASK / (tokens * SLICE * L)).max(1)).for_each(|(i, slice)| {
                let steps = slice.len() / tokens;
                for (t, x) in x.chunks_exact(width).enumerate() {
                    let panel = t / panel_width * panel_width;
                    let of_panel = panel_width.min(tokens - panel);
                    let x = &x[i * SLICE * L..width.min((i * SLICE + steps) * L)];
                    for (step, x) in x.chunks(L).enumerate() {
                        let mut elements = [E::zeroed(); L];
                        elements[..x.len()].copy_from_slice(x);
                        let at = panel * steps + step * of_panel + t - panel;
                        slice[at] = bytemuck::cast(lanes_of(elements));
                    }
                }
            });
        });
        Self { set, dtype, width, tokens, panels }
    }

    /// Of K.
    fn steps(self) -> usize {
        self.panels.len() / self.tokens.max(1)
    }
}

/// Bytes of scratch that [`matmul`] and the [`Inputs`] of its products take, on so many threads.
pub fn matmul_scratch(tokens: usize, width: usize, threads: usize) -> usize {
    let worker = Scratch::bytes_of::<Lanes>(WORKER_LANES);
    Inputs::bytes(tokens, width).saturating_add(threads * worker)
}

/// Puts products where they belong: a run of one token's outputs, and what each weight's rows came to.
pub type Store<'a, const M: usize> = &'a (dyn Fn(&mut [f32], [&[f32]; M]) + Sync);

/// `y = sum`
pub fn set(y: &mut [f32], [sum]: [&[f32]; 1]) {
    y.copy_from_slice(sum);
}

/// `y += sum`
pub fn add(y: &mut [f32], [sum]: [&[f32]; 1]) {
    y.iter_mut().zip(sum).for_each(|(y, sum)| *y += sum);
}

/// `store(y[t], [weight x[t] for each weight])`, for runs of rows, for each of the products: one or two
/// weights `[N, K]` and their `y`, `[T, N]`. All are one parallel region.
///
/// Tasks take rows, so that every weight is read once from memory however many tokens there are.
pub fn matmul<const M: usize, const N: usize>(
    products: [([Rows<'_>; M], &mut [f32]); N],
    inputs: Inputs<'_>,
    scratch: &mut Scratch<'_>,
    store: Store<'_, M>,
) {
    for (weights, y) in &products {
        assert!(weights.iter().all(|w| w.width == inputs.width), "products of one width");
        assert!(weights.iter().all(|w| w.count() * inputs.tokens == y.len()), "outputs of T x N");
    }
    let threads = rayon::current_num_threads();
    let workers = threads.min(scratch.bytes() / Scratch::bytes_of::<Lanes>(WORKER_LANES)).max(1);
    let queue = Queue::new(products, inputs.tokens, workers);
    let workers = workers.min(queue.tasks());
    let own = scratch.take::<Lanes>(workers * WORKER_LANES);
    share(queue, own.chunks_exact_mut(WORKER_LANES), |weights, columns, own| {
        task(weights, columns, inputs, own, store);
    });
}
