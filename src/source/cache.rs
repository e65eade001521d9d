//! The local Hugging Face cache: `ROOT/models--ORGANISATION--NAME/snapshots/REVISION/FILE`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Source, is_plain_name};
use crate::error::{Error, Result};
use crate::json::quote;

/// The Hugging Face cache's directory of models, by the rules of `huggingface_hub`.
pub fn root(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
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
pub fn find(model: &str, root: Option<&Path>) -> Result<Source> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{folder, message};
    use super::*;

    #[test]
    fn the_cache_is_found_by_the_rules_of_its_makers() {
        let root = |set: &[(&str, &str)]| {
            let value =
                |key: &str| set.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
            super::root(|key| value(key).map(OsString::from)).map(|path| path.display().to_string())
        };
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
        let find = |model: &str| super::find(model, Some(cache.path()));
        let snapshot = |path: &str| Ok(Source::Directory(cache.path().join(path)));
        assert_eq!(find("a/one"), snapshot("models--a--one/snapshots/0001"));
        assert_eq!(find("a/two"), snapshot("models--a--two/snapshots/0002"));
        assert_eq!(find("a/evil"), snapshot("models--a--evil/snapshots/0001"));
        assert!(message(find("a/many")).contains("several snapshots"));
        for model in
            ["a/none", "a/absent", "a", "", "../x", "a/..", "a/b/c", "/etc/passwd/x", "a\n/b"]
        {
            assert!(message(find(model)).contains("no model"), "{model}");
        }
        assert!(message(super::find("a/b", None)).contains("HF_HOME"));
    }
}
