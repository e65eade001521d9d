//! The tensors of Meta's files by the names that safetensors have for them.

use std::collections::{BTreeMap, HashMap};

use super::assembled::Assembled;
use super::names::{META, is_turned};
use super::{Checkpoint, FILE_ALIGN_BYTES, Tensor, WeightFile};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::json::quote;
use crate::source::{META_HEAD, MetaModel, MetaPart};
use crate::torch::TorchTensor;

/// A table that follows from the config.
const FREQUENCIES: &str = "rope.freqs";

/// What each file of several has of a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Has {
    All,
    Rows,
    Columns,
}

impl Checkpoint {
    /// The tensors of one file where they lie, but for queries and keys; those of several files joined. What
    /// is joined comes first in the weight region, then the files.
    pub(super) fn of_meta(model: &MetaModel, config: &Config) -> Result<Self> {
        let parts = model.parts();
        let is_there = |tensor: &&TorchTensor| {
            tensor.name != FREQUENCIES && !(model.is_tied() && tensor.name == META_HEAD)
        };
        let firsts: Vec<&TorchTensor> = parts[0].tensors.iter().filter(is_there).collect();
        let align = |bytes: usize| bytes.next_multiple_of(FILE_ALIGN_BYTES);
        let joined_bytes = |tensor: &&TorchTensor| align(tensor.bytes * parts.len());
        let mut end = if parts.len() == 1 { 0 } else { firsts.iter().map(joined_bytes).sum() };
        let mut shards = Vec::new();
        for MetaPart { path, bytes, .. } in parts {
            shards.push(WeightFile { path: path.clone(), base: end, bytes: bytes.clone() });
            end = align(end + bytes.len());
        }
        let (mut tensors, mut assembled, mut places) =
            (Vec::new(), BTreeMap::new(), HashMap::new());
        let mut joined_end = 0;
        for (i, first) in firsts.iter().enumerate() {
            let wrong = |what: String| {
                Error::failed(format!("{}: tensor {} {what}", parts[0].path, quote(&first.name)))
            };
            if let Some(other) = firsts[..i].last().filter(|other| other.is_same(first)) {
                return Err(wrong(format!("is the same numbers as {}", quote(&other.name))));
            }
            let name = META.in_safetensors(&first.name);
            let has = has(&name, first, config);
            let all = of_all(parts, first, has)?;
            let all: Vec<usize> = all.iter().zip(&shards).map(|(t, s)| s.base + t.offset).collect();
            let mut shape = first.shape.clone();
            match (has, &mut shape[..]) {
                (Has::All, _) => {}
                (Has::Rows, [size, _]) | (Has::Columns, [_, size]) => *size *= parts.len(),
                _ => return Err(wrong(format!("has {} dimensions", first.shape.len()))),
            }
            let row_bytes = first.float.bytes() * shape.last().copied().unwrap_or(1);
            let bytes = first.float.bytes() * shape.iter().product::<usize>();
            let offset = if parts.len() == 1 { first.offset } else { joined_end };
            joined_end = align(joined_end + bytes);
            if is_turned(&name) || parts.len() > 1 {
                let of =
                    if has == Has::Columns { Assembled::of_columns } else { Assembled::of_rows };
                let mut whole = of(all, bytes / row_bytes, row_bytes);
                if is_turned(&name) {
                    whole = whole.turned(config.head_dim).map_err(wrong)?;
                }
                assembled.insert(offset, whole);
            }
            places.insert(name.clone(), tensors.len());
            tensors.push((name, Tensor { encoding: first.float.into(), shape, offset, bytes }));
        }
        Ok(Self { assembled, ..Self::of_shards(shards, tensors, places)? })
    }
}

/// What the files have of the tensor that safetensors call so (fairscale's layers in models/llama3/model.py).
/// Llama 2's embedding is split by columns, Llama 3's by rows.
fn has(name: &str, part: &TorchTensor, config: &Config) -> Has {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let is_embedding = name.starts_with("model.embed_tokens.");
    if is_embedding && part.shape.last().is_some_and(|columns| *columns != config.width)
        || ends(&[".o_proj.weight", ".down_proj.weight"])
    {
        Has::Columns
    } else if is_embedding || ends(&["_proj.weight", "lm_head.weight"]) {
        Has::Rows
    } else {
        Has::All
    }
}

/// The tensor in each of the files, which must be alike; in one, where all have all of it.
fn of_all<'a>(
    parts: &'a [MetaPart],
    first: &TorchTensor,
    has: Has,
) -> Result<Vec<&'a TorchTensor>> {
    let numbers = |part: &'a MetaPart, of: &TorchTensor| &part.bytes[of.offset..][..of.bytes];
    let of = |part: &'a MetaPart| {
        let wrong = |what: &str| {
            let name = quote(&first.name);
            Error::failed(format!("{}: tensor {name} {what} {}", part.path, parts[0].path))
        };
        let tensor = part.tensors.iter().find(|tensor| tensor.name == first.name);
        let tensor = tensor.ok_or_else(|| wrong("is missing, which there is in"))?;
        if (tensor.float, &tensor.shape) != (first.float, &first.shape) {
            return Err(wrong("has another type or shape than in"));
        }
        if has == Has::All && numbers(part, tensor) != numbers(&parts[0], first) {
            return Err(wrong("has other numbers than in"));
        }
        Ok(tensor)
    };
    let mut all = parts.iter().map(of).collect::<Result<Vec<_>>>()?;
    all.truncate(if has == Has::All { 1 } else { parts.len() });
    Ok(all)
}
