//! Files and folders that code and verdicts are loaded from: nobody but this user (and root, who can do
//! everything) can have written them.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a mode: who else may write, and a folder in which each may remove only what is theirs.
const WRITABLE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Whom files belong to that this process makes.
fn user() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

fn is_own(metadata: &Metadata, user: u32) -> bool {
    metadata.uid() == user && metadata.mode() & WRITABLE == 0 && !metadata.is_symlink()
}

/// Whether what is at `path`, and no link, is this user's and nobody else can write it.
pub fn is_private(path: &Path) -> bool {
    let found = || -> io::Result<bool> { Ok(is_own(&fs::symlink_metadata(path)?, user()?)) };
    found().unwrap_or(false)
}

/// The folder `inside` of `base`, which is absolute, without links; both and those above are made, for this
/// user alone, where they are not there.
///
/// # Errors
/// When somebody else can write what is in it, or put something in its place: it is another user's; `base`
/// or what is in it can be written by others; a folder further above belongs to another user (but root), or
/// can be written by others who may also move what is not theirs. What the system says.
pub fn folder(base: &Path, inside: &str) -> io::Result<PathBuf> {
    let (user, path) = (user()?, base.join(inside));
    let depth = Path::new(inside).components().count();
    let there = path.ancestors().find(|folder| fs::symlink_metadata(folder).is_ok());
    let there = there.unwrap_or(Path::new("/"));
    let mut made = fs::canonicalize(there)?;
    let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
    let mut above = missing.components().count();
    for part in missing {
        // Nothing is made where others can write.
        check(&made, user, above.min(depth), depth)?;
        made.push(part);
        above -= 1;
        match DirBuilder::new().mode(0o700).create(&made) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
    }
    check(&made, user, 0, depth)?;
    Ok(made)
}

/// That nobody else writes the folder at `path`, which is so many levels above the one that is wanted, or one
/// above it; up to level `depth` no others may write at all.
fn check(path: &Path, user: u32, level: usize, depth: usize) -> io::Result<()> {
    for (level, folder) in (level..).zip(path.ancestors()) {
        let metadata = fs::symlink_metadata(folder)?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        let refused = if !metadata.is_dir() {
            "is no folder".to_owned()
        } else if owner != user && (level == 0 || owner != 0) {
            format!("belongs to another user ({owner})")
        } else if mode & WRITABLE != 0 && (level <= depth || mode & STICKY == 0) {
            format!("can be written by others (mode {mode:o})")
        } else {
            continue;
        };
        return Err(io::Error::other(format!("{} {refused}", folder.display())));
    }
    Ok(())
}

/// Reads a file.
///
/// # Errors
/// When somebody else can have written it; what the system says.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !is_own(&metadata, user()?) {
        return Err(io::Error::other("it is not this user's alone"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file whole or not at all, for this user alone, whoever else may write it at the same time.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("unfinished.{}.{number}", std::process::id()));
    let _ = fs::remove_file(&unfinished); // of an earlier process of this number
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}
