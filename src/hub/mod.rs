//! A model's files, from the Hugging Face hub or another that speaks as it does, into the cache that
//! `huggingface_hub` keeps: `blobs/HASH`, `snapshots/COMMIT/FILE`, `refs/main`. Nothing else of Chaski
//! uses the network but ranks in several processes.

mod client;
mod download;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE, index};
use crate::error::{Error, Result, binary};
use crate::json::{self, one_line, quote};
use crate::source::{Repository, Source, Variables, advice, cache_root, expanded, is_plain_name};
use client::{Client, Trouble, escaped, header};

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

/// Where the files of one commit come from.
struct Origin<'a> {
    client: &'a Client,
    repository: &'a Repository,
    commit: String,
}

/// A file that the hub has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remote {
    name: String,
    /// What it is called among the cache's blobs: its hash.
    blob: String,
    bytes: u64,
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
        let cached = repository.snapshot(&self.root)?.map(|folder| repository.source(folder));
        match cached {
            Some(source) if is_complete(&source) || self.is_offline => Ok(source),
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
            Some(snapshot) => Ok(repository.source(snapshot)),
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
            _ => Ok(repository.source(snapshot)),
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

impl Origin<'_> {
    fn path(&self, name: &str) -> String {
        format!("/{}/resolve/{}/{}", self.repository, self.commit, escaped(name))
    }

    /// A short text of the hub's.
    fn text(&self, path: &str) -> Result<Vec<u8>> {
        let response = self.client.get(path, 0).map_err(|trouble| self.refusal(trouble))?;
        let mut text = Vec::new();
        let body = response.into_body().into_reader();
        match body.take(MOST_TEXT_BYTES).read_to_end(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(self.refusal(Trouble::Passing(one_line(&error.to_string())))),
        }
    }

    /// The files of weights that `transformers` would take of all these, or those asked for; with their
    /// index.
    fn weights(&self, names: &[String]) -> Result<BTreeSet<String>> {
        let has = |name: &str| names.iter().any(|other| other == name);
        let chosen = match &self.repository.file {
            Some(file) => file.as_str(),
            None if has(SINGLE_FILE) => SINGLE_FILE,
            None => INDEX_FILE,
        };
        let lacks = |name: &str| {
            let advice = advice(names).map_or(String::new(), |advice| format!("; {advice}"));
            let place = self.client.endpoint();
            Err(Error::failed(format!("{place}/{} has no {name}{advice}", self.repository)))
        };
        if !has(chosen) {
            return match &self.repository.file {
                Some(file) => lacks(&quote(file)),
                None => lacks(&format!("{SINGLE_FILE} and no {INDEX_FILE}")),
            };
        }
        let mut weights = BTreeSet::from([chosen.to_owned()]);
        if chosen.ends_with(".index.json") {
            let wrong = |why: String| self.odd(&format!("{}: {why}", quote(chosen)));
            let index = index::parse(&self.text(&self.path(chosen))?).map_err(wrong)?;
            weights.extend(index.into_values());
        }
        match weights.iter().find(|name| !has(name)) {
            Some(absent) => lacks(&format!("{}, which {} names", quote(absent), quote(chosen))),
            None => Ok(weights),
        }
    }

    /// What the hub says of a file: in its list, or about the file itself where that is short.
    fn remote(&self, name: String, listed: &Map<String, Value>) -> Result<Remote> {
        let large = listed.get("lfs").and_then(Value::as_object);
        let blob = large.and_then(|lfs| lfs.get("sha256").or_else(|| lfs.get("oid")));
        let blob = blob.or_else(|| listed.get("blobId")).and_then(Value::as_str);
        let bytes = large.and_then(|lfs| lfs.get("size")).or_else(|| listed.get("size"));
        let mut told = (blob.map(str::to_owned), bytes.and_then(Value::as_u64));
        if told.0.is_none() || told.1.is_none() {
            let path = self.path(&name);
            let headers = self.client.describe(&path).map_err(|trouble| self.refusal(trouble))?;
            let text = |names: [&str; 2]| names.into_iter().find_map(|key| header(&headers, key));
            let tag = text(["x-linked-etag", "etag"]);
            let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
            let bytes = text(["x-linked-size", "content-length"]).and_then(|n| n.parse().ok());
            told = (tag, bytes);
        }
        match told {
            (Some(blob), Some(bytes)) if is_word(&blob) => Ok(Remote { name, blob, bytes }),
            _ => Err(self.odd(&format!("it tells no hash and size of {}", quote(&name)))),
        }
    }

    fn odd(&self, why: &str) -> Error {
        Error::failed(format!(
            "{}: the response about {} is not a hub's: {why}",
            self.client.endpoint(),
            self.repository
        ))
    }

    /// What an answer that is none means, and what to do.
    fn refusal(&self, trouble: Trouble) -> Error {
        let (repository, hub) = (self.repository, self.client.endpoint());
        let sent = match self.client.has_token() {
            true => "the token that was sent has no access to it",
            false => "no token was sent",
        };
        Error::failed(match trouble {
            Trouble::Passing(why) | Trouble::Lasting(why) => {
                format!("{repository}: {why}; `offline` does with what the cache has")
            }
            Trouble::Refused(401 | 403, why) if why != "RepoNotFound" => format!(
                "{repository} is gated or private, and {sent}: accept its licence at {hub}/{repository}, \
                 make a token at {hub}/settings/tokens and set HF_TOKEN to it"
            ),
            Trouble::Refused(401 | 403 | 404, why) if why != "EntryNotFound" => format!(
                "{hub} has no model {repository}, or it is private, and {sent}: check the name; for a \
                 private one, set HF_TOKEN to a token that may read it"
            ),
            Trouble::Refused(404, _) => {
                format!("{hub}/{repository} lacks a file that it lists: try again later")
            }
            Trouble::Refused(status, why) => {
                format!("{hub} refuses {repository}: status {status} {why}")
            }
        })
    }
}

impl Remote {
    /// Whether a file of its length is there. Hashes are checked when they are downloaded.
    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == self.bytes)
    }
}

/// Whether a snapshot has all that it takes to run.
fn is_complete(source: &Source) -> bool {
    source.has("config.json") && Checkpoint::files(source).is_ok()
}

/// Configs, tokenizer and chat template.
fn is_small(name: &str) -> bool {
    let is_index = name.ends_with(".index.json");
    name.ends_with(".json") && !is_index || name.ends_with(".jinja") || name == "tokenizer.model"
}

/// Whether it can be a file's name anywhere, and has no meaning anywhere.
fn is_word(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    is_plain_name(text) && text.len() <= 128 && text.bytes().all(is_plain)
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
