//! Where a model's files come from: a directory, a snapshot in the local Hugging Face cache, or
//! this executable. Files are reached by plain names only, so that no file can lead us to another
//! directory.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::json::quote;

/// The model that is part of the executable, by the name that `--model` knows it by.
pub const DEMO: &str = "demo";

/// Larger files are mapped or refused, never read whole: the largest tokenizer.json is a tenth of
/// this.
const READ_LIMIT_BYTES: u64 = 256 << 20;

/// The files of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory as `transformers` writes it: config.json, *.safetensors, tokenizer.json ...
    Directory(PathBuf),
    /// The files built into the executable.
    Demo,
}

impl Source {
    /// Finds a model: `demo`, else a directory, else `organisation/name` among the snapshots of the
    /// local Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME`, `~/.cache/huggingface`). Never
    /// downloads.
    pub fn find(model: &str) -> Result<Source> {
        if model == DEMO {
            return Ok(Source::Demo);
        }
        let path = Path::new(model);
        if path.is_dir() {
            return Ok(Source::Directory(path.to_owned()));
        }
        if path.exists() {
            return Err(Error::failed(format!(
                "{model} is not a directory: give the one that holds config.json and *.safetensors"
            )));
        }
        find_in_cache(model, cache_root(|key| std::env::var_os(key)).as_deref())
    }

    /// Whether there is anything of that name.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Source::Directory(directory) => is_plain_name(file) && directory.join(file).exists(),
            Source::Demo => embedded(file).is_some(),
        }
    }

    /// The whole of a small file, or `None` where there is no such file.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        let Source::Directory(directory) = self else {
            return Ok(embedded(file).map(<[u8]>::to_vec));
        };
        let Some((opened, metadata)) = self.open(directory, file)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        opened
            .take(READ_LIMIT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| self.cannot("read", file, e))?;
        if metadata.len() >= READ_LIMIT_BYTES || bytes.len() as u64 == READ_LIMIT_BYTES {
            let limit_mib = READ_LIMIT_BYTES >> 20;
            return Err(Error::failed(format!(
                "{} has over {limit_mib} MiB: not such a file",
                self.path(file)
            )));
        }
        Ok(Some(bytes))
    }

    /// A file's bytes where they lie: mapped, or embedded and aligned to 64 bytes.
    pub fn map(&self, file: &str) -> Result<Bytes> {
        let Source::Directory(directory) = self else {
            return embedded(file).map(Bytes::Embedded).ok_or_else(|| self.missing(file));
        };
        let Some((opened, metadata)) = self.open(directory, file)? else {
            return Err(self.missing(file));
        };
        if metadata.len() == 0 {
            return Ok(Bytes::Embedded(&[]));
        }
        // SAFETY: the map is read-only and private to `Bytes`, which hands out shared slices only.
        // Nobody guarantees that no other process writes to or truncates the file meanwhile: as
        // with every mapped model, the user must not change a model's files under a running
        // program.
        let map = unsafe { Mmap::map(&opened) }.map_err(|e| self.cannot("map", file, e))?;
        Ok(Bytes::Mapped(Arc::new(map)))
    }

    /// A file's name for messages: `DIR/config.json`, `demo/config.json`.
    pub fn path(&self, file: &str) -> String {
        format!("{self}/{file}")
    }

    /// Why a file that must be there is not: what is in its place, and what to do.
    pub fn missing(&self, file: &str) -> Error {
        let advice = match self {
            Source::Directory(directory) => foreign_format(directory),
            Source::Demo => None,
        };
        match advice {
            Some(advice) => Error::failed(format!("{}: no such file; {advice}", self.path(file))),
            None => Error::failed(format!("{}: no such file", self.path(file))),
        }
    }

    /// Opens a regular file; `None` where there is none. Anything else (a directory, a pipe that
    /// would block for ever) is an error before it is opened.
    fn open(&self, directory: &Path, file: &str) -> Result<Option<(File, Metadata)>> {
        if !is_plain_name(file) {
            return Err(Error::failed(format!("{self}: {} is not a plain file name", quote(file))));
        }
        let path = directory.join(file);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.cannot("open", file, error)),
        };
        if !metadata.is_file() {
            return Err(Error::failed(format!("{} is not a regular file", self.path(file))));
        }
        let opened = File::open(&path).map_err(|e| self.cannot("open", file, e))?;
        Ok(Some((opened, metadata)))
    }

    fn cannot(&self, what: &str, file: &str, error: io::Error) -> Error {
        Error::failed(format!("cannot {what} {}: {error}", self.path(file)))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Directory(directory) => directory.display().fmt(f),
            Source::Demo => f.write_str(DEMO),
        }
    }
}

