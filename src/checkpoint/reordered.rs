//! Rows of queries and keys in Meta's order, read in that of `transformers`.
//!
//! Rotary embeddings turn pairs of a head's rows: with Meta, and in GGUF, rows 2i and 2i + 1; with
//! `transformers`, and everywhere here, rows i and i + D/2.

use std::sync::Arc;

use bytemuck::allocation::try_zeroed_slice_box;

use crate::error::{Error, Result};

/// A matrix whose rows are to be read in another order.
#[derive(Debug, Clone)]
pub struct Reordered {
    /// D
    head_dim: usize,
    row_bytes: usize,
    /// Of all rows.
    pub bytes: usize,
    /// In their new order, once they have been made.
    pub made: Option<Arc<[u64]>>,
}

impl Reordered {
    /// # Errors
    /// Rows that are not of whole heads.
    pub fn new(
        head_dim: usize,
        row_bytes: usize,
        bytes: usize,
    ) -> std::result::Result<Self, String> {
        if bytes.is_multiple_of(row_bytes * head_dim) {
            return Ok(Self { head_dim, row_bytes, bytes, made: None });
        }
        let rows = bytes / row_bytes;
        Err(format!("queries or keys have {rows} rows, which are not heads of {head_dim}"))
    }

    /// Which row of the file is the one of this number.
    fn row(&self, number: usize) -> usize {
        let (head, row) = (number / self.head_dim, number % self.head_dim);
        let (half, pair) = (row / (self.head_dim / 2), row % (self.head_dim / 2));
        head * self.head_dim + 2 * pair + half
    }

    /// The bytes from `at` on, by `read`, which reads from a place in the file's order.
    pub fn read(
        &self,
        mut at: usize,
        mut into: &mut [u8],
        read: impl Fn(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        while !into.is_empty() {
            let (row, within) = (at / self.row_bytes, at % self.row_bytes);
            let (some, rest) = into.split_at_mut((self.row_bytes - within).min(into.len()));
            read(self.row(row) * self.row_bytes + within, some)?;
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
            let words = try_zeroed_slice_box::<u64>(self.bytes.div_ceil(8)).map_err(|()| {
                Error::failed(format!("no memory for {} bytes of queries and keys", self.bytes))
            })?;
            let mut words: Arc<[u64]> = words.into();
            let bytes = bytemuck::cast_slice_mut(Arc::get_mut(&mut words).expect("nobody has it"));
            self.read(0, &mut bytes[..self.bytes], read)?;
            self.made = Some(words);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_head_are_read_even_ones_first() {
        let mut rows = Reordered::new(4, 2, 16).unwrap();
        let file: Vec<u8> = (0..16).collect();
        let read = |at: usize, into: &mut [u8]| {
            into.copy_from_slice(&file[at..][..into.len()]);
            Ok(())
        };
        let expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        for (from, to) in [(0, 16), (1, 2), (3, 11), (7, 9), (5, 5)] {
            let mut some = vec![0; to - from];
            rows.read(from, &mut some, read).unwrap();
            assert_eq!(some, expected[from..to]);
        }
        rows.make(read).unwrap();
        assert_eq!(bytemuck::cast_slice::<u64, u8>(rows.made.as_ref().unwrap()), expected);
        assert!(Reordered::new(4, 2, 12).is_err());
    }
}
