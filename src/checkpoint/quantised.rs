//! Weights that become blocks on their way from the files.

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::assembled::Assembled;
use super::{Checkpoint, FILE_ALIGN_BYTES, Progress, Tensor, WeightFile, synthetic};
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::quantise::{Quantisation, quantise};
use crate::source::Bytes;

/// Blocks that are made at once.
const PIECE_BLOCKS: usize = 1024;
/// Bytes of blocks that a thread makes at once.
const TASK_BYTES: usize = 1 << 20;

impl Checkpoint {
    /// These weights, whose matrices become blocks when they are read. Nothing is read yet.
    ///
    /// # Errors
    /// Weights that are quantised already.
    pub fn quantised(self, to: Quantisation) -> Result<Self> {
        let is_plain = |tensor: &Tensor| matches!(tensor.encoding, Encoding::Plain(_));
        if let Some((name, tensor)) = self.tensors().find(|(_, tensor)| !is_plain(tensor)) {
            return Err(Error::failed(format!(
                "{}: tensor {} is {} already: only F32, F16 and BF16 can be quantised",
                self.path_of(name),
                quote(name),
                tensor.encoding.name()
            )));
        }
        let heads = ["lm_head.weight", "model.embed_tokens.weight"];
        let head = heads.into_iter().find(|name| self.tensor(name).is_some());
        let mut end = 0usize;
        let place = |(name, tensor): (&str, &Tensor)| {
            let encoding = to.of(&tensor.shape, tensor.encoding, Some(name) == head);
            let columns = tensor.shape[tensor.shape.len() - 1];
            let bytes = tensor.len() / columns * encoding.row_bytes(columns);
            let offset = end.next_multiple_of(FILE_ALIGN_BYTES);
            end = offset + bytes;
            (name.to_owned(), Tensor { encoding, shape: tensor.shape.clone(), offset, bytes })
        };
        let tensors = self.tensors().map(place).collect();
        let (path, bytes) = (self.path_of(""), Bytes::Embedded(&[]));
        let places = self.places.clone();
        let made = Self::of_shards(vec![WeightFile { path, base: 0, bytes }], tensors, places)?;
        Ok(Self { origin: Some(Arc::new(self)), ..made })
    }

    /// Bytes that a program on this machine's CPU reads, mapped or made: the region, and tensors that
    /// are put together beside it.
    pub fn host_bytes(&self) -> usize {
        self.total_bytes() + self.assembled_bytes()
    }

    /// Bytes that [`Self::make`] takes, or has taken.
    pub fn made_bytes(&self) -> usize {
        match self.is_synthetic() || self.origin.is_some() {
            true => self.total_bytes(),
            false => self.assembled_bytes(),
        }
    }

    fn assembled_bytes(&self) -> usize {
        self.assembled.values().map(Assembled::bytes).sum()
    }

    /// All of these weights, which are made of `origin`'s, in memory. `made` is told of their bytes.
    pub(super) fn make_blocks(&self, origin: &Self, made: Progress<'_>) -> Result<Bytes> {
        let tensors = self.tensors.iter().map(|(_, tensor)| tensor);
        synthetic::make(self.total_bytes(), tensors, |tensor, bytes| {
            let tasks = bytes.par_chunks_mut(TASK_BYTES).enumerate();
            tasks.try_for_each(|(task, bytes)| {
                self.read_blocks(origin, tensor.offset + task * TASK_BYTES, bytes)?;
                made(bytes.len() as u64)
            })
        })
    }

    /// A part of one tensor of these weights, which are made of `origin`'s.
    ///
    /// # Errors
    /// What cannot be read; a weight that is no number.
    pub(super) fn read_blocks(
        &self,
        origin: &Self,
        offset: usize,
        mut into: &mut [u8],
    ) -> Result<()> {
        let next = self.tensors.partition_point(|(_, tensor)| tensor.offset <= offset);
        let (name, tensor) = &self.tensors[next - 1];
        let source = origin.tensor(name).expect("it is made of one");
        let mut at = offset - tensor.offset;
        let Encoding::Blocks(blocks) = tensor.encoding else {
            return origin.read(source.offset + at, into);
        };
        let (columns, block_bytes) = blocks.size();
        while !into.is_empty() {
            let (first, skipped) = (at / block_bytes, at % block_bytes);
            let count = (skipped + into.len()).div_ceil(block_bytes).min(PIECE_BLOCKS);
            let elements = first * columns..(first + count) * columns;
            let numbers = origin.numbers(source, elements)?;
            let mut made = vec![0; count * block_bytes];
            quantise(blocks, &numbers, &mut made).map_err(|number| {
                let (path, name) = (origin.path_of(name), quote(name));
                Error::failed(format!(
                    "{path}: tensor {name} has the number {number}: it cannot be quantised"
                ))
            })?;
            let (some, rest) = into.split_at_mut((made.len() - skipped).min(into.len()));
            some.copy_from_slice(&made[skipped..][..some.len()]);
            (at, into) = (at + some.len(), rest);
        }
        Ok(())
    }

    /// Of one of these weights, which is plain, some elements as f32.
    ///
    /// # Errors
    /// What cannot be read.
    ///
    /// # Panics
    /// When it is in blocks.
    pub fn numbers(&self, tensor: &Tensor, elements: Range<usize>) -> Result<Vec<f32>> {
        let Encoding::Plain(float) = tensor.encoding else { panic!("plain weights are read") };
        let mut numbers = vec![0f32; elements.len()];
        let offset = tensor.offset + elements.start * float.bytes();
        match float {
            Float::F32 => self.read(offset, bytemuck::cast_slice_mut(&mut numbers))?,
            Float::F16 => {
                let mut stored = vec![f16::ZERO; elements.len()];
                self.read(offset, bytemuck::cast_slice_mut(&mut stored))?;
                stored.convert_to_f32_slice(&mut numbers);
            }
            Float::Bf16 => {
                let mut stored = vec![bf16::ZERO; elements.len()];
                self.read(offset, bytemuck::cast_slice_mut(&mut stored))?;
                stored.convert_to_f32_slice(&mut numbers);
            }
        }
        Ok(numbers)
    }
}
