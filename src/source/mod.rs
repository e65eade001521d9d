//! Where a model's files come from: a directory, a snapshot in the local Hugging Face cache, this
//! executable, or nowhere, where the model is synthetic. Files are reached by plain names only, so
//! that no file can lead us to another directory.

mod cache;
mod folder;
mod gguf;
mod mapped;
mod meta;
mod synthetic;

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use cache::{Repository, Variables, cache_root, expanded};
pub use folder::advice;
pub use gguf::{GgufModel, LLAMA3_PATTERN, ROPE_DIVISORS, part_names, pre_tokenizer_name};
pub use mapped::{MappedFile, tell_of_shortened_files};
use memmap2::Mmap;
pub use meta::{HEAD as META_HEAD, MetaModel, MetaPart};
pub use synthetic::Synthetic;

use crate::error::{Error, Result};
use crate::json::quote;

/// The model that is part of the executable, by the name that `--model` knows it by.
pub const DEMO: &str = "demo";

/// The one folder inside a model's whose files are read too.
const TEMPLATES: &str = "additional_chat_templates/";

/// Larger files are mapped or refused, never read whole: the largest tokenizer.json is a tenth of
/// this.
const READ_LIMIT_BYTES: u64 = 256 << 20;

/// The files of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory as `transformers` writes it: config.json, *.safetensors, tokenizer.json ...
    Directory(PathBuf),
    /// The same, with weights in a file of another name than the usual one.
    Chosen { directory: PathBuf, weights: String },
    /// A GGUF file, or its parts, seen as such a directory.
    Gguf(Arc<GgufModel>),
    /// A directory as Meta publishes it, seen as such a directory.
    Meta(Arc<MetaModel>),
    /// The files built into the executable.
    Demo,
    /// A config without files: `checkpoint` makes the weights.
    Synthetic(Synthetic),
}

impl Source {
    /// A model that is here: `demo`, `synthetic:SHAPE`, or a directory. `hub` finds those of other names.
    ///
    /// # Errors
    /// No such model.
    pub fn find(model: &str) -> Result<Source> {
        Source::here(model)?
            .ok_or_else(|| Error::failed(format!("no model {}: no such directory", quote(model))))
    }

    /// As [`Self::find`], of what is no name of a repository; none for the rest.
    ///
    /// # Errors
    /// A shape that is none, and a path that leads to no directory.
    pub fn here(model: &str) -> Result<Option<Source>> {
        if model == DEMO {
            return Ok(Some(Source::Demo));
        }
        if let Some(synthetic) = Synthetic::find(model)? {
            return Ok(Some(Source::Synthetic(synthetic)));
        }
        let path = Path::new(model);
        if path.is_dir() {
            return Source::of_directory(path.to_owned()).map(Some);
        }
        if model.ends_with(".gguf") && (path.exists() || !path.is_relative()) {
            return GgufModel::open(path).map(|model| Some(Source::Gguf(Arc::new(model))));
        }
        if path.exists() {
            return Err(Error::failed(format!(
                "{model} is not a directory: give the one that holds config.json and *.safetensors, or a \
                 file whose name ends with .gguf"
            )));
        }
        Ok(None)
    }

    /// The model in a directory: safetensors, or else Meta's own files, or else the only GGUF.
    ///
    /// # Errors
    /// Files that are not whole, or are not what they are called; several GGUFs.
    pub fn of_directory(directory: PathBuf) -> Result<Source> {
        let names = folder::names(&directory);
        let is_weights = |name: &String| {
            name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
        };
        if names.iter().any(is_weights) {
            return Ok(Source::Directory(directory));
        }
        if let Some(model) = MetaModel::open(&directory, &names)? {
            return Ok(Source::Meta(Arc::new(model)));
        }
        match gguf::only_model(&directory, &names)? {
            None => Ok(Source::Directory(directory)),
            Some(path) => GgufModel::open(&path).map(|model| Source::Gguf(Arc::new(model))),
        }
    }

    /// The file of the weights, or their index, where it has another name than usual.
    pub fn weights(&self) -> Option<&str> {
        match self {
            Source::Chosen { weights, .. } => Some(weights),
            _ => None,
        }
    }

    /// The directory that has the files.
    fn directory(&self) -> Option<&Path> {
        match self {
            Source::Directory(directory) | Source::Chosen { directory, .. } => Some(directory),
            Source::Meta(model) => Some(model.directory()),
            Source::Gguf(_) | Source::Demo | Source::Synthetic(_) => None,
        }
    }

    /// All names in the directory, and in its `original/`.
    pub fn names(&self) -> Vec<String> {
        self.directory().map_or_else(Vec::new, folder::names)
    }

