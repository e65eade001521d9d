//! Files that commands write: whole under their names, or not there at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// Links that lead on to each other, at most: as many as Linux follows.
const MOST_LINKS: usize = 40;

/// A file on its way. A regular one is written under a name of its own beside the target, and gets its name
/// when it is whole; whatever ends it before leaves nothing. What is no regular file - a device, a pipe, a
/// descriptor of this process as in /dev/stdout - is written into. Links are followed.
pub struct Output {
    /// As the user has it.
    path: PathBuf,
    to: To,
}

enum To {
    Beside { file: NamedTempFile, target: PathBuf },
    Into(File),
}

impl Output {
    /// # Errors
    /// What keeps the file from being written there.
    pub fn create(path: &Path) -> Result<Self> {
        let to = To::create(path).map_err(|error| failed(path, error))?;
        Ok(Self { path: path.to_owned(), to })
    }

    /// # Errors
    /// A full disk, a device that fails. A reader that has left is [`Error::ReaderLeft`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.to {
            To::Beside { file, .. } => file.write_all(bytes),
            To::Into(file) => file.write_all(bytes),
        };
        written.map_err(|error| failed(&self.path, error))
    }

    /// Where the bytes lie until they are [`Self::finish`]ed: for those who write by path.
    pub fn beside(&self) -> Option<&Path> {
        match &self.to {
            To::Beside { file, .. } => Some(file.path()),
            To::Into(_) => None,
        }
    }

    /// Gives the file its name, when what it holds is on the disk.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(self) -> Result<()> {
        let Self { path, to } = self;
        let To::Beside { file, target } = to else { return Ok(()) };
        let finished = file.as_file().sync_all().and_then(|()| Ok(file.persist(&target)?));
        finished.and_then(|_| sync_folder(&target)).map_err(|error| failed(&path, error))
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`Output::write`].
pub fn write_file(path: &Path, text: &str) -> Result<()> {
    let mut output = Output::create(path)?;
    output.write(text.as_bytes())?;
    output.finish()
}

/// A folder on its way to the name `path`, which nothing has yet; dropped before, it is removed.
///
/// # Errors
/// Something of that name; what keeps it from being made there.
pub fn folder_beside(path: &Path) -> Result<TempDir> {
    let make = || {
        let target = followed(path)?;
        if target.exists() {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "it already exists"));
        }
        let mut builder = Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777)); // less the umask
        builder.prefix(".chaski-").suffix(".partial").tempdir_in(parent(&target))
    };
    make().map_err(|error| failed(path, error))
}

/// Gives a folder its name.
///
/// # Errors
/// What has come to have that name meanwhile.
pub fn finish_folder(folder: TempDir, path: &Path) -> Result<()> {
    let renamed = followed(path).and_then(|target| {
        fs::rename(folder.path(), &target)?;
        sync_folder(&target)
    });
    renamed.map_err(|error| failed(path, error))?;
    let _ = folder.keep(); // has its name: there is nothing left to remove
    Ok(())
}

impl To {
    fn create(path: &Path) -> io::Result<Self> {
        if let Some(descriptor) = descriptor(path)? {
            return Ok(Self::Into(descriptor));
        }
        let target = followed(path)?;
        let permissions = match fs::metadata(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
            Ok(metadata) if metadata.is_file() => Some(metadata.permissions()),
            Ok(_) => return Ok(Self::Into(OpenOptions::new().write(true).open(&target)?)),
        };
        let mut builder = Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
        let file = builder.prefix(".chaski-").suffix(".partial").tempfile_in(parent(&target))?;
        if let Some(permissions) = permissions {
            file.as_file().set_permissions(permissions)?;
        }
        Ok(Self::Beside { file, target })
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::ReaderLeft,
        _ => Error::failed(format!("cannot write {}: {error}", path.display())),
    }
}

/// One step along a link, from its folder on.
fn link(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(path) {
        Ok(to) => Ok(Some(parent(path).join(to))),
        // No link, or nothing at all.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Where links from `path` lead, be there something or not yet.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match link(&path)? {
            None => return Ok(path),
            Some(next) => path = next,
        }
    }
    Err(io::Error::other("too many links lead to each other"))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A descriptor of this process that `path` is another name of, as /dev/stdout is: the same open
