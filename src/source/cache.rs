//! The local Hugging Face cache: `ROOT/models--ORGANISATION--NAME/snapshots/COMMIT/FILE`.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{GgufModel, Source, is_plain_name};
use crate::error::{Error, Result};
use crate::json::quote;

/// A model at the hub and in its cache: `ORGANISATION/NAME`, and the file of its weights where that is not
/// the usual one: `ORGANISATION/NAME:FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    organisation: String,
    name: String,
    /// A safetensors file, the index of several, or a GGUF file.
    pub file: Option<String>,
}

impl Repository {
    /// Reads `ORGANISATION/NAME[:FILE]`.
    ///
    /// # Errors
    /// What is no such name.
    pub fn parse(model: &str) -> Result<Self> {
        let (repository, file) = match model.split_once(':') {
            Some((repository, file)) => (repository, Some(file.to_owned())),
            None => (model, None),
        };
        let is_name = |part: &str| {
            is_plain_name(part)
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts = repository.split_once('/').filter(|(o, n)| is_name(o) && is_name(n));
        let Some((organisation, name)) = parts else {
            return Err(Error::failed(format!(
                "no model {}: no such directory, and not a model's name of the form ORGANISATION/NAME; \
                 give a directory that holds config.json and *.safetensors",
                quote(model)
            )));
        };
        let is_weights = |file: &String| {
            is_plain_name(file)
                && [".safetensors", ".safetensors.index.json", ".gguf"]
                    .iter()
                    .any(|end| file.ends_with(end))
        };
        if let Some(file) = file.as_ref().filter(|file| !is_weights(file)) {
            return Err(Error::failed(format!(
                "{}: a file ending in .safetensors, .safetensors.index.json or .gguf, in no folder, is \
                 needed after the colon",
                quote(file)
            )));
        }
        Ok(Self { organisation: organisation.to_owned(), name: name.to_owned(), file })
    }

    /// `models--ORGANISATION--NAME`
    pub fn folder_name(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }

    /// Its place in the cache at `root`.
    pub fn folder(&self, root: &Path) -> PathBuf {
        root.join(self.folder_name())
    }

    /// The snapshot that `refs/main` names, or the only one there is; none where there is none.
    ///
    /// # Errors
    /// Several, of which none is named.
    pub fn snapshot(&self, root: &Path) -> Result<Option<PathBuf>> {
        let folder = self.folder(root);
        let snapshots = folder.join("snapshots");
        let main = fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
        if is_plain_name(main.trim()) && snapshots.join(main.trim()).is_dir() {
            return Ok(Some(snapshots.join(main.trim())));
        }
        let mut revisions = fs::read_dir(&snapshots)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir());
        match (revisions.next(), revisions.next()) {
            (only, None) => Ok(only),
            (_, Some(_)) => Err(Error::failed(format!(
                "{} holds several snapshots and refs/main names none of them: give the path of one",
                snapshots.display()
            ))),
        }
    }

    /// The model in this snapshot of it.
    ///
    /// # Errors
    /// As [`Source::of_directory`].
    pub fn source(&self, snapshot: PathBuf) -> Result<Source> {
        match &self.file {
            None => Source::of_directory(snapshot),
            Some(file) if file.ends_with(".gguf") => {
                GgufModel::open(&snapshot.join(file)).map(|model| Source::Gguf(Arc::new(model)))
            }
            Some(file) => Ok(Source::Chosen { directory: snapshot, weights: file.clone() }),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)
    }
}

/// What environment variables say; paths need not be text.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The Hugging Face cache's directory of models, by the rules of `huggingface_hub`.
pub fn cache_root(variable: Variables<'_>) -> Option<PathBuf> {
    expanded("HF_HUB_CACHE", variable)
        .or_else(|| expanded("HUGGINGFACE_HUB_CACHE", variable))
        .or_else(|| expanded("HF_HOME", variable).map(|home| home.join("hub")))
        .or_else(|| expanded("XDG_CACHE_HOME", variable).map(|cache| cache.join("huggingface/hub")))
        .or_else(|| {
            let home = variable("HOME").filter(|home| !home.is_empty())?;
            Some(PathBuf::from(home).join(".cache/huggingface/hub"))
        })
}