    /// Whether there is anything of that name.
    pub fn has(&self, file: &str) -> bool {
        let in_directory = |directory: &Path| is_plain_name(file) && directory.join(file).exists();
        match self {
            Source::Meta(_) if file == meta::MADE => true,
            Source::Gguf(model) => model.has(file),
            Source::Demo => embedded(file).is_some(),
            Source::Synthetic(synthetic) => synthetic.file(file).is_some(),
            _ => self.directory().is_some_and(in_directory),
        }
    }

    /// The whole of a small file, or `None` where there is no such file.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        let directory = match self {
            Source::Meta(model) if file == meta::MADE => return model.config().map(Some),
            Source::Directory(directory) | Source::Chosen { directory, .. } => directory,
            Source::Meta(model) => model.directory(),
            Source::Gguf(model) => return model.file(file),
            Source::Demo => return Ok(embedded(file).map(<[u8]>::to_vec)),
            Source::Synthetic(synthetic) => return Ok(synthetic.file(file)),
        };
        let Some((opened, metadata)) = self.open(directory, file)? else {
            return Ok(None);
        };
        if metadata.len() > READ_LIMIT_BYTES {
            let limit_mib = READ_LIMIT_BYTES >> 20;
            let path = self.path(file);
            return Err(Error::failed(format!("{path}: over {limit_mib} MiB")));
        }
        let mut bytes = Vec::new();
        opened
            .take(READ_LIMIT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| self.cannot("read", file, error))?;
        Ok(Some(bytes))
    }

    /// A file's bytes where they lie: mapped, or embedded and aligned to 64 bytes.
    pub fn map(&self, file: &str) -> Result<Bytes> {
        if let (Source::Demo, Some(bytes)) = (self, embedded(file)) {
            return Ok(Bytes::Embedded(bytes));
        }
        let opened = self.directory().map(|directory| self.open(directory, file)).transpose()?;
        let Some((opened, metadata)) = opened.flatten() else {
            return Err(self.missing(file));
        };
        if metadata.len() == 0 {
            return Ok(Bytes::Embedded(&[]));
        }
        let map = MappedFile::new(opened, &self.path(file));
        Ok(Bytes::File(Arc::new(map.map_err(|error| self.cannot("map", file, error))?)))
    }

    /// A file's name for messages: `DIR/config.json`, `demo/config.json`.
    pub fn path(&self, file: &str) -> String {
        match self {
            // What the file would say is in the keys.
            Source::Gguf(_) => self.to_string(),
            Source::Meta(_) if file == meta::MADE => format!("{self}/{}", meta::PARAMS),
            _ => format!("{self}/{file}"),
        }
    }

    /// Why a file that must be there is not: what is in its place, and what to do.
    pub fn missing(&self, file: &str) -> Error {
        let advice = match (self, self.directory()) {
            (_, Some(directory)) => {
                let is_plain = is_plain_name(file);
                match is_plain.then(|| self.dangling(directory, file)).flatten() {
                    Some(error) => return error,
                    None => advice(&self.names()),
                }
            }
            (Source::Synthetic(_), _) => Some(
                "a synthetic model has a config and weights alone: token ids go in (`ids`) and come out \
                 (`print_ids`)"
                    .to_owned(),
            ),
            _ => None,
        };
        match advice {
            Some(advice) => Error::failed(format!("{}: no such file; {advice}", self.path(file))),
            None => Error::failed(format!("{}: no such file", self.path(file))),
        }
    }

    /// What is wrong with a file that is a link to nothing.
    fn dangling(&self, directory: &Path, file: &str) -> Option<Error> {
        let target = folder::dangling(&directory.join(file))?;
        Some(Error::failed(format!(
            "{}: it is a link to {target}, which is not there: fetch the model again",
            self.path(file)
        )))
    }

    /// Opens a regular file; `None` where there is none. Anything else (a directory, a pipe that
    /// would block for ever) is an error before it is opened.
    fn open(&self, directory: &Path, file: &str) -> Result<Option<(File, Metadata)>> {
        if !is_plain_name(file.strip_prefix(TEMPLATES).unwrap_or(file)) {
            return Err(Error::failed(format!("{self}: {} is not a plain file name", quote(file))));
        }
        let path = directory.join(file);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // A link to nothing is a model of which something is missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.dangling(directory, file).map_or(Ok(None), Err);
            }
            Err(error) => return Err(self.cannot("open", file, error)),
        };
        if !metadata.is_file() {
            return Err(Error::failed(format!("{}: not a regular file", self.path(file))));
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
            Source::Directory(directory) | Source::Chosen { directory, .. } => {
                f.write_str(&shown(directory))
            }
            Source::Meta(model) => f.write_str(&shown(model.directory())),
            Source::Gguf(model) => f.write_str(&model.parts()[0].path),
            Source::Demo => f.write_str(DEMO),
            Source::Synthetic(synthetic) => synthetic.fmt(f),
        }
    }
}