/// file, with its place in it. A new one of the same name would begin at its start, over what
/// others have written.
#[cfg(unix)]
fn descriptor(path: &Path) -> io::Result<Option<File>> {
    use std::os::fd::AsFd;

    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let folder = fs::canonicalize(parent(&path)).unwrap_or_default();
        let own = Path::new("/proc").join(std::process::id().to_string());
        if folder == own.join("fd") || folder.starts_with(own.join("task")) {
            let name = path.file_name().and_then(|name| name.to_str());
            return match name.and_then(|name| name.parse::<u32>().ok()) {
                Some(1) => Ok(Some(io::stdout().as_fd().try_clone_to_owned()?.into())),
                Some(2) => Ok(Some(io::stderr().as_fd().try_clone_to_owned()?.into())),
                _ => OpenOptions::new().append(true).open(&path).map(Some),
            };
        }
        match link(&path)? {
            None => return Ok(None),
            Some(next) => path = next,
        }
    }
    Ok(None)
}

#[cfg(not(unix))]
fn descriptor(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Has the name on the disk as well, where the system can do that.
fn sync_folder(target: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(parent(target))?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("a");
        write_file(&file, "first").unwrap();
        let mut output = Output::create(&file).unwrap();
        output.write(b"sec").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"first");
        drop(output);
        assert_eq!(
            (fs::read(&file).unwrap(), names(folder.path())),
            (b"first".to_vec(), vec!["a".into()])
        );
        write_file(&file, "second").unwrap();
        assert_eq!(
            (fs::read(&file).unwrap(), names(folder.path())),
            (b"second".to_vec(), vec!["a".into()])
        );
        let error = write_file(&folder.path().join("none/a"), "").unwrap_err().to_string();
        assert!(error.contains("none/a") && !error.contains('\n'), "{error}");
        assert!(write_file(folder.path(), "").is_err(), "a folder");
    }

    /// What has a name that an earlier version gave its unfinished files is somebody else's.
    #[test]
    fn what_is_not_of_this_run_stays() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("a");
        fs::create_dir(folder.path().join("a.partial")).unwrap();
        write_file(&file, "text").unwrap();
        let made = folder_beside(&folder.path().join("b")).unwrap();
        fs::create_dir(folder.path().join("b.partial")).unwrap();
        finish_folder(made, &folder.path().join("b")).unwrap();
        assert_eq!(names(folder.path()), ["a", "a.partial", "b", "b.partial"]);
        assert!(folder_beside(&folder.path().join("b")).is_err());
        // Somebody else is first.
        let made = folder_beside(&folder.path().join("c")).unwrap();
        write_file(&folder.path().join("c"), "theirs").unwrap();
        assert!(finish_folder(made, &folder.path().join("c")).is_err());
        assert_eq!(names(folder.path()), ["a", "a.partial", "b", "b.partial", "c"]);
    }

    #[test]
    fn several_at_once_leave_one_of_theirs() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("a");
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let file = &file;
                scope.spawn(move || {
                    let mut output = Output::create(file).unwrap();
                    (0..100).for_each(|_| output.write(&[writer; 100]).unwrap());
                    output.finish().unwrap();
                });
            }
        });
        let bytes = fs::read(&file).unwrap();
        assert!(bytes.len() == 10_000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_modes_kept() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("there")).unwrap();
        symlink("there/b", at("a")).unwrap();
        symlink(at("a"), at("to-a")).unwrap();
        write_file(&at("to-a"), "through a link to nothing").unwrap();
        assert_eq!(names(&at("there")), ["b"]);
        fs::set_permissions(at("there/b"), fs::Permissions::from_mode(0o640)).unwrap();
        write_file(&at("a"), "through a link to a file").unwrap();
        assert_eq!(fs::read_to_string(at("there/b")).unwrap(), "through a link to a file");
        assert_eq!(fs::metadata(at("there/b")).unwrap().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(at("a")).unwrap().is_symlink());
        symlink("loop", at("loop")).unwrap();
        assert!(write_file(&at("loop"), "").unwrap_err().to_string().contains("link"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn devices_and_pipes_are_written_into() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempdir().unwrap();
        write_file(Path::new("/dev/null"), "gone").unwrap();
        symlink("/dev/full", folder.path().join("full")).unwrap();
        for full in [Path::new("/dev/full"), &folder.path().join("full")] {
            let error = write_file(full, "text").unwrap_err().to_string();
            assert!(error.contains("full: No space left"), "{error}");
        }
        assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read_to_string(pipe).unwrap())
        };
        write_file(&pipe, "through a pipe").unwrap();
        assert_eq!(reader.join().unwrap(), "through a pipe");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(folder.path()), ["full", "pipe"]);
    }
}
