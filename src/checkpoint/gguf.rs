//! The tensors of a GGUF by the names that safetensors have for them.

use std::collections::{BTreeMap, HashMap};

use super::assembled::Assembled;
use super::names::{GGUF, is_turned};
use super::{Checkpoint, FILE_ALIGN_BYTES, Tensor, WeightFile};
use crate::encoding::Encoding;
use crate::error::{Error, Result};
use crate::gguf::GgufTensor;
use crate::json::quote;
use crate::source::{GgufModel, ROPE_DIVISORS};

impl Checkpoint {
    /// The files' tensors where they lie, but for queries and keys, whose rows have another order
    /// ([`Assembled`]). `head_dim`: rows of a head.
    pub(super) fn of_gguf(model: &GgufModel, head_dim: usize) -> Result<Self> {
        let (mut shards, mut tensors) = (Vec::<WeightFile>::new(), Vec::new());
        let (mut places, mut assembled) = (HashMap::new(), BTreeMap::new());
        for part in model.parts() {
            let end = shards.last().map_or(0, |shard| shard.base + shard.bytes.len());
            let base = end.next_multiple_of(FILE_ALIGN_BYTES);
            let wrong = |what: String| Error::failed(format!("{}: {what}", part.path));
            for tensor in part.gguf.tensors.iter().filter(|tensor| tensor.name != ROPE_DIVISORS) {
                let name = GGUF.in_safetensors(&tensor.name);
                let tensor = of(tensor, base).map_err(wrong)?;
                if is_turned(&name) {
                    let row_bytes = tensor.encoding.row_bytes(tensor.shape[tensor.shape.len() - 1]);
                    let rows = tensor.bytes / row_bytes;
                    let rows = Assembled::of_rows(vec![tensor.offset], rows, row_bytes);
                    assembled.insert(tensor.offset, rows.turned(head_dim).map_err(wrong)?);
                }
                if places.insert(name.clone(), tensors.len()).is_some() {
                    return Err(wrong(format!("tensor {} is there twice", quote(&name))));
                }
                tensors.push((name, tensor));
            }
            let bytes = part.bytes.clone();
            shards.push(WeightFile { path: part.path.clone(), base, bytes });
        }
        Ok(Self { assembled, ..Self::of_shards(shards, tensors, places)? })
    }
}

/// A tensor in the weight region.
fn of(tensor: &GgufTensor, base: usize) -> std::result::Result<Tensor, String> {
    let GgufTensor { name, kind, shape, offset, bytes } = tensor;
    let wrong = |what: String| format!("tensor {} {what}", quote(name));
    let encoding = Encoding::from_name(kind.name).ok_or_else(|| {
        let known = Encoding::all().map(Encoding::name).collect::<Vec<_>>().join(", ");
        wrong(format!("is in {}, which is not supported: {known} are", kind.name))
    })?;
    if let Encoding::Plain(float) = encoding
        && !offset.is_multiple_of(float.bytes())
    {
        return Err(wrong(format!("begins at byte {offset}, in the middle of an element")));
    }
    Ok(Tensor { encoding, shape: shape.clone(), offset: base + offset, bytes: *bytes })
}
