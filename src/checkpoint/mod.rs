//! A checkpoint's tensors as typed views of its mapped files; nothing is copied but what other formats than
//! safetensors have in another order, or in parts.
//!
//! The weight region is all files laid end to end, each beginning at a multiple of 64 bytes. A
//! tensor is an offset into it, which on the CPU is read where the file is mapped, and on a device
//! in one allocation of the same layout. A synthetic model's weights are in no file: they are made
//! where they are read.

mod assembled;
mod files;
mod gguf;
pub mod header;
pub mod index;
mod meta;
mod names;
mod quantised;
mod scales;
pub mod synthetic;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;

use crate::config::Config;
use crate::encoding::{Encoding, Float};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::source::{Bytes, Source, Synthetic};
use assembled::Assembled;
pub use files::Files;
pub use names::{gguf_name, is_turned};
use synthetic::Recipe;

pub const SINGLE_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Every file begins at a multiple of this in the weight region: a cache line, and the widest
/// vector.
const FILE_ALIGN_BYTES: usize = 64;

/// Is told of bytes of weights that have come. An error of its ends the loading.
pub type Progress<'a> = &'a (dyn Fn(u64) -> Result<()> + Sync);

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub encoding: Encoding,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Of its first byte in the weight region; a multiple of the size of what it is made of.
    pub offset: usize,
    pub bytes: usize,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The weights of a model: mapped files and the tensors in them. A clone shares the files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    shards: Vec<WeightFile>,
    /// In the order of the weight region.
    tensors: Vec<(String, Tensor)>,
    /// Name to place in `tensors`.
    places: HashMap<String, usize>,
    encoding: Encoding,
    /// How a synthetic model's tensors are made, by offset.
    recipes: BTreeMap<usize, Recipe>,
    /// Tensors that are not in a file as they are to be read, by offset.
    assembled: BTreeMap<usize, Assembled>,
    /// Of the rows of tensors whose encoding has them, by offset.
    scales: BTreeMap<usize, Arc<[f32]>>,
    /// The weights that these are made of, in blocks ([`Self::quantised`]).
    origin: Option<Arc<Checkpoint>>,
}

/// One file of the checkpoint.
#[derive(Debug, Clone)]
struct WeightFile {
    /// For messages.
    path: String,
    /// Where the file begins in the weight region.
    base: usize,
    bytes: Bytes,
}

impl Checkpoint {
    /// Maps the files of weights ([`Self::files`]) and checks everything that can be checked without the
    /// model's config and without reading a weight.
    pub fn open(source: &Source) -> Result<Checkpoint> {
        if let Source::Synthetic(model) = source {
            return Ok(Checkpoint::synthetic(model));
        }
        match source {
            Source::Gguf(model) => {
                return Checkpoint::of_gguf(model, Config::load(source)?.head_dim);
            }
            Source::Meta(model) => return Checkpoint::of_meta(model, &Config::load(source)?),
            _ => {}
        }
        let Files { names, index } = Checkpoint::files(source)?;
        let checkpoint = Checkpoint::map(source, names.iter().map(String::as_str))?;
        if let Some((file, index)) = index {
            checkpoint.check_index(&file, &index, source)?;
        }
        checkpoint.take_scales()
    }

    /// No weights, for programs that read none.
    pub fn empty() -> Checkpoint {
        Checkpoint { shards: Vec::new(), ..Checkpoint::in_memory(Float::F32.into(), Arc::new([])) }
    }

    /// A weight region made in memory, of tensors without names.
    pub fn in_memory(encoding: Encoding, region: Arc<[u64]>) -> Checkpoint {
        let shard = WeightFile { path: "memory".to_owned(), base: 0, bytes: Bytes::Made(region) };
        Checkpoint {
            shards: vec![shard],
            tensors: Vec::new(),
            places: HashMap::new(),
            encoding,
            recipes: BTreeMap::new(),
            assembled: BTreeMap::new(),
            scales: BTreeMap::new(),
            origin: None,
        }
    }

    /// A model whose weights are yet to be made.
    fn synthetic(model: &Synthetic) -> Checkpoint {
        let (mut tensors, mut places, mut recipes) = (Vec::new(), HashMap::new(), BTreeMap::new());
        for (name, tensor, recipe) in synthetic::tensors(model) {
            places.insert(name.clone(), tensors.len());
            recipes.insert(tensor.offset, recipe);
            tensors.push((name, tensor));
        }
        let shard = WeightFile { path: model.to_string(), base: 0, bytes: Bytes::Embedded(&[]) };
        Checkpoint {
            shards: vec![shard],
            tensors,
            places,
            recipes,
            ..Checkpoint::in_memory(model.dtype.into(), Arc::new([]))
        }
    }

