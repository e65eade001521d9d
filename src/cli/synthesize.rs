//! `chaski synthesize`

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::args::SynthesizeArgs;
use super::file::{finish_folder, folder_beside};
use super::open::{not_interrupted, synthetic};
use super::output::{note, progress};
use super::pull;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::source::Source;

/// What is made before it is written.
const PIECE_BYTES: usize = 64 << 20;

/// One file's tensors.
type WeightFile<'a> = Vec<(&'a str, &'a Tensor)>;

pub fn run(args: &SynthesizeArgs) -> Result<()> {
    let Source::Synthetic(model) = synthetic(pull::find(&args.model, true)?, &args.synthetic)?
    else {
        return Err(Error::usage(format!(
            "{} has weights of its own: a synthetic:SHAPE is needed",
            args.model
        )));
    };
    let checkpoint = Checkpoint::open(&Source::Synthetic(model))?;
    let shards = shards(&checkpoint, args.shard_mb.saturating_mul(1_000_000));
    let folder = folder_beside(&args.out)?;
    for name in ["config.json", "generation_config.json"] {
        let text = model.file(name).unwrap_or_default();
        let failed = |error| Error::failed(format!("cannot write {name}: {error}"));
        fs::write(folder.path().join(name), text).map_err(failed)?;
    }
    write_weights(&checkpoint, &shards, folder.path())?;
    finish_folder(folder, &args.out)?;
    note(format_args!("{}: {model}, weight files: {}", args.out.display(), shards.len()));
    Ok(())
}

/// The tensors in order, as many to a file as `most_bytes` hold, and at least one.
fn shards(checkpoint: &Checkpoint, most_bytes: usize) -> Vec<WeightFile<'_>> {
    let (mut shards, mut bytes) = (vec![Vec::new()], 0);
    for (name, tensor) in checkpoint.tensors() {
        if bytes + tensor.bytes > most_bytes && bytes > 0 {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.bytes;
        shards.last_mut().expect("there is one from the start").push((name, tensor));
    }
    shards
}

fn write_weights(checkpoint: &Checkpoint, shards: &[WeightFile<'_>], folder: &Path) -> Result<()> {
    let all_bytes: usize = shards.iter().flatten().map(|(_, tensor)| tensor.bytes).sum();
    let bar = progress(all_bytes as u64, "weights");
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        write_shard(checkpoint, shard, &folder.join(&name), &bar)?;
        let entries = shard.iter().map(|(tensor, _)| ((*tensor).to_owned(), json!(name)));
        weight_map.extend(entries);
    }
    bar.finish_and_clear();
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": all_bytes }, "weight_map": weight_map });
        let path = folder.join("model.safetensors.index.json");
        return fs::write(&path, format!("{index:#}\n"))
            .map_err(|error| Error::failed(format!("cannot write {}: {error}", path.display())));
    }
    Ok(())
}

fn write_shard(
    checkpoint: &Checkpoint,
    shard: &WeightFile<'_>,
    path: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    let failed = |error| Error::failed(format!("cannot write {}: {error}", path.display()));
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(&header(shard)).map_err(failed)?;
    // Of words, for their alignment.
    let mut buffer = vec![0u64; PIECE_BYTES / 8];
    let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
    for (_, tensor) in shard {
        let (recipe, _) = checkpoint.recipe(tensor.offset).expect("a synthetic tensor has one");
        for start in (0..tensor.bytes).step_by(PIECE_BYTES) {
            not_interrupted()?;
            let piece = &mut buffer[..PIECE_BYTES.min(tensor.bytes - start)];
            recipe.fill(start / recipe.dtype.bytes(), piece);
            file.write_all(piece).map_err(failed)?;
            bar.inc(piece.len() as u64);
        }
    }
    file.sync_all().map_err(failed)
}

/// The beginning of a safetensors file: the size of the JSON that follows, which is padded so that the
/// data is aligned.
fn header(shard: &WeightFile<'_>) -> Vec<u8> {
    let mut json = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut end = 0;
    for (name, tensor) in shard {
        let start = end;
        end += tensor.bytes;
        let (dtype, shape) = (tensor.encoding.name(), &tensor.shape);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        json.insert((*name).to_owned(), entry);
    }
    let mut json = Value::Object(json).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().to_vec(), json].concat()
}
