//! A model in llama.cpp's GGUF: one file, or several parts of one, that show themselves as the folder that
//! the model was before, so that nothing else needs to know. What the folder's files say is made of the keys.

mod config;
mod tokenizer;

pub use tokenizer::{LLAMA3_PATTERN, pre_tokenizer_name};

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Bytes, MappedFile, shown};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, GgufTensor, Value};
use crate::json::quote;

/// The tensor by which rotary frequencies are divided. `[D/2]`
pub const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The most parts: published models have a tenth of this.
const MAX_PARTS: usize = 1000;

/// A model in GGUF, opened and checked.
#[derive(Debug)]
pub struct GgufModel {
    /// Of which the first one has the keys.
    parts: Vec<GgufPart>,
}

/// A file of it.
#[derive(Debug)]
pub struct GgufPart {
    /// For messages.
    pub path: String,
    pub bytes: Bytes,
    pub gguf: Gguf,
}

impl PartialEq for GgufModel {
    fn eq(&self, other: &Self) -> bool {
        self.parts[0].path == other.parts[0].path
    }
}

impl Eq for GgufModel {}

impl GgufModel {
    /// The model in this file, and in the parts beside it where it is one of several.
    ///
    /// # Errors
    /// A file that is missing, is no GGUF, or breaks the format's rules; parts that do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((_, number, count)) = split_name(name) else {
            return Ok(Self { parts: vec![GgufPart::open(path)?] });
        };
        if number == 0 || number > count || count > MAX_PARTS {
            let path = shown(path);
            return Err(Error::failed(format!("{path}: there is no part {number} of {count}")));
        }
        let names = part_names(name).into_iter();
        let parts = names.map(|name| GgufPart::open(&path.with_file_name(name)));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        for (number, part) in parts.iter().enumerate() {
            let key = |key| part.gguf.get(key).and_then(Value::as_u64);
            if [key("split.no"), key("split.count")] != [Some(number as u64), Some(count as u64)] {
                return Err(Error::failed(format!(
                    "{}: its keys do not say that it is part {} of {count}",
                    part.path,
                    number + 1
                )));
            }
        }
        Ok(Self { parts })
    }

    pub fn parts(&self) -> &[GgufPart] {
        &self.parts
    }

    /// The text of a file of the folder, or none where the folder would not have it.
    ///
    /// # Errors
    /// Keys of which the file cannot be made.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let GgufPart { gguf, bytes, path } = &self.parts[0];
        let json = match name {
            "config.json" => {
                self.divisors().and_then(|of| config::config(gguf, bytes, of)).map(Some)
            }
            "tokenizer.json" => tokenizer::tokenizer(gguf, bytes),
            "tokenizer_config.json" => tokenizer::settings(gguf, bytes).map(Some),
            _ => Ok(None),
        };
        let json = json.map_err(|what| Error::failed(format!("{path}: {what}")))?;
        Ok(json.map(|json| json.to_string().into_bytes()))
    }

    /// What is said of the folder's config.json, as it is said of the file.
    pub fn in_own_names(&self, error: &Error) -> Error {
        Error::failed(config::in_own_names(&self.parts[0].path, &error.to_string()))
    }

    /// Whether the folder has this file.
    pub fn has(&self, name: &str) -> bool {
        match name {
            "config.json" | "tokenizer_config.json" => true,
            "tokenizer.json" => self.parts[0].gguf.get("tokenizer.ggml.tokens").is_some(),
            _ => false,
        }
    }

    /// The numbers of [`ROPE_DIVISORS`], if there is such a tensor.
    fn divisors(&self) -> std::result::Result<Option<Vec<f32>>, String> {
        let tensors = self
            .parts
            .iter()
            .flat_map(|part| part.gguf.tensors.iter().map(|tensor| (tensor, &part.bytes)));
        let Some((tensor, bytes)) = tensors.into_iter().find(|(t, _)| t.name == ROPE_DIVISORS)
        else {
            return Ok(None);
        };
        let GgufTensor { kind, shape, offset, bytes: len, .. } = tensor;
        if kind.name != "F32" || shape.len() != 1 {
            return Err(format!("tensor {ROPE_DIVISORS} is no list of F32"));
        }
        let numbers = bytes[*offset..][..*len].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let numbers: Vec<f32> = numbers.collect();
        match numbers.iter().find(|number| !(1e-6..=1e6).contains(*number)) {
            Some(number) => Err(format!("tensor {ROPE_DIVISORS} has the number {number}")),
            None => Ok(Some(numbers)),
        }
    }
}

impl GgufPart {
    fn open(path: &Path) -> Result<Self> {
        let shown = shown(path);
        let cannot = |what, error| Error::failed(format!("cannot {what} {shown}: {error}"));
        let metadata = fs::metadata(path).map_err(|error| cannot("open", error))?;
        if !metadata.is_file() {
            return Err(Error::failed(format!("{shown}: not a regular file")));
        }
        let bytes = if metadata.len() == 0 {
            Bytes::Embedded(&[])
        } else {
            let opened = File::open(path).map_err(|error| cannot("open", error))?;
            let map = MappedFile::new(opened, &shown).map_err(|error| cannot("map", error))?;
            Bytes::File(Arc::new(map))
        };
        let gguf = Gguf::parse(&bytes).map_err(|what| Error::failed(format!("{shown}: {what}")))?;
        Ok(Self { path: shown, bytes, gguf })
    }
}

/// `STEM-00001-of-00003.gguf`: the stem, the part's number and their count.
fn split_name(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let is_part = digits(number) && digits(count);
    is_part.then(|| Some((stem, number.parse().ok()?, count.parse().ok()?))).flatten()
}

/// The names of all parts of the model of which this is one, or its own.
pub fn part_names(name: &str) -> Vec<String> {
    match split_name(name).filter(|(_, _, count)| *count <= MAX_PARTS) {
        None => vec![name.to_owned()],
        Some((stem, _, count)) => {
            (1..=count).map(|number| format!("{stem}-{number:05}-of-{count:05}.gguf")).collect()
        }
    }
}

/// The one model in GGUF among the files of a directory, or in any of its parts.
///
/// # Errors
/// Several models: which one is not guessed.
pub fn only_model(directory: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    let is_first = |name: &&String| {
        name.ends_with(".gguf") && split_name(name).is_none_or(|(_, number, _)| number == 1)
    };
    let mut models: Vec<&String> = names.iter().filter(is_first).collect();
    models.sort();
    match &models[..] {
        [] => Ok(None),
        [one] => Ok(Some(directory.join(one))),
        [first, second, ..] => Err(Error::failed(format!(
            "{}: it has {} models in GGUF, {} and {} among them: name the file",
            shown(directory),
            models.len(),
            quote(first),
            quote(second)
        ))),
    }
}