    /// Whether the weights are in no file.
    pub fn is_synthetic(&self) -> bool {
        !self.recipes.is_empty()
    }

    /// How the tensor is made that `offset` lies in, and which of its elements is there; of a synthetic
    /// model's.
    pub fn recipe(&self, offset: usize) -> Option<(Recipe, usize)> {
        let (start, recipe) = self.recipes.range(..=offset).next_back()?;
        Some((*recipe, (offset - start) / recipe.dtype.bytes()))
    }

    /// Makes in this machine's memory, once, what is to be read there and is not in a file as it is to be
    /// read: a synthetic model's weights or blocks, of which `made` is told, and assembled tensors.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn make(&mut self, made: Progress<'_>) -> Result<()> {
        if self.is_synthetic() && self.shards[0].bytes.is_empty() {
            let tensors = self.tensors.iter().map(|(_, tensor)| tensor);
            let fill = |tensor: &Tensor, bytes: &mut [u8]| {
                self.recipes[&tensor.offset].fill(0, bytes);
                made(tensor.bytes as u64)
            };
            self.shards[0].bytes = synthetic::make(self.total_bytes(), tensors, fill)?;
        }
        if let Some(origin) = &self.origin
            && self.shards[0].bytes.is_empty()
        {
            self.shards[0].bytes = self.make_blocks(origin, made)?;
        }
        let Self { shards, assembled, .. } = self;
        for tensor in assembled.values_mut() {
            made(0)?; // it may want an end
            tensor.make(|place, into| shard_at(shards, place).read(place, into))?;
        }
        Ok(())
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.places.get(name).map(|place| &self.tensors[*place].1)
    }

    /// All weights and their names, in the order in which they lie.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// That of most bytes of the weights.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The first matrix with another encoding, if there is one. Vectors, the norms' weights, may have any.
    pub fn exception(&self) -> Option<(&str, &Tensor)> {
        self.tensors()
            .find(|(_, tensor)| tensor.shape.len() > 1 && tensor.encoding != self.encoding)
    }

    /// The types of the weights, for people: `BF16`, `BF16 and F32`.
    pub fn types(&self) -> String {
        let others = Encoding::all().filter(|encoding| *encoding != self.encoding);
        let others = others.filter(|other| self.tensors().any(|(_, t)| t.encoding == *other));
        let names = [self.encoding].into_iter().chain(others).map(Encoding::name);
        names.collect::<Vec<_>>().join(" and ")
    }

    /// `len` bytes of the weight region from `offset` on. Panics unless they lie in one file, or have
    /// been made.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        if let Some((start, tensor)) = self.assembled_at(offset) {
            let made = tensor.made.as_ref().expect("tensors are made before they are used");
            return &bytemuck::cast_slice(made)[offset - start..][..len];
        }
        let shard = self.shard_at(offset);
        &shard.bytes[offset - shard.base..][..len]
    }

    /// As [`Self::bytes`], copied; what is not in a file is made, if it has not been.
    ///
    /// # Errors
    /// A file that cannot be read, or has become shorter.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        if let Some((recipe, first)) = self.recipe(offset) {
            recipe.fill_alone(first, into);
            return Ok(());
        }
        if let Some(origin) = self.origin.as_ref().filter(|_| self.shards[0].bytes.is_empty()) {
            return self.read_blocks(origin, offset, into);
        }
        let read = |place, into: &mut [u8]| self.shard_at(place).read(place, into);
        match self.assembled_at(offset) {
            Some((start, tensor)) => tensor.read(offset - start, into, read),
            None => read(offset, into),
        }
    }

    /// The assembled tensor that `offset` lies in, and where it begins.
    fn assembled_at(&self, offset: usize) -> Option<(usize, &Assembled)> {
        let (start, tensor) = self.assembled.range(..=offset).next_back()?;
        (offset < start + tensor.bytes()).then_some((*start, tensor))
    }

    /// The path of the file that holds the tensor `name`, for messages; of the first file where
    /// none does.
    pub fn path_of(&self, name: &str) -> String {
        if let Some(origin) = &self.origin {
            return origin.path_of(name);
        }
        let Some(Tensor { offset, .. }) = self.tensor(name) else {
            return self.shards[0].path.clone();
        };
        let place = self.assembled.get(offset).map_or(*offset, Assembled::place);
        self.shard_at(place).path.clone()
    }

    /// The size of the weight region, headers included.
    pub fn total_bytes(&self) -> usize {
        self.tensors.last().map_or(0, |(_, tensor)| tensor.offset + tensor.bytes)
    }

    /// Lets the system read all files ahead of the first pass over the weights. Returns at once.
    pub fn read_ahead(&self) {
        let shards = &self.origin.as_deref().unwrap_or(self).shards;
        let files: Vec<Bytes> = shards.iter().map(|shard| shard.bytes.clone()).collect();
        thread::spawn(move || files.iter().for_each(Bytes::read_ahead));
    }

    /// Maps `files` end to end and lists their tensors.
    fn map<'a>(source: &Source, files: impl IntoIterator<Item = &'a str>) -> Result<Checkpoint> {
        let mut shards: Vec<WeightFile> = Vec::new();
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        let mut places = HashMap::new();
        for file in files {
            let (path, bytes) = (source.path(file), source.map(file)?);
            let wrong = |trouble: String| Error::failed(format!("{path}: {trouble}"));
            let end = shards.last().map_or(0, |shard| shard.base + shard.bytes.len());
            let base = end.next_multiple_of(FILE_ALIGN_BYTES);
            for (name, mut tensor) in header::parse(&bytes).map_err(wrong)? {
                if is_table(&name) {
                    continue;
                }
                tensor.offset += base;
                if places.insert(name.clone(), tensors.len()).is_some() {
                    return Err(wrong(format!("tensor {} is also in another file", quote(&name))));
                }
                tensors.push((name, tensor));
            }
            shards.push(WeightFile { path, base, bytes });
        }
        Self::of_shards(shards, tensors, places)
    }

    /// Of files and the tensors in them.
    ///
    /// # Errors
    /// There are none.
    fn of_shards(
        shards: Vec<WeightFile>,
        tensors: Vec<(String, Tensor)>,
        places: HashMap<String, usize>,
    ) -> Result<Checkpoint> {
        if tensors.is_empty() {
            let paths: Vec<&str> = shards.iter().map(|shard| shard.path.as_str()).collect();
            return Err(Error::failed(format!("{}: no weights", paths.join(", "))));
        }
        let bytes = |encoding: &Encoding| -> usize {
            tensors.iter().filter(|(_, t)| t.encoding == *encoding).map(|(_, t)| t.bytes).sum()
        };
        let encoding = Encoding::all().max_by_key(bytes).expect("there are encodings");
        let empty = Checkpoint::in_memory(encoding, Arc::new([]));
        Ok(Checkpoint { shards, tensors, places, ..empty })
    }

    /// That every tensor is in the file that the index gives, and every tensor of a file in the
    /// index.
    fn check_index(
        &self,
        index_file: &str,
        index: &BTreeMap<String, String>,
        source: &Source,
    ) -> Result<()> {
        for (name, file) in index.iter().filter(|(name, _)| !is_table(name)) {
            let path = source.path(file);
            if self.tensor(name).is_none() || self.path_of(name) != path {
                return Err(Error::failed(format!(
                    "{path}: tensor {} is missing, which {index_file} says is here",
                    quote(name)
                )));
            }
        }
        match self.tensors().find(|(name, _)| !index.contains_key(*name)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::failed(format!(
                "{}: tensor {} is not in {index_file}",
                self.path_of(name),
                quote(name)
            ))),
        }
    }

    fn shard_at(&self, offset: usize) -> &WeightFile {
        shard_at(&self.shards, offset)
    }
}

/// The file that has this place of the weight region.
fn shard_at(shards: &[WeightFile], offset: usize) -> &WeightFile {
    let following = shards.partition_point(|shard| shard.base <= offset);
    &shards[following - 1]
}

impl WeightFile {
    /// Copies the bytes from this place of the weight region on.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        let Self { path, base, bytes } = self;
        bytes.read(offset - base, into).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::failed(format!(
                "{path} has become shorter since it was opened: a model's files must stay as they are"
            )),
            _ => Error::failed(format!("cannot read {path}: {error}")),
        })
    }
}

/// Whether a tensor is the table of rotary frequencies that Llama 2's files carry beside the
/// weights, in f32. It follows from the config, and `transformers` ignores it, too.
fn is_table(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
