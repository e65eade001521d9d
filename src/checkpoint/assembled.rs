//! Matrices that are not in a file as they are to be read: queries and keys, whose rows have Meta's order,
//! and what lies in parts in the files of several ranks.
//!
//! Rotary embeddings turn pairs of a head's rows: with Meta, and in GGUF, rows 2i and 2i + 1; with
//! `transformers`, and everywhere here, rows i and i + D/2.

use std::sync::Arc;

use bytemuck::allocation::try_zeroed_slice_box;

use crate::error::{Error, Result};

/// A matrix that is put together where it is read.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// Where each part begins in the weight region, row after row of parts.
    parts: Vec<usize>,
    /// Parts that lie beside each other: all or one. The others have other rows.
    beside: usize,
    rows: usize,
    row_bytes: usize,
    /// D, where the rows of heads have Meta's order.
    head_dim: Option<usize>,
    /// All of it, once it has been made.
    pub made: Option<Arc<[u64]>>,
}

impl Assembled {
    /// Parts of so many rows in all, one beneath the other.
    pub fn of_rows(parts: Vec<usize>, rows: usize, row_bytes: usize) -> Self {
        Self { parts, beside: 1, rows, row_bytes, head_dim: None, made: None }
    }

    /// Parts of rows of so many bytes in all, one beside the other.
    pub fn of_columns(parts: Vec<usize>, rows: usize, row_bytes: usize) -> Self {
        Self { beside: parts.len(), ..Self::of_rows(parts, rows, row_bytes) }
    }

    /// The same, where the rows of heads of `head_dim` are in Meta's order.
    ///
    /// # Errors
    /// Rows that are not of whole heads.
    pub fn turned(self, head_dim: usize) -> std::result::Result<Self, String> {
        if self.rows.is_multiple_of(head_dim) {
            return Ok(Self { head_dim: Some(head_dim), ..self });
        }
        let rows = self.rows;
        Err(format!("queries or keys have {rows} rows, which are not heads of {head_dim}"))
    }

    /// Of all rows.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// A place in the weight region that has some of it.
    pub fn place(&self) -> usize {
        self.parts[0]
    }

    /// Which row of the files is the one of this number.
    fn row(&self, number: usize) -> usize {
        let Some(head_dim) = self.head_dim else { return number };
        let (head, row) = (number / head_dim, number % head_dim);
        let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
        head * head_dim + 2 * pair + half
    }

    /// Where byte `at` lies in the weight region, and how many bytes there are up to the end of the part's
    /// row.
    fn run(&self, at: usize) -> (usize, usize) {
        let part_rows = self.rows / (self.parts.len() / self.beside);
        let part_bytes = self.row_bytes / self.beside;
        let (row, column) = (self.row(at / self.row_bytes), at % self.row_bytes);
        let part = self.parts[row / part_rows * self.beside + column / part_bytes];
        let within = column % part_bytes;
        (part + row % part_rows * part_bytes + within, part_bytes - within)
    }

    /// The bytes from `at` on, by `read`, which reads from a place of the weight region.
    pub fn read(
        &self,
        mut at: usize,
        mut into: &mut [u8],
        read: impl Fn(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        while !into.is_empty() {
            let (place, bytes) = self.run(at);
            let (some, rest) = into.split_at_mut(bytes.min(into.len()));
            read(place, some)?;
            (at, into) = (at + some.len(), rest);
        }
        Ok(())
    }

    /// Makes all of it, if it has not been made.
    ///
    /// # Errors
    /// What `read` says; when the system refuses the memory.
    pub fn make(&mut self, read: impl Fn(usize, &mut [u8]) -> Result<()>) -> Result<()> {
        if self.made.is_none() {
            let len = self.bytes();
            let words = try_zeroed_slice_box::<u64>(len.div_ceil(8))
                .map_err(|()| Error::failed(format!("no memory for {len} bytes of weights")))?;
            let mut words: Arc<[u64]> = words.into();
            let bytes = bytemuck::cast_slice_mut(Arc::get_mut(&mut words).expect("nobody has it"));
            self.read(0, &mut bytes[..len], read)?;
            self.made = Some(words);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of it is read, in pieces that begin and end anywhere, and made, as `expected`.
    fn check(mut rows: Assembled, expected: &[u8]) {
        let file: Vec<u8> = (0..16).collect();
        let read = |at: usize, into: &mut [u8]| {
            into.copy_from_slice(&file[at..][..into.len()]);
            Ok(())
        };
        for from in 0..=16 {
            for to in from..=16 {
                let mut some = vec![0; to - from];
                rows.read(from, &mut some, read).unwrap();
                assert_eq!(some, expected[from..to]);
            }
        }
        rows.make(read).unwrap();
        assert_eq!(bytemuck::cast_slice::<u64, u8>(rows.made.as_ref().unwrap()), expected);
    }

    #[test]
    fn rows_of_each_head_are_read_even_ones_first() {
        let rows = Assembled::of_rows(vec![0], 8, 2).turned(4).unwrap();
        check(rows, &[0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert!(Assembled::of_rows(vec![0], 6, 2).turned(4).is_err());
    }

    #[test]
    fn parts_are_joined_by_rows_or_by_columns() {
        let mut order: Vec<u8> = (8..16).chain(0..8).collect();
        check(Assembled::of_rows(vec![8, 0], 4, 4), &order);
        order = vec![8, 9, 0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15, 6, 7];
        check(Assembled::of_columns(vec![8, 0], 4, 4), &order);
        let turned = Assembled::of_rows(vec![8, 0], 8, 2).turned(4).unwrap();
        check(turned, &[8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7]);
    }
}
