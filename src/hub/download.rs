//! One file of a repository, from the hub into the cache: resumed, checked, linked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::client::{Trouble, header};
use super::{Origin, Remote};
use crate::error::{Error, Result};
use crate::json::one_line;

/// How often in a row nothing may come before we give up.
const PATIENCE: u32 = 5;

const PIECE_BYTES: usize = 1 << 20;

/// A file on its way: `blobs/HASH.incomplete`.
struct Part<'a> {
    remote: &'a Remote,
    file: File,
    /// Bytes that are there.
    len: u64,
    hash: Context,
}

/// Brings a file to `blob`, going on from what is there of it; `at` is told how many bytes are.
///
/// # Errors
/// A hub that refuses, breaks off again and again, or sends another file than it has announced; a disk that
/// cannot be written; whatever `at` says.
pub fn download(
    origin: &Origin,
    remote: &Remote,
    blob: &Path,
    at: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let failed = |error| Error::failed(format!("cannot write {}: {error}", blob.display()));
    let mut partial = blob.as_os_str().to_owned();
    partial.push(".incomplete");
    let partial = Path::new(&partial);
    let mut part = Part::open(remote, partial).map_err(failed)?;
    at(part.len)?;
    let mut resumed = part.len > 0;
    loop {
        part.complete(origin, at)?;
        let found = part.hash.clone().finish();
        let found: String = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == remote.blob || !remote.has_hash() {
            break;
        }
        if !resumed {
            fs::remove_file(partial).map_err(failed)?;
            return Err(Error::failed(format!(
                "{}: its hash is {found} and the hub says {}: run the command again to fetch it anew",
                remote.name, remote.blob
            )));
        }
        resumed = false; // what was there of it may have been wrong
        part.restart().map_err(failed)?;
    }
    part.file.sync_all().map_err(failed)?;
    fs::rename(partial, blob).map_err(failed)
}

impl<'a> Part<'a> {
    fn open(remote: &'a Remote, path: &Path) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut part = Self { remote, len: 0, hash: remote.hash(), file: file.try_clone()? };
        if file.metadata()?.len() > remote.bytes {
            part.restart()?;
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(part),
                read => {
                    part.hash.update(&piece[..read]);
                    part.len += read as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.len = 0;
        self.hash = self.remote.hash();
        Ok(())
    }

    /// Fetches what is missing, as often as it breaks off.
    fn complete(&mut self, origin: &Origin, at: &dyn Fn(u64) -> Result<()>) -> Result<()> {
        let mut failures = 0;
        while self.len < self.remote.bytes {
            let before = self.len;
            let Some(why) = self.fetch(origin, at)? else { return Ok(()) };
            failures = if self.len > before { 0 } else { failures + 1 };
            if failures == PATIENCE {
                return Err(Error::failed(format!(
                    "{}: broken off after {} of {} bytes: {why}; the same command resumes there",
                    self.remote.name, self.len, self.remote.bytes
                )));
            }
            at(self.len)?;
            thread::sleep(Duration::from_millis(250) * failures * failures);
        }
        Ok(())
    }

    /// Fetches what comes in one answer; what has broken it off, if something has.
    fn fetch(&mut self, origin: &Origin, at: &dyn Fn(u64) -> Result<()>) -> Result<Option<String>> {
        let Remote { name, bytes, .. } = self.remote;
        let failed = |error| Error::failed(format!("cannot write {name}: {error}"));
        let response = match origin.client.get(&origin.path(name), self.len) {
            Ok(response) => response,
            Err(Trouble::Passing(why)) => return Ok(Some(why)),
            Err(trouble) => return Err(origin.refusal(trouble)),
        };
        let begins = format!("bytes {}-", self.len);
        let range = header(response.headers(), "content-range").unwrap_or_default();
        if self.len > 0 && !(response.status() == 206 && range.starts_with(&begins)) {
            // All of it comes, or nothing that we can use.
            self.restart().map_err(failed)?;
            if response.status() != 200 {
                return Ok(Some("the hub does not resume where it broke off".to_owned()));
            }
        }
        let announced = header(response.headers(), "content-length").and_then(|n| n.parse().ok());
        if let Some(announced) = announced.filter(|n: &u64| self.len + n != *bytes) {
            return Err(Error::failed(format!(
                "{name}: {} bytes arrive where the hub listed {bytes}: try again later",
                self.len + announced
            )));
        }
        self.file.seek(SeekFrom::Start(self.len)).map_err(failed)?;
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE_BYTES];
        while self.len < *bytes {
            let read = match body.read(&mut piece) {
                Ok(0) => return Ok(Some("the connection was closed".to_owned())),
                Ok(read) => read,
                Err(error) => return Ok(Some(one_line(&error.to_string()))),
            };
            if self.len + read as u64 > *bytes {
                self.restart().map_err(failed)?;
                return Err(Error::failed(format!(
                    "{name}: more than the {bytes} bytes that the hub listed: try again later"
                )));
            }
            self.file.write_all(&piece[..read]).map_err(failed)?;
            self.hash.update(&piece[..read]);
            self.len += read as u64;
            at(self.len)?;
        }
        Ok(None)
    }
}

impl Remote {
    /// Whether its name among blobs is its hash: SHA-256 of large files, git's SHA-1 of small ones.
    fn has_hash(&self) -> bool {
        matches!(self.blob.len(), 40 | 64) && self.blob.bytes().all(|b| b.is_ascii_hexdigit())
    }

    fn hash(&self) -> Context {
        if self.blob.len() == 64 {
            return Context::new(&SHA256);
        }
        let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        hash.update(format!("blob {}\0", self.bytes).as_bytes());
        hash
    }
}

/// Puts `blobs/BLOB` where a snapshot has it, by a relative link, or as a copy where there are no links.
pub fn link(blob: &Path, target: &Path) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let name = blob.file_name().unwrap_or_default();
    #[cfg(unix)]
    return std::os::unix::fs::symlink(Path::new("../../blobs").join(name), target);
    #[cfg(not(unix))]
    return fs::copy(blob, target).map(drop);
}