/// A variable's path, with `~`, `$NAME` and `${NAME}` expanded as Python's `expanduser` and `expandvars`
/// do: what is not set stays as it is. None where it is not set, or empty.
pub fn expanded(key: &str, variable: Variables<'_>) -> Option<PathBuf> {
    let value = variable(key).filter(|value| !value.is_empty())?;
    let Ok(mut value) = value.clone().into_string() else {
        return Some(PathBuf::from(value)); // not text: taken as it is
    };
    let text = |key: &str| variable(key)?.into_string().ok();
    if let (Some(rest), Some(home)) = (value.strip_prefix('~'), text("HOME"))
        && (rest.is_empty() || rest.starts_with('/'))
    {
        value = format!("{}{rest}", home.trim_end_matches('/'));
    }
    let (mut path, mut rest) = (String::new(), value.as_str());
    while let Some(dollar) = rest.find('$') {
        path.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, end) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match text(name).filter(|_| !name.is_empty()) {
            Some(found) => path.push_str(&found),
            None => path.push_str(&rest[dollar..dollar + 1 + end]),
        }
        rest = &after[end..];
    }
    Some(PathBuf::from(path + rest))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{folder, message};
    use super::*;

    /// In an environment of these variables.
    fn root(set: &[(&str, &str)]) -> Option<String> {
        let value = |key: &str| set.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        let root = cache_root(&|key| value(key).map(OsString::from));
        root.map(|path| path.display().to_string())
    }

    #[test]
    fn the_cache_is_found_by_the_rules_of_its_makers() {
        let all =
            [("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/u")];
        assert_eq!(root(&all).as_deref(), Some("/c"));
        assert_eq!(root(&all[1..]).as_deref(), Some("/h/hub"));
        assert_eq!(root(&all[2..]).as_deref(), Some("/x/huggingface/hub"));
        assert_eq!(root(&all[3..]).as_deref(), Some("/u/.cache/huggingface/hub"));
        assert_eq!(
            root(&[("HF_HOME", ""), ("HOME", "/u")]).as_deref(),
            Some("/u/.cache/huggingface/hub")
        );
        assert_eq!(root(&[]), None);
    }

    /// As Python 3's `os.path.expandvars(os.path.expanduser(path))` gives them.
    #[test]
    fn tildes_and_variables_are_expanded_as_python_does() {
        for (path, expected) in [
            ("~", "/u"),
            ("~/hub", "/u/hub"),
            ("~other/hub", "~other/hub"),
            ("/a/~", "/a/~"),
            ("$DATA/hub", "/data/hub"),
            ("${DATA}x/hub", "/datax/hub"),
            ("$DATAx/hub", "$DATAx/hub"),
            ("/a/$/b", "/a/$/b"),
            ("/a/$$DATA", "/a/$/data"),
            ("/a/${DATA", "/a/${DATA"),
            ("/a/${}/$1", "/a/${}/$1"),
            ("~/$TILDE", "/u/~"),
        ] {
            let set = [("HF_HUB_CACHE", path), ("HOME", "/u"), ("DATA", "/data"), ("TILDE", "~")];
            assert_eq!(root(&set).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn snapshots_are_found_by_reference_or_alone() {
        let cache = folder(&[
            ("models--a--one/snapshots/0001/config.json", "{}"),
            ("models--a--two/snapshots/0001/config.json", "{}"),
            ("models--a--two/snapshots/0002/config.json", "{}"),
            ("models--a--two/refs/main", "0002\n"),
            ("models--a--many/snapshots/0001/config.json", "{}"),
            ("models--a--many/snapshots/0002/config.json", "{}"),
            ("models--a--evil/snapshots/0001/config.json", "{}"),
            ("models--a--evil/refs/main", "../../models--a--two/snapshots/0001"),
            ("models--a--none/refs/main", "0001"),
        ]);
        let find = |model: &str| Repository::parse(model)?.snapshot(cache.path());
        let snapshot = |path: &str| Ok(Some(cache.path().join(path)));
        assert_eq!(find("a/one"), snapshot("models--a--one/snapshots/0001"));
        assert_eq!(find("a/two"), snapshot("models--a--two/snapshots/0002"));
        assert_eq!(find("a/two:b.safetensors"), snapshot("models--a--two/snapshots/0002"));
        assert_eq!(find("a/evil"), snapshot("models--a--evil/snapshots/0001"));
        assert!(message(find("a/many")).contains("several snapshots"));
        assert_eq!((find("a/none"), find("a/absent")), (Ok(None), Ok(None)));
        for model in ["a", "", "../x", "a/..", "a/b/c", "/etc/passwd/x", "a\n/b", "ü/b"] {
            assert!(message(find(model)).contains("no model"), "{model}");
        }
        for file in
            ["", "../b.safetensors", "b/c.safetensors", "b/model.gguf", "x.json", "a\0.json"]
        {
            assert!(message(find(&format!("a/one:{file}"))).contains("after the colon"), "{file}");
        }
    }
}
