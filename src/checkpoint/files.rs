//! Which of a folder's files hold the weights.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, INDEX_FILE, SINGLE_FILE, index};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::source::Source;

/// The files that hold a model's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub names: BTreeSet<String>,
    /// The index that names them, and which tensor it puts where.
    pub index: Option<(String, BTreeMap<String, String>)>,
}

impl Checkpoint {
    /// Which files hold the weights, as `transformers` decides it (modeling_utils,
    /// `_get_resolved_checkpoint_files`): model.safetensors, else those that
    /// model.safetensors.index.json names. A link that leads nowhere is no file.
    ///
    /// # Errors
    /// What is there instead, and what is missing.
    pub fn files(source: &Source) -> Result<Files> {
        let chosen = match source.weights() {
            Some(weights) => weights,
            None if source.has(SINGLE_FILE) => SINGLE_FILE,
            None => INDEX_FILE,
        };
        if !chosen.ends_with(".json") {
            return match source.has(chosen) {
                true => Ok(Files { names: BTreeSet::from([chosen.to_owned()]), index: None }),
                false => Err(source.missing(chosen)),
            };
        }
        let Some(text) = source.read(chosen)? else {
            let is_usual = chosen == INDEX_FILE && !source.names().iter().any(|n| n == INDEX_FILE);
            return Err(source.missing(if is_usual { SINGLE_FILE } else { chosen }));
        };
        let path = source.path(chosen);
        let index =
            index::parse(&text).map_err(|trouble| Error::failed(format!("{path}: {trouble}")))?;
        let names: BTreeSet<String> = index.values().cloned().collect();
        let missing: Vec<String> =
            names.iter().filter(|name| !source.has(name)).map(|name| quote(name)).collect();
        match &missing[..] {
            [] => Ok(Files { names, index: Some((chosen.to_owned(), index)) }),
            [one] if names.len() == 1 => {
                Err(Error::failed(format!("{path}: the file {one} is not there: fetch it")))
            }
            several => Err(Error::failed(format!(
                "{path}: of the {} files that it names, {} {} not there: fetch what is missing",
                names.len(),
                first_of(several),
                if several.len() == 1 { "is" } else { "are" }
            ))),
        }
    }

    /// What of the folder was passed over, for people.
    pub fn passed_over(source: &Source) -> Option<String> {
        let files = Checkpoint::files(source).ok()?;
        let is_shard = |name: &&String| {
            let is_weights = ["model", "consolidated"].iter().any(|start| name.starts_with(start))
                && name.ends_with(".safetensors");
            let is_index = files.index.is_none() && *name == INDEX_FILE;
            (is_weights || is_index) && !files.names.contains(*name)
        };
        let mut others = source.names();
        others.sort();
        let adapter = others.iter().find(|name| name.starts_with("adapter_")).map(|name| {
            format!("{name} is an adapter's, which is not applied: merge it into the model first")
        });
        let shards: Vec<String> = others.iter().filter(is_shard).map(|name| quote(name)).collect();
        adapter.or_else(|| {
            let used = match &files.index {
                Some((index, _)) => format!("{} does not name", quote(index)),
                None => format!("are beside {}", files.names.first().map_or("", String::as_str)),
            };
            (!shards.is_empty()).then(|| {
                format!("files of weights that {used} are not read: {}", first_of(&shards))
            })
        })
    }
}

/// Some names, and how many more there are.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}
