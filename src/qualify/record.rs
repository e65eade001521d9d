//! What has been found out about a kind of GPU, kept in the user's cache.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Check, Verdict};
use crate::error::{Error, Result};
use crate::executor::cuda::{self, Gpu};
use crate::kernel::compile::hash;
use crate::kernel::{Paths, private};

/// Whatever could change a verdict, beside the machine code that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model's name.
    pub gpu: String,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// The driver's version, and that of its CUDA.
    pub driver: String,
    /// Of this program, which decides how kernels are launched.
    pub version: String,
    /// The emulator's build and its modes; none for a real GPU.
    pub emulator: Option<String>,
}

impl Identity {
    /// # Errors
    /// When the driver does not say.
    pub fn of(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            gpu: gpu.name.clone(),
            capability: gpu.capability,
            multiprocessors: gpu.multiprocessors,
            driver: gpu.driver()?,
            version: env!("CHASKI_VERSION").to_owned(),
            emulator: cuda::emulated(),
        })
    }
}

/// The verdicts on a kind of GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub identity: Identity,
    /// When the last one was added.
    pub date: String,
    pub verdicts: Vec<Verdict>,
    #[serde(default)]
    pub peers: Vec<PeerVerdict>,
    /// Where it is kept.
    #[serde(skip)]
    paths: Paths,
}

/// Whether GPUs that are to reach each other's memory do, as ranks on them have found when they tried it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerVerdict {
    /// The GPUs' UUIDs, in the order of ranks.
    pub gpus: Vec<String>,
    /// Of the machine code that it was tried by.
    pub code: String,
    pub works: bool,
}

impl Record {
    /// What was kept; nothing where there is no file, or one that another version has written.
    pub fn load(identity: Identity, paths: &Paths) -> Self {
        let kept = path(&identity, paths).ok().and_then(|path| private::read(&path).ok());
        let kept = kept.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let paths = paths.clone();
        match kept.filter(|kept| kept.identity == identity) {
            Some(kept) => Self { paths, ..kept },
            None => {
                let (date, verdicts, peers) = (String::new(), Vec::new(), Vec::new());
                Self { identity, date, verdicts, peers, paths }
            }
        }
    }

    /// What was found about this check of this machine code.
    pub fn verdict(&self, check: &Check, code: &str) -> Option<&Verdict> {
        self.verdicts.iter().find(|verdict| verdict.check == *check && verdict.code == code)
    }

    /// Takes a verdict in place of the one before.
    pub fn put(&mut self, verdict: Verdict) {
        self.verdicts.retain(|known| known.check != verdict.check);
        self.verdicts.push(verdict);
        self.date = jiff::Timestamp::now().to_string();
    }

    /// Whether these GPUs reach each other's memory, if that is known.
    pub fn peers(&self, gpus: &[String], code: &str) -> Option<bool> {
        let known = self.peers.iter().find(|known| known.gpus == gpus && known.code == code);
        known.map(|known| known.works)
    }

    /// Takes such a verdict in place of the one before.
    pub fn put_peers(&mut self, verdict: PeerVerdict) {
        self.peers.retain(|known| known.gpus != verdict.gpus);
        self.peers.push(verdict);
    }

    /// The file.
    ///
    /// # Errors
    /// When there is no cache for it.
    pub fn path(&self) -> Result<PathBuf> {
        path(&self.identity, &self.paths)
    }

    /// Keeps the record: the whole file or none, whoever else may be at it.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn save(&self) -> Result<()> {
        let path = self.path()?;
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Error::failed(format!("cannot write JSON: {error}")))?;
        let failed = |error| Error::failed(format!("cannot write {}: {error}", path.display()));
        private::write(&path, (text + "\n").as_bytes()).map_err(failed)
    }
}

fn path(identity: &Identity, paths: &Paths) -> Result<PathBuf> {
    let letters = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = identity.gpu.chars().map(letters).collect();
    let hash = hash([&*format!("{identity:?}")].into_iter());
    Ok(paths.user_cache("qualified")?.join(format!("{name}-{hash}.json")))
}