/// A file's bytes, mapped or embedded, or bytes that are in no file; a clone shares them.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// Mapped, and open to be read.
    File(Arc<MappedFile>),
    /// Memory of the system's.
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    /// Words, so that numbers in them are aligned.
    Made(Arc<[u64]>),
}

impl Bytes {
    /// Asks the system to read the file ahead of use. May block for as long as the disk's queue is
    /// full. A system that cannot do it reads on first use, so its answer does not matter.
    pub fn read_ahead(&self) {
        if let Bytes::File(file) = self {
            file.read_ahead();
        }
    }

    /// Copies the bytes from `at` on. A file is read, not copied from its map: should it have become
    /// shorter that is an error, where the map would end the process.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        if let Bytes::File(file) = self {
            return std::os::unix::fs::FileExt::read_exact_at(&file.file, into, at as u64);
        }
        into.copy_from_slice(&self[at..][..into.len()]);
        Ok(())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::File(file) => file,
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
            Bytes::Made(words) => bytemuck::cast_slice(words),
        }
    }
}

/// A path for messages, which have one line.
fn shown(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "?")
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
            static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../demo/", $file)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    pub fn message<T: fmt::Debug>(result: Result<T>) -> String {
        let message = result.expect_err("an error").to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    }

    pub fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempdir().expect("a directory");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        folder
    }

    fn directory(folder: &TempDir) -> Source {
        Source::Directory(folder.path().to_owned())
    }

    #[test]
    fn the_demo_reads_and_maps_the_same() {
        let source = Source::find("demo").expect("the demo");
        assert_eq!(source, Source::Demo);
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            let map = source.map(file).expect("a file");
            assert_eq!(map.as_ptr().addr() % 64, 0);
            assert_eq!(source.read(file).expect("a file").as_deref(), Some(&*map));
            assert!(source.has(file));
        }
        assert_eq!(source.read("no.json"), Ok(None));
        assert_eq!(message(source.map("no.json")), "demo/no.json: no such file");
    }

    #[test]
    fn a_directory_reads_and_maps_the_same() {
        let folder = folder(&[("a.json", "text"), ("empty", "")]);
        let source = Source::find(&folder.path().display().to_string()).expect("a directory");
        assert_eq!(source.read("a.json"), Ok(Some(b"text".to_vec())));
        assert_eq!(&*source.map("a.json").expect("a map"), b"text");
        assert_eq!(&*source.map("empty").expect("a map"), b"");
        assert_eq!(source.read("absent"), Ok(None));
        assert!(message(source.map("absent")).ends_with("absent: no such file"));
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let folder = folder(&[("secret", "s"), ("model/config.json", "{}")]);
        let source = Source::Directory(folder.path().join("model"));
        let absolute = folder.path().join("secret").display().to_string();
        for name in [
            "../secret",
            "..",
            ".",
            "",
            "x/../../secret",
            "..\\secret",
            "C:secret",
            "a\0",
            &absolute,
        ] {
            assert!(message(source.read(name)).contains("plain file name"), "{name}");
            assert!(message(source.map(name)).contains("plain file name"), "{name}");
            assert!(!source.has(name), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let folder = folder(&[("config.json/inside", "")]);
        let source = directory(&folder);
        assert!(message(source.read("config.json")).ends_with("config.json: not a regular file"));
        assert!(message(source.map("config.json")).ends_with("config.json: not a regular file"));
    }

    #[test]
    #[cfg(unix)]
    fn a_pipe_does_not_hang() {
        let folder = folder(&[]);
        let pipe = folder.path().join("config.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        let source = directory(&folder);
        assert!(message(source.read("config.json")).ends_with("config.json: not a regular file"));
        assert!(message(source.map("config.json")).ends_with("config.json: not a regular file"));
    }

    #[test]
    fn a_huge_file_is_not_read_whole() {
        let folder = folder(&[]);
        let file = File::create(folder.path().join("tokenizer.json")).expect("a file");
        file.set_len(READ_LIMIT_BYTES + 1).expect("a sparse file");
        assert!(message(directory(&folder).read("tokenizer.json")).contains("over 256 MiB"));
    }

    #[test]
    fn other_formats_are_named_with_their_cure() {
        for (file, cure) in [
            ("consolidated.00.pth", "give the directory"),
            ("params.json", "give the directory"),
            ("pytorch_model.bin", "save_pretrained"),
            ("llama.gguf", "ORGANISATION/NAME:llama.gguf"),
        ] {
            let folder = folder(&[(file, "")]);
            let message = message(directory(&folder).map("model.safetensors"));
            assert!(message.contains("model.safetensors: no such file"), "{message}");
            assert!(message.contains(file) && message.contains(cure), "{message}");
        }
    }
}
