//! `chaski pull`, and models that other commands name as the hub does.

use std::cell::RefCell;

use indicatif::ProgressBar;

use super::args::PullArgs;
use super::open::{hub_options, not_interrupted};
use super::output::{note, print, progress};
use crate::error::Result;
use crate::hub::{Hub, Told};
use crate::source::{Repository, Source};

/// Downloads what the cache lacks of a model, and prints where it is.
///
/// # Errors
/// What keeps it from coming.
pub fn run(args: &PullArgs) -> Result<()> {
    let repository = Repository::parse(&args.model)?;
    let hub = hub(args.offline)?;
    let source = watched(|tell| hub.pull(&repository, tell))?;
    print(&format!("{source}\n"))
}

/// A model by whatever name; what is missing of one that the hub has is downloaded, unless `offline`.
///
/// # Errors
/// No such model; what keeps it from coming.
pub fn find(model: &str, offline: bool) -> Result<Source> {
    if let Some(source) = Source::here(model)? {
        return Ok(source);
    }
    let repository = Repository::parse(model)?;
    let hub = hub(offline)?;
    watched(|tell| hub.find(&repository, tell))
}

/// As [`find`], of what is here already.
///
/// # Errors
/// No such model.
pub fn cached(model: &str) -> Result<Source> {
    match Source::here(model)? {
        Some(source) => Ok(source),
        None => hub(true)?.cached(&Repository::parse(model)?),
    }
}

fn hub(offline: bool) -> Result<Hub> {
    Hub::new(hub_options(offline)?)
}

/// Shows how a download goes, and ends it at Ctrl-C.
fn watched(download: impl FnOnce(&dyn Fn(Told) -> Result<()>) -> Result<Source>) -> Result<Source> {
    let bar: RefCell<Option<ProgressBar>> = RefCell::new(None);
    let tell = |told| {
        let mut bar = bar.borrow_mut();
        match (told, &*bar) {
            (Told::Plan { line, bytes }, _) => {
                note(line);
                *bar = Some(progress(bytes, "download"));
            }
            (Told::At(bytes), Some(bar)) => bar.set_position(bytes),
            (Told::Done, Some(bar)) => bar.finish_and_clear(),
            (_, None) => {}
        }
        not_interrupted()
    };
    let source = download(&tell);
    if let Some(bar) = bar.into_inner() {
        bar.finish_and_clear();
    }
    source
}
