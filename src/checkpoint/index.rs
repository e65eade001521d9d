//! The index of a checkpoint in several files, model.safetensors.index.json:
//! `{"metadata": {..}, "weight_map": {TENSOR: FILE, ..}}`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::json::{self, quote, show};
use crate::source::is_plain_name;

/// The largest Llama's index has a thirtieth of this.
const MAX_INDEX_BYTES: usize = 4 << 20;

/// The file of every tensor. The files are plain names of the index's own directory. The error says
/// what is wrong, without the name of the index.
pub fn parse(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    if text.len() > MAX_INDEX_BYTES {
        return Err(format!("over {} MiB: not an index", MAX_INDEX_BYTES >> 20));
    }
    let mut index = json::parse_object(text)?;
    let weight_map = match index.remove("weight_map") {
        Some(Value::Object(weight_map)) => weight_map,
        Some(other) => {
            return Err(format!("weight_map is {}: an object is needed", show(&other)));
        }
        None => return Err("weight_map is missing".to_owned()),
    };
    if weight_map.is_empty() {
        return Err("weight_map names no tensor".to_owned());
    }
    weight_map
        .into_iter()
        .map(|(tensor, file)| match file {
            Value::String(file) if is_shard_name(&file) => Ok((tensor, file)),
            other => Err(format!(
                "weight_map puts tensor {} into {}: the name of a .safetensors file is needed",
                quote(&tensor),
                show(&other)
            )),
        })
        .collect()
}

fn is_shard_name(file: &str) -> bool {
    is_plain_name(file) && file.ends_with(".safetensors")
}
