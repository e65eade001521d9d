//! Somebody who downloads from a hub that stands in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use chaski::error::Result;
use chaski::hub::{Hub, HubOptions, Told};
use chaski::source::{Repository, Source};
use tempfile::{TempDir, tempdir};

use crate::stand_in::{COMMIT, File, Server};

/// The files of a model that can run, as large as those of this golden checkpoint.
pub fn model() -> Vec<File> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mha7-hd32-bf16");
    ["config.json", "generation_config.json", "model.safetensors"]
        .map(|name| File::new(name, fs::read(folder.join(name)).unwrap()))
        .into()
}

pub fn file<'a>(files: &'a [File], name: &str) -> &'a File {
    files.iter().find(|file| file.name == name).unwrap()
}

/// A cache, and who asks for what.
pub struct User {
    pub home: TempDir,
    variables: BTreeMap<&'static str, String>,
    pub told: Mutex<Vec<Told>>,
}

impl User {
    pub fn of(server: &Server) -> Self {
        let home = tempdir().unwrap();
        let variables = BTreeMap::from([
            ("HF_ENDPOINT", server.endpoint.clone()),
            ("HF_HOME", home.path().display().to_string()),
        ]);
        Self { home, variables, told: Mutex::default() }
    }

    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.variables.insert(key, value.to_owned());
        self
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.options()).unwrap()
    }

    /// The same hub, which may not be asked.
    pub fn offline(&self) -> Hub {
        Hub::new(HubOptions { offline: true, ..self.options() }).unwrap()
    }

    fn options(&self) -> HubOptions {
        HubOptions::from_variables(&|key| self.variables.get(key).map(OsString::from))
    }

    pub fn pull(&self, model: &str) -> Result<Source> {
        self.hub().pull(&Repository::parse(model).unwrap(), &|told| self.hear(told))
    }

    pub fn find(&self, model: &str) -> Result<Source> {
        self.hub().find(&Repository::parse(model).unwrap(), &|told| self.hear(told))
    }

    pub fn hear(&self, told: Told) -> Result<()> {
        self.told.lock().unwrap().push(told);
        Ok(())
    }

    pub fn refused(&self) -> String {
        let message = self.pull("org/name").unwrap_err().to_string();
        assert!(!message.contains(char::is_control) && message.len() < 600, "{message}");
        message
    }

    pub fn folder(&self) -> PathBuf {
        self.home.path().join("hub/models--org--name")
    }

    pub fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }

    /// The files in the snapshot, each what `files` has.
    pub fn assert_snapshot(&self, files: &[File]) {
        let mut names = names(&self.snapshot());
        names.sort();
        let mut expected: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        expected.sort();
        assert_eq!(names, expected);
        for File { name, bytes, .. } in files {
            assert!(fs::read(self.snapshot().join(name)).unwrap() == *bytes, "{name}");
        }
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
