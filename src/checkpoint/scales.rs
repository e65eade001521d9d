//! The scales of E4M3 weights: a tensor beside each weight, with one number for all of its rows or one for
//! each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use half::{bf16, f16};

use super::{Checkpoint, Tensor};
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result};
use crate::json::quote;

/// What stands beside a weight: its scales, and those of its inputs, which are not quantised here.
const SCALES: &str = "weight_scale";
const OF_INPUTS: [&str; 2] = ["input_scale", "input_scale_ub"];

impl Checkpoint {
    /// Takes the scales out of the tensors: they belong to the weights.
    ///
    /// # Errors
    /// Weights without scales; scales of another shape, or that are no numbers.
    pub(super) fn take_scales(mut self) -> Result<Self> {
        let (mut scales, mut taken) = (BTreeMap::new(), HashSet::new());
        for (name, weight) in self.tensors().filter(|(_, tensor)| tensor.encoding == Encoding::E4m3)
        {
            let module = name.strip_suffix("weight").unwrap_or(name);
            let of_rows = self.scales_beside(module, weight).map_err(|what| {
                Error::failed(format!("{}: tensor {} {what}", self.path_of(name), quote(name)))
            })?;
            scales.insert(weight.offset, of_rows);
            taken.extend(OF_INPUTS.iter().chain([&SCALES]).map(|end| format!("{module}{end}")));
        }
        self.tensors.retain(|(name, _)| !taken.contains(name));
        let names = self.tensors.iter().map(|(name, _)| name.clone());
        self.places = names.zip(0..).collect();
        Ok(Self { scales, ..self })
    }

    /// Of each row of the weight.
    fn scales_beside(
        &self,
        module: &str,
        weight: &Tensor,
    ) -> std::result::Result<Arc<[f32]>, String> {
        let name = format!("{module}{SCALES}");
        let tensor = self.tensor(&name);
        let tensor = tensor.ok_or_else(|| format!("has no scales: {} is missing", quote(&name)))?;
        let (&[rows, _], Encoding::Plain(float)) = (&weight.shape[..], tensor.encoding) else {
            return Err("is no matrix with scales of BF16, F16 or F32".to_owned());
        };
        let is_of_all = tensor.len() == 1;
        if !is_of_all && ![&[rows][..], &[rows, 1]].contains(&&tensor.shape[..]) {
            let shape = &tensor.shape;
            return Err(format!(
                "has {rows} rows and scales of the shape {shape:?}: one for all is needed, or one for each"
            ));
        }
        let numbers = numbers(float, self.bytes(tensor.offset, tensor.bytes));
        match numbers.iter().find(|number| !number.is_finite()) {
            Some(number) => Err(format!("has the scale {number}")),
            None if is_of_all => Ok(vec![numbers[0]; rows].into()),
            None => Ok(numbers.into()),
        }
    }

    /// The scales of so many rows that begin `stride_bytes` from each other, the first one at `offset` of the
    /// weight region; none, where weights have none.
    pub fn scales(&self, offset: usize, rows: usize, stride_bytes: usize) -> &[f32] {
        match self.scales.range(..=offset).next_back() {
            Some((start, scales)) if offset < start + scales.len() * stride_bytes => {
                &scales[(offset - start) / stride_bytes..][..rows]
            }
            _ => &[],
        }
    }
}

fn numbers(float: Float, bytes: &[u8]) -> Vec<f32> {
    let words = || bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match float {
        Float::Bf16 => words().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        Float::F16 => words().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Float::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    }
}
