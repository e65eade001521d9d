//! A safetensors file's header: 8 bytes of length, that many bytes of JSON, then the tensors end to
//! end. <https://huggingface.co/docs/safetensors#format>
//!
//! Stricter than the `safetensors` crate, which accepts repeated names, unknown fields, empty and
//! misaligned tensors.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::Tensor;
use crate::encoding::Encoding;
use crate::json::{self, quote};

/// Bytes of the header's length, a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// The largest Llama's header has a fiftieth of this. The format allows 100 MB, of which a hostile
/// file could make seconds of work.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// The tensors of a safetensors `file`, in the order in which they lie; offsets are into `file`.
/// Only the header is read. The error says what is wrong, without the name of the file.
///
/// The tensors must be of a float type that we compute with, not empty, aligned to their type, and
/// cover all that follows the header exactly once.
pub fn parse(file: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let (header, data_start) = split(file)?;
    let table: Table = serde_json::from_slice(header)
        .map_err(|error| format!("header: {}", json::describe(error)))?;
    let mut entries: Vec<(String, Entry)> = table.0.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let data_bytes = file.len() - data_start;
    let mut tensors: Vec<(String, Tensor)> = Vec::with_capacity(entries.len());
    let mut covered = 0;
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        let wrong = |trouble: String| format!("tensor {} {trouble}", quote(&name));
        let (encoding, bytes) = entry.size().map_err(wrong)?;
        if end.checked_sub(start) != Some(bytes) {
            let shape = &entry.shape;
            return Err(wrong(format!(
                "of shape {shape:?} needs {bytes} bytes, not those from {start} to {end}"
            )));
        }
        if start < covered {
            let previous = tensors.last().map_or("", |(name, _)| name);
            return Err(wrong(format!("overlaps tensor {}", quote(previous))));
        }
        if start > covered {
            return Err(wrong(format!(
                "has {} bytes before it that belong to no tensor",
                start - covered
            )));
        }
        if end > data_bytes {
            let short_bytes = end - data_bytes;
            return Err(wrong(format!(
                "lacks {short_bytes} bytes at the end of the file: fetch it again"
            )));
        }
        let offset = data_start + start;
        if !offset.is_multiple_of(encoding.row_bytes(1)) {
            return Err(wrong(format!(
                "begins at byte {offset}, which is not a multiple of its elements' {} bytes: \
                 save the file again with a current safetensors",
                encoding.row_bytes(1)
            )));
        }
        covered = end;
        tensors.push((name, Tensor { encoding, shape: entry.shape, offset, bytes }));
    }
    if covered < data_bytes {
        return Err(format!("{} bytes follow the last tensor", data_bytes - covered));
    }
    Ok(tensors)
}

/// The header's JSON, and where the data begins.
fn split(file: &[u8]) -> Result<(&[u8], usize), String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("truncated: {} bytes are not a safetensors file", file.len()));
    };
    if rest.first().is_some_and(|first| *first != b'{') {
        return Err("not a safetensors file: its header does not begin with {".to_owned());
    }
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "not a Llama's safetensors: a header of {length} bytes is over {MAX_HEADER_BYTES}"
        ));
    }
    let header_bytes = length as usize;
    let header = rest.get(..header_bytes).ok_or_else(|| {
        format!("truncated: its header has {header_bytes} bytes, of which {} are there", rest.len())
    })?;
    Ok((header, LENGTH_BYTES + header_bytes))
}

/// What a header says of one tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object of dtype, shape and data_offsets")]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    /// Begin and end, from the end of the header.
    data_offsets: [usize; 2],
}

impl Entry {
    /// The element type, and the bytes that the shape needs.
    fn size(&self) -> Result<(Encoding, usize), String> {
        let Some(encoding) = Encoding::from_name(&self.dtype).filter(|e| e.block().0 == 1) else {
            return Err(format!(
                "has the type {}: BF16, F16, F32 and F8_E4M3 are supported, other quantised weights are not",
                quote(&self.dtype)
            ));
        };
        if self.shape.len() > MAX_RANK {
            return Err(format!("has {} dimensions", self.shape.len()));
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(encoding.row_bytes(1), |bytes, size| bytes.checked_mul(*size));
        match bytes {
            Some(0) => Err(format!("is empty: its shape is {:?}", self.shape)),
            Some(bytes) => Ok((encoding, bytes)),
            None => Err(format!("is larger than any memory: its shape is {:?}", self.shape)),
        }
    }
}

/// More dimensions than any weight has; keeps shapes in messages short.
const MAX_RANK: usize = 8;

/// The header's JSON, without its metadata.
struct Table(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        deserializer.deserialize_map(TableVisitor)
    }
}

struct TableVisitor;

impl<'de> Visitor<'de> for TableVisitor {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Table, A::Error> {
        let mut table = BTreeMap::new();
        let mut has_metadata = false;
        while let Some(name) = entries.next_key::<String>()? {
            if table.contains_key(&name) || (has_metadata && name == METADATA) {
                return Err(A::Error::custom(format!("tensor {} is given twice", quote(&name))));
            }
            if name == METADATA {
                has_metadata = true;
                let Metadata(metadata) = entries.next_value()?;
                let is_text =
                    |object: &serde_json::Map<String, Value>| object.values().all(Value::is_string);
                if !metadata.as_ref().and_then(Value::as_object).is_some_and(is_text) {
                    return Err(A::Error::custom("__metadata__ is not an object of strings"));
                }
                continue;
            }
            let entry = entries
                .next_value::<Entry>()
                .map_err(|error| A::Error::custom(format!("tensor {}: {error}", quote(&name))))?;
            table.insert(name, entry);
        }
        Ok(Table(table))
    }
}

/// The header's one key that is no tensor.
const METADATA: &str = "__metadata__";

#[derive(Deserialize)]
struct Metadata(#[serde(deserialize_with = "json::value")] Option<Value>);
