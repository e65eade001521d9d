//! One commit of a model on the hub: what files it has, and what its refusals mean.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::MOST_TEXT_BYTES;
use super::client::{Client, Trouble, escaped, header};
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE, index};
use crate::error::{Error, Result};
use crate::json::{one_line, quote};
use crate::source::{Repository, advice, is_plain_name, part_names};

/// Where the files of one commit come from.
pub struct Origin<'a> {
    pub client: &'a Client,
    pub repository: &'a Repository,
    pub commit: String,
}

/// A file that the hub has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    /// What it is called among the cache's blobs: its hash.
    pub blob: String,
    pub bytes: u64,
}

impl Origin<'_> {
    pub fn path(&self, name: &str) -> String {
        format!("/{}/resolve/{}/{}", self.repository, self.commit, escaped(name))
    }

    /// A short text of the hub's.
    pub fn text(&self, path: &str) -> Result<Vec<u8>> {
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
    pub fn weights(&self, names: &[String]) -> Result<BTreeSet<String>> {
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
        let mut weights = BTreeSet::from_iter(part_names(chosen));
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
    pub fn remote(&self, name: String, listed: &Map<String, Value>) -> Result<Remote> {
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

    pub fn odd(&self, why: &str) -> Error {
        Error::failed(format!(
            "{}: the response about {} is not a hub's: {why}",
            self.client.endpoint(),
            self.repository
        ))
    }

    /// What an answer that is none means, and what to do.
    pub fn refusal(&self, trouble: Trouble) -> Error {
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
    pub fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == self.bytes)
    }
}

/// Whether it can be a file's name anywhere, and has no meaning anywhere.
pub fn is_word(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    is_plain_name(text) && text.len() <= 128 && text.bytes().all(is_plain)
}
