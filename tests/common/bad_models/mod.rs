//! Model directories that something is wrong with: what was done to each, which file an error must
//! name, and what it must say. One table for the library's tests and the commands'.

mod checkpoints;
mod configs;
pub mod tiny;

use std::fs;
use std::path::Path;

use serde_json::Value;

use tiny::{Entry, INDEX, SINGLE};

/// Who finds the trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// `Config::load`.
    Config,
    /// `Checkpoint::open`.
    Checkpoint,
    /// What compares the two, after both loaded.
    Weights,
}

pub struct BadModel {
    pub name: String,
    #[allow(dead_code, reason = "the commands' tests do not ask")]
    pub found_by: FoundBy,
    /// The file that the error names.
    pub file: &'static str,
    /// Part of the error.
    pub trouble: &'static str,
    spoil: Spoil,
}

/// What is done to a good model.
enum Spoil {
    /// Gives a key of config.json this JSON, which may be broken.
    Key(&'static str, &'static str),
    NoKey(&'static str),
    /// Changes the header's entries, not the data.
    Header(fn(&mut Vec<Entry>)),
    /// Changes the single file of weights.
    Weights(fn(&mut Vec<u8>)),
    /// Changes the index of a model in two files.
    Index(fn(&mut Value)),
    /// Changes a folder with the weights in two files.
    Sharded(fn(&Path)),
    /// Changes a folder with the weights in one file.
    Folder(fn(&Path)),
}

impl BadModel {
    /// Writes the model into the empty directory `folder`.
    pub fn write(&self, folder: &Path) {
        match self.spoil {
            Spoil::Index(_) | Spoil::Sharded(_) => tiny::write_sharded(folder),
            _ => tiny::write_good(folder),
        }
        let read = |file: &str| fs::read(folder.join(file)).expect("a file of the good model");
        match &self.spoil {
            Spoil::Key(key, value) => tiny::write_config_with(folder, key, Some(value)),
            Spoil::NoKey(key) => tiny::write_config_with(folder, key, None),
            Spoil::Header(spoil) => {
                let mut entries = tiny::entries(&tiny::weights());
                let data_bytes = entries.last().map_or(0, |entry| entry.end);
                spoil(&mut entries);
                let header = tiny::header(&entries);
                let file = tiny::safetensors(&header, data_bytes);
                tiny::write(folder, SINGLE, file);
            }
            Spoil::Weights(spoil) => {
                let mut file = read(SINGLE);
                spoil(&mut file);
                tiny::write(folder, SINGLE, file);
            }
            Spoil::Index(spoil) => {
                let mut index = serde_json::from_slice(&read(INDEX)).expect("JSON");
                spoil(&mut index);
                tiny::write(folder, INDEX, index.to_string());
            }
            Spoil::Sharded(spoil) | Spoil::Folder(spoil) => spoil(folder),
        }
    }
}

/// All of them.
pub fn bad_models() -> Vec<BadModel> {
    let mut models = configs::bad_configs();
    models.extend(checkpoints::bad_checkpoints());
    models
}
