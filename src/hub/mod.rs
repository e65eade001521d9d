//! A model's files, from the Hugging Face hub or another that speaks as it does, into the cache that
//! `huggingface_hub` keeps: `blobs/HASH`, `snapshots/COMMIT/FILE`, `refs/main`. Nothing else of Chaski
//! uses the network but ranks in several processes.

mod client;
mod download;
mod origin;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, binary};
use crate::json::{self, quote};
use crate::source::{Repository, Source, Variables, cache_root, expanded, is_plain_name};
use client::Client;
use origin::{Origin, Remote, is_word};

/// Lists of files and indexes are far shorter.
const MOST_TEXT_BYTES: u64 = 64 << 20;

/// What whoever waits for a download is told. An error of theirs ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Before anything is downloaded: what, and how many bytes of which some may be there.
    Plan {
        line: String,
        bytes: u64,
    },
    /// So many of them are there.
    At(u64),
    Done,
}

/// Where models come from that are not on this machine.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The folder of models in the Hugging Face cache, if there is a place for one.
    pub cache: Option<PathBuf>,
    /// What the hub knows the user by.
    pub token: Option<String>,
    /// Nobody is asked.
    pub offline: bool,
}

impl Default for HubOptions {
    /// The Hugging Face hub, without a cache.
    fn default() -> Self {
        let endpoint = "https://huggingface.co".to_owned();
        Self { endpoint, cache: None, token: None, offline: false }
    }
}

impl HubOptions {
    /// By `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, the token that `hf auth login` has left,
    /// `HF_HUB_OFFLINE` and their like, as `huggingface_hub` reads them.
    pub fn from_variables(variable: Variables<'_>) -> Self {
        let text = |key: &str| {
            let text = variable(key)?.into_string().ok()?.replace(['\r', '\n'], "");
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let is_true = |key: &str| {
            text(key).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
            })
        };
        let cache = cache_root(variable);
        let stored = || {
            let beside = || Some(cache.as_ref()?.parent()?.join("token"));
            let path = expanded("HF_TOKEN_PATH", variable).or_else(beside)?;
            Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let token = match is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(stored),
        };
        let default = Self::default();
        Self {
            endpoint: text("HF_ENDPOINT").unwrap_or(default.endpoint),
            token,
            cache,
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
        }
    }
}

/// A hub and its cache.
pub struct Hub {
    client: Client,
    /// The cache's folder of models.
    root: PathBuf,
    is_offline: bool,
}

