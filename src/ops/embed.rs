use crate::for_dtype;
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op};
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
}
