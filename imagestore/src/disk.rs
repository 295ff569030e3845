//! Files of the store: errors that say which one, whole writes, locks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A file of the store could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}")]
pub struct DiskError {
    /// What was attempted.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Says what was attempted on which file when an operation fails.
pub(crate) trait OnDisk<T> {
    fn on_disk(self, action: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> OnDisk<T> for Result<T, E> {
    fn on_disk(self, action: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|source| DiskError { action, path: path.to_owned(), source: source.into() })
    }
}

/// Makes a folder that only the owner can enter, unless it exists.
pub(crate) fn make_folder(path: &Path) -> Result<(), DiskError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).on_disk("create", path),
        _ => Ok(()),
    }
}

/// Makes a file that must not exist yet.
pub(crate) fn create_new(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).on_disk("create", path)
}

/// Returns whether there is something of this name. That it cannot be looked at does not mean that it is not there.
pub(crate) fn exists(path: &Path) -> Result<bool, DiskError> {
    path.try_exists().on_disk("examine", path)
}

/// Opens a file or folder for reading; `None` if it does not exist.
pub(crate) fn open_if_present(path: &Path) -> Result<Option<File>, DiskError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).on_disk("open", path),
    }
}

/// Reads a whole small file; `None` if it does not exist.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    let Some(mut file) = open_if_present(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).on_disk("read", path)?;
    Ok(Some(bytes))
}

/// Writes a new file and brings it to the disk.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let mut file = create_new(path)?;
    file.write_all(bytes).on_disk("write", path)?;
    file.sync_all().on_disk("sync", path)
}

/// Brings the names in a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> Result<(), DiskError> {
    File::open(path).on_disk("open", path)?.sync_all().on_disk("sync", path)
}

/// Brings everything that was written to the file system of `path` to the disk.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), DiskError> {
    let file = File::open(path).on_disk("open", path)?;
    rustix::fs::syncfs(&file).on_disk("sync the file system of", path)
}

/// Renames; returns whether the name was free. What already exists stays as it is.
pub(crate) fn rename_unless_present(from: &Path, to: &Path) -> Result<bool, DiskError> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(error).on_disk("rename", to),
    }
}

fn is_taken(error: &io::Error) -> bool {
    [Errno::EXIST, Errno::NOTEMPTY].iter().any(|taken| error.raw_os_error() == Some(taken.raw_os_error()))
}

/// Returns the names in a folder, without those that are not UTF-8: the store makes no such names.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).on_disk("list", path)? {
        names.extend(entry.on_disk("list", path)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// How a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// With every other shared holder.
    Shared,
    /// With nobody.
    Exclusive,
}

/// A lock on a file or folder, held until it is dropped or the last process that inherited it is gone.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Waits for the lock on an open file.
    pub(crate) fn wait(file: File, sharing: Sharing, path: &Path) -> Result<Lock, DiskError> {
        let operation = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Exclusive => FlockOperation::LockExclusive,
        };
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                result => return result.on_disk("lock", path).map(|()| Lock { file }),
            }
        }
    }

    /// Takes the lock on an open file if nobody else has it in a conflicting way.
    pub(crate) fn attempt(file: File, sharing: Sharing, path: &Path) -> Result<Option<Lock>, DiskError> {
        let operation = match sharing {
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
            Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).on_disk("lock", path),
        }
    }

    /// Waits for the lock on a file, which is made if it does not exist.
    pub(crate) fn wait_on_file(path: &Path, sharing: Sharing) -> Result<Lock, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Lock::wait(options.open(path).on_disk("open", path)?, sharing, path)
    }

    /// Returns the locked file, for whoever passes the lock on to another process.
    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }
}