impl Hub {
    /// # Errors
    /// No place for a cache; a token that cannot be one.
    pub fn new(options: HubOptions) -> Result<Self> {
        let HubOptions { endpoint, cache, token, offline } = options;
        let Some(root) = cache else {
            return Err(Error::failed("there is no place for a Hugging Face cache: set HF_HOME"));
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::failed(
                "HF_TOKEN holds a character that no token has: copy it again",
            ));
        }
        let client = Client::new(endpoint.trim_end_matches('/').to_owned(), token);
        Ok(Self { client, root, is_offline: offline })
    }

    /// The snapshot in the cache, if it has all that it takes to run; else what is missing is downloaded,
    /// unless that is not allowed: then what there is.
    ///
    /// # Errors
    /// As [`Self::pull`]; no snapshot at all.
    pub fn find(
        &self,
        repository: &Repository,
        tell: &dyn Fn(Told) -> Result<()>,
    ) -> Result<Source> {
        let snapshot = repository.snapshot(&self.root)?;
        match snapshot.map(|folder| repository.source(folder)) {
            Some(Ok(source)) if is_complete(&source) => Ok(source),
            Some(source) if self.is_offline => source,
            None if self.is_offline => Err(Error::failed(format!(
                "{repository} is not in the Hugging Face cache {}, and the hub may not be asked \
                 (`offline`, HF_HUB_OFFLINE)",
                self.root.display()
            ))),
            _ => self.pull(repository, tell),
        }
    }

    /// The snapshot in the cache.
    ///
    /// # Errors
    /// No such snapshot.
    pub fn cached(&self, repository: &Repository) -> Result<Source> {
        match repository.snapshot(&self.root)? {
            Some(snapshot) => repository.source(snapshot),
            None => Err(Error::failed(format!(
                "{repository} is not in the Hugging Face cache {}: chaski pull {repository} downloads it",
                self.root.display()
            ))),
        }
    }

    /// Downloads what the cache lacks of the newest commit: configs, tokenizer and the weights that
    /// `transformers` would take. Returns the whole snapshot.
    ///
    /// # Errors
    /// A hub that cannot be reached, does not know the repository or does not give it to us; a repository
    /// without weights that we read; a disk that is full.
    pub fn pull(
        &self,
        repository: &Repository,
        tell: &dyn Fn(Told) -> Result<()>,
    ) -> Result<Source> {
        if self.is_offline {
            return Err(Error::failed(format!(
                "{repository} cannot be downloaded: `offline` or HF_HUB_OFFLINE forbids it"
            )));
        }
        let (origin, remotes) = self.listed(repository)?;
        let folder = repository.folder(&self.root);
        let (blobs, snapshot) =
            (folder.join("blobs"), folder.join("snapshots").join(&origin.commit));
        let missing: Vec<&Remote> =
            remotes.iter().filter(|remote| !remote.is_at(&snapshot.join(&remote.name))).collect();
        if !missing.is_empty() {
            self.announce(&origin, &missing, &blobs, tell)?;
            self.fetch(&origin, &missing, &blobs, &snapshot, tell)?;
            tell(Told::Done)?;
        }
        let refer = || {
            fs::create_dir_all(folder.join("refs"))?;
            fs::write(folder.join("refs/main"), &origin.commit)
        };
        match refer() {
            Err(error) if !missing.is_empty() => Err(cannot_write(&folder, error)),
            _ => repository.source(snapshot),
        }
    }

    /// The newest commit, and its files that we want.
    fn listed<'a>(&'a self, repository: &'a Repository) -> Result<(Origin<'a>, Vec<Remote>)> {
        let client = &self.client;
        let mut origin = Origin { client, repository, commit: String::new() };
        let path = format!("/api/models/{repository}/revision/main?blobs=true");
        let listing = json::parse_object(&origin.text(&path)?).map_err(|why| origin.odd(&why))?;
        let commit = listing.get("sha").and_then(Value::as_str).filter(|sha| is_word(sha));
        origin.commit = commit.ok_or_else(|| origin.odd("it names no commit"))?.to_owned();
        let files: Vec<&Map<String, Value>> = match listing.get("siblings") {
            Some(Value::Array(files)) => files.iter().filter_map(Value::as_object).collect(),
            _ => return Err(origin.odd("it lists no files")),
        };
        let name = |file: &&Map<String, Value>| file.get("rfilename")?.as_str().map(str::to_owned);
        let names: Vec<String> = files.iter().filter_map(name).collect();
        let weights = origin.weights(&names)?;
        let wanted = |name: &str| is_plain_name(name) && (weights.contains(name) || is_small(name));
        let remotes = files.iter().filter_map(|file| Some((name(file)?, *file)));
        let remotes = remotes.filter(|(name, _)| wanted(name));
        let remotes = remotes.map(|(name, file)| origin.remote(name, file));
        let remotes = remotes.collect::<Result<Vec<Remote>>>()?;
        Ok((origin, remotes))
    }

    /// Says what is to come, if there is room for it.
    fn announce(
        &self,
        origin: &Origin,
        missing: &[&Remote],
        blobs: &Path,
        tell: &dyn Fn(Told) -> Result<()>,
    ) -> Result<()> {
        let there = |remote: &Remote| {
            let [whole, part] = ["", ".incomplete"].map(|end| {
                let path = blobs.join(format!("{}{end}", remote.blob));
                fs::metadata(path).map_or(0, |metadata| metadata.len())
            });
            whole.max(part).min(remote.bytes)
        };
        let bytes: u64 = missing.iter().map(|remote| remote.bytes).sum();
        let to_come = bytes - missing.iter().map(|remote| there(remote)).sum::<u64>();
        let place = blobs.ancestors().find(|path| path.is_dir());
        let free = place.and_then(|place| fs4::available_space(place).ok());
        if let Some(free) = free.filter(|free| *free < to_come) {
            return Err(Error::failed(format!(
                "{} takes {} and {} has {} free: make room, or set HF_HOME to another disk",
                origin.repository,
                binary(to_come as usize),
                self.root.display(),
                binary(free as usize)
            )));
        }
        let line = format!(
            "{}: downloading {} of {}, {}, from {} to {}",
            origin.repository,
            match missing {
                [one] => quote(&one.name),
                several => format!("{} files", several.len()),
            },
            &origin.commit[..origin.commit.len().min(8)],
            binary(to_come as usize),
            origin.client.endpoint(),
            self.root.display()
        );
        tell(Told::Plan { line, bytes })
    }

    fn fetch(
        &self,
        origin: &Origin,
        missing: &[&Remote],
        blobs: &Path,
        snapshot: &Path,
        tell: &dyn Fn(Told) -> Result<()>,
    ) -> Result<()> {
        let locks = self.root.join(".locks").join(origin.repository.folder_name());
        for folder in [blobs, snapshot, &locks] {
            fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))?;
        }
        let mut done = 0;
        for remote in missing {
            let at = |bytes: u64| tell(Told::At(done + bytes));
            let lock = locked(&locks.join(format!("{}.lock", remote.blob)), &|| at(0))?;
            let (blob, target) = (blobs.join(&remote.blob), snapshot.join(&remote.name));
            if !remote.is_at(&blob) {
                download::download(origin, remote, &blob, &at)?;
            }
            download::link(&blob, &target).map_err(|error| cannot_write(&target, error))?;
            drop(lock);
            done += remote.bytes;
            tell(Told::At(done))?;
        }
        Ok(())
    }
}

/// Whether a snapshot has all that it takes to run.
fn is_complete(source: &Source) -> bool {
    let is_opened = matches!(source, Source::Gguf(_) | Source::Meta(_));
    is_opened || source.has("config.json") && Checkpoint::files(source).is_ok()
}

/// Configs, tokenizer and chat template.
fn is_small(name: &str) -> bool {
    let is_index = name.ends_with(".index.json");
    name.ends_with(".json") && !is_index || name.ends_with(".jinja") || name == "tokenizer.model"
}

/// The lock of a file that others may be downloading, too.
fn locked(path: &Path, waiting: &dyn Fn() -> Result<()>) -> Result<File> {
    let lock = File::create(path).map_err(|error| cannot_write(path, error))?;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(100)),
            Err(TryLockError::Error(error)) => return Err(cannot_write(path, error)),
        }
        waiting()?;
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::failed(format!("cannot write {}: {error}", path.display()))
}
