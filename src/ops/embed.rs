use super::{blocks, launch, size};
use crate::for_dtype;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Gpu, Op};
use crate::vector::Element;

/// `x[t] = table[ids[t]]`
pub struct Embed {
    /// The tokens of the step. `[T]`
    pub ids: Slot<u32>,
    /// `[V, C]`
    pub table: Weight,
    /// Out: the residual stream. `[T, C]`
    pub x: Slot<f32>,
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cost(&self, _position: usize) -> Cost {
        let rows = self.ids.len() * self.table.cols * self.table.dtype.bytes();
        Cost { weight_bytes: rows as u64, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let width = self.table.cols;
        for_dtype!(self.table.dtype, W => {
            let table = memory.weight::<W>(self.table);
            let (ids, x) = memory.slots((self.ids, self.x));
            for (id, x) in ids.iter().zip(x.chunks_exact_mut(width)) {
                for (x, w) in x.iter_mut().zip(&table[*id as usize * width..]) {
                    *x = w.widen();
                }
            }
        });
    }

    fn launch(&self, gpu: &Gpu) -> Launch {
        let width = self.table.cols;
        assert!(width.is_multiple_of(8), "rows of {width} are not of whole 16-byte pieces");
        let pieces = self.ids.len() * width / 8;
        let arguments = kernel::Embed {
            ids: self.ids,
            table: self.table,
            x: self.x,
            tokens: size(self.ids.len()),
            width: size(width),
        }
        .arguments();
        launch(
            kernel::Embed::KERNEL,
            (self.table.dtype, 0),
            [blocks(pieces.div_ceil(256), 8 * gpu.multiprocessors), 1],
            0,
            arguments,
        )
    }
}
