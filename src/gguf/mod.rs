//! GGUF, the file of llama.cpp's models: keys with values, and tensors.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
//!
//! A header of magic, version and two counts; then the keys, then the tensors' names, shapes, types and
//! places, all little-endian; then, from the next multiple of the alignment on, the tensors. Nothing that a
//! file says of its own sizes is believed before it is checked, and nothing is allocated by it: a list
//! stays in the file, and is walked once.

mod reader;
mod tensors;
mod value;
mod write;

use std::collections::BTreeMap;

use crate::json::quote;
use reader::Reader;
pub use tensors::{GgufTensor, TensorType};
pub use value::{Array, Value};
pub use write::{NewTensor, NewValue, header};

const MAGIC: &[u8; 4] = b"GGUF";
/// Version 1 had counts of 32 bits, and lasted for some weeks.
const VERSIONS: [u32; 2] = [2, 3];
/// Published files have some 60 keys.
const MAX_KEYS: u64 = 1 << 14;
/// A Llama of 1024 layers has a tenth of this.
const MAX_TENSORS: u64 = 1 << 17;
const ALIGNMENT: &str = "general.alignment";
/// Where no key has another one.
const ALIGNMENT_BYTES: usize = 32;

/// What a file says. Nothing of its tensors is read.
#[derive(Debug, Clone)]
pub struct Gguf {
    keys: BTreeMap<String, Value>,
    /// In the order in which they lie.
    pub tensors: Vec<GgufTensor>,
}

impl Gguf {
    /// The keys and tensors of a `file`, which must be whole. The error says what is wrong, without the
    /// name of the file.
    ///
    /// # Errors
    /// What is no GGUF of version 2 or 3; a count, length, offset or type past what there is; a key or tensor
    /// that is there twice; tensors that overlap, are not aligned, or have bytes between them that are no
    /// padding.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(file);
        let [tensors, keys] = counts(&mut reader)?;
        let keys = read_keys(&mut reader, keys)?;
        let alignment = match keys.get(ALIGNMENT) {
            None => ALIGNMENT_BYTES,
            Some(value) => value
                .as_u64()
                .filter(|bytes| bytes.is_power_of_two() && *bytes <= 1 << 16)
                .ok_or_else(|| format!("{ALIGNMENT} is {value}: a power of two is needed"))?
                as usize,
        };
        let tensors = tensors::read(&mut reader, tensors, alignment)?;
        Ok(Self { keys, tensors })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key)
    }

    /// All keys, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.keys.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// The numbers of tensors and of keys.
fn counts(reader: &mut Reader<'_>) -> Result<[u64; 2], String> {
    if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
        return Err("not a GGUF file: it does not begin with GGUF".to_owned());
    }
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(match version.swap_bytes() {
            swapped if VERSIONS.contains(&swapped) => {
                "a big-endian GGUF file, which is not supported".to_owned()
            }
            _ => format!("GGUF version {version} is not supported: 2 and 3 are"),
        });
    }
    let counts = [("tensors", reader.u64()?, MAX_TENSORS), ("keys", reader.u64()?, MAX_KEYS)];
    for (what, count, most) in counts {
        if count > most {
            return Err(format!("says that it has {count} {what}: no Llama has over {most}"));
        }
    }
    Ok(counts.map(|(_, count, _)| count))
}

fn read_keys(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Value>, String> {
    let mut keys = BTreeMap::new();
    for number in 0..count {
        let key = reader.text().map_err(|what| format!("key {number}: {what}"))?.to_owned();
        let value =
            Value::read(reader).map_err(|what| format!("the value of {}: {what}", quote(&key)))?;
        if keys.contains_key(&key) {
            return Err(format!("the key {} is there twice", quote(&key)));
        }
        keys.insert(key, value);
    }
    Ok(keys)
}