/// A file's bytes, mapped or embedded; a clone shares them.
#[derive(Debug, Clone)]
pub enum Bytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
}

impl Bytes {
    /// Asks the system to read the file ahead of use. May block for as long as the disk's queue is
    /// full. A system that cannot do it reads on first use, so its answer does not matter.
    pub fn read_ahead(&self) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

/// Whether `name` names a file in the directory at hand and in no other, on any system.
pub fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', ':', '\0'])
}

/// A file of the built-in model, aligned as a mapped file's weights must be.
fn embedded(file: &str) -> Option<&'static [u8]> {
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    macro_rules! demo_file {
        ($file:literal) => {{
            static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("demo/", $file)));
            ($file, &FILE.0)
        }};
    }
    let files = [
        demo_file!("config.json"),
        demo_file!("generation_config.json"),
        demo_file!("model.safetensors"),
        demo_file!("tokenizer.json"),
        demo_file!("tokenizer_config.json"),
    ];
    files.into_iter().find(|(name, _)| *name == file).map(|(_, bytes)| bytes)
}

/// What to do with a directory whose weights are in a format that we do not read.
fn foreign_format(directory: &Path) -> Option<String> {
    let names: Vec<String> = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let first = |suffixes: &[&str]| {
        names.iter().filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix))).min()
    };
    if first(&[".safetensors"]).is_some() {
        return None;
    }
    if let Some(name) =
        first(&[".pth"]).or_else(|| names.iter().find(|name| *name == "params.json"))
    {
        return Some(format!(
            "{name} is in Meta's own format and safetensors are needed: convert the directory with \
             transformers' convert_llama_weights_to_hf.py"
        ));
    }
    if let Some(name) = first(&[".bin", ".pt"]) {
        return Some(format!(
            "{name} is a pickle and safetensors are needed: load it with transformers and save it \
             with save_pretrained"
        ));
    }
    first(&[".gguf", ".ggml"]).map(|name| {
        format!(
            "{name} is in llama.cpp's format and safetensors are needed: download the \
             repository it was made from"
        )
    })
}

/// The Hugging Face cache's directory of models, by the rules of `huggingface_hub`.
fn cache_root(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let path = |key: &str| variable(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// Looks `organisation/name` up in a Hugging Face cache:
/// `models--organisation--name/snapshots/REVISION`, of the revision that `refs/main` names, or of
/// the only one there is.
fn find_in_cache(model: &str, root: Option<&Path>) -> Result<Source> {
    let not_found = |where_looked: String| {
        Error::failed(format!(
            "no model {}: no such directory, and {where_looked}; give a directory that holds \
             config.json and *.safetensors, or fetch one with: \
             hf download ORGANISATION/NAME --exclude 'original/*'",
            quote(model)
        ))
    };
    let is_name = |part: &str| {
        is_plain_name(part) && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let Some((organisation, name)) =
        model.split_once('/').filter(|(o, n)| is_name(o) && is_name(n))
    else {
        return Err(not_found("not a model's name of the form ORGANISATION/NAME".to_owned()));
    };
    let Some(root) = root else {
        return Err(not_found("no Hugging Face cache (HF_HOME and HOME are not set)".to_owned()));
    };
    let repository = root.join(format!("models--{organisation}--{name}"));
    if !repository.is_dir() {
        return Err(not_found(format!("not in the Hugging Face cache {}", root.display())));
    }
    let snapshots = repository.join("snapshots");
    let main = fs::read_to_string(repository.join("refs/main")).unwrap_or_default();
    if is_plain_name(main.trim()) && snapshots.join(main.trim()).is_dir() {
        return Ok(Source::Directory(snapshots.join(main.trim())));
    }
    let mut revisions = fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir());
    match (revisions.next(), revisions.next()) {
        (Some(only), None) => Ok(Source::Directory(only)),
        (None, _) => Err(not_found(format!("{} holds no snapshot of it", repository.display()))),
        (Some(_), Some(_)) => Err(Error::failed(format!(
            "{} holds several snapshots and refs/main names none of them: give the path of one",
            snapshots.display()
        ))),
    }
}
