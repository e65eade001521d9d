use super::{blocks, launch, size};
use crate::case::{Case, Content, HALF, Judge, Numbers, Setup};
use crate::encoding::Float;
use crate::kernel::{self, Launch};
use crate::memory::{Memory, Slot, Weight};
use crate::op::{Cost, Op, Operands, Target};
use crate::vector::Rows;

/// `x[t] = table[ids[t] - first_id]`; zeros for tokens that are not in the table
pub struct Embed {
    /// The tokens of the step. `[T]`
    pub ids: Slot<u32>,
    /// A rank's rows of the whole table. `[V, C]`
    pub table: Weight,
    /// The token that its first row is of.
    pub first_id: u32,
    /// Out: the residual stream. `[T, C]`
    pub x: Slot<f32>,
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cost(&self, _position: usize) -> Cost {
        let rows = self.ids.len() * self.table.encoding.row_bytes(self.table.cols);
        Cost { weight_bytes: rows as u64, ..Cost::default() }
    }

    fn reference(&self, memory: &mut Memory<'_>) {
        let width = self.table.cols;
        let table = Rows::of(memory.weights, self.table);
        let (ids, x) = memory.slots((self.ids, self.x));
        for (id, x) in ids.iter().zip(x.chunks_exact_mut(width)) {
            match id.checked_sub(self.first_id).map(|row| row as usize) {
                Some(row) if row < self.table.rows => table.widen(row, x),
                _ => x.fill(0.0),
            }
        }
    }

    fn operands(&self) -> Operands {
        let input = vec![self.ids.len()];
        Operands { input, matrices: vec![self.table], norm: None }
    }

    fn launch(&self, target: &Target) -> Launch {
        let width = self.table.cols;
        assert!(width.is_multiple_of(8), "rows of {width} are not of whole 16-byte pieces");
        let pieces = self.ids.len() * width / 8;
        let arguments = kernel::Embed {
            ids: self.ids,
            table: self.table,
            x: self.x,
            tokens: size(self.ids.len()),
            width: size(width),
            rows: size(self.table.rows),
            first_id: self.first_id,
        }
        .arguments();
        launch(
            kernel::Embed::KERNEL,
            (self.table.encoding, 0),
            [blocks(pieces.div_ceil(256), 8 * target.multiprocessors), 1],
            0,
            arguments,
        )
    }
}

impl Embed {
    /// Both ends of the table, tokens more than once, more pieces than a grid has threads.
    pub fn cases() -> Vec<Case> {
        let sizes = [(1u32, 1, 8), (3, 5, 40), (7, 300, 264), (11, 1, 8192), (130, 600, 4096)];
        let cases = sizes.into_iter().flat_map(|size| HALF.map(|dtype| (size, dtype)));
        let firsts = [0, 0, 1, 2, 100]; // a part of the table
        let case =
            |(((vocab, tokens, width), dtype), first_id): (((_, u32, usize), Float), u32)| {
                let mut setup = Setup::new(Numbers::Real);
                let ids: Vec<u32> = (0..tokens).map(|t| (t * t + 1) % vocab).rev().collect();
                let op = Embed {
                    ids: setup.given("ids", &ids),
                    table: setup.weight(dtype, vocab as usize, width, Content::Real(1.0)),
                    first_id,
                    x: setup.written("x", &[ids.len(), width], Judge::Exact),
                };
                setup.case(format!("{} table [{vocab}, {width}], {tokens} ids", dtype.name()), op)
            };
        cases.zip(firsts.into_iter().flat_map(|first| [first; 2])).map(case).collect()
    }
}
