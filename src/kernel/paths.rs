//! Where a machine has what kernels need at run time.

use std::fmt::Display;
use std::path::PathBuf;

use super::nvrtc::Search;
use super::private;
use crate::error::{Error, Result};
use crate::source::Variables;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// The user's cache: what is made at run time is kept in its folder `chaski`.
    pub cache: Option<PathBuf>,
    /// NVIDIA's compiler.
    pub nvrtc: Search,
}

impl Paths {
    /// `XDG_CACHE_HOME`, or where the standard says it is; NVRTC as [`Search::from_variables`] has it.
    pub fn from_variables(variable: Variables<'_>) -> Self {
        let path = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        Self { cache, nvrtc: Search::from_variables(variable) }
    }

    /// The folder `chaski/NAME` of the cache, for this user alone.
    ///
    /// # Errors
    /// When it cannot be made, or others can write it.
    pub(crate) fn user_cache(&self, name: &str) -> Result<PathBuf> {
        let cannot = |why: &dyn Display| {
            Error::failed(format!(
                "there is no safe cache: {why}; XDG_CACHE_HOME can name a folder for it"
            ))
        };
        let none = || cannot(&"neither XDG_CACHE_HOME nor HOME is set");
        let cache = self.cache.as_ref().ok_or_else(none)?;
        private::folder(cache, &format!("chaski/{name}")).map_err(|error| cannot(&error))
    }
}
