//! Files of containers and of the host as tar archives, in both directions: what `cp` is made of.
//!
//! All of it happens in this process and below descriptors: a path that a container can influence is resolved by the kernel
//! in that container's root ([`Tree`]), what was looked at is what is read, and a new file is made under a name of our own
//! beside its place and renamed there. No program and no library of a container is ever run or loaded, and nothing is
//! decompressed by anybody else.

mod container;
mod copy;
mod pack;
mod tree;
mod unpack;

pub use container::{ContainerFiles, FilesUse, enter_rootless_of};
pub use copy::{CopyPlan, CopySource, plan_copy};
pub use tree::{Found, Tree};
pub use unpack::{Owner, Unpacked};

use std::io;

use strata_imagestore::StackError;
use strata_layer::tar::TarError;
use strata_layer::tar_writer::TarWriteError;
use strata_sandbox::view::ViewError;

use crate::container::{ContainerName, FindError, RecordError};
use crate::filesystem::FilesystemError;

/// Files that cannot be copied. The texts are Docker's where it has the case.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The container was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Its record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its layers cannot be used.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Its root cannot be mounted.
    #[error("mount the container's root")]
    Filesystem(#[from] FilesystemError),
    /// Its file tree cannot be put together.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Another command works on it.
    #[error("container {0} is being started or stopped by another command")]
    Busy(ContainerName),
    /// Its files are in use.
    #[error("the filesystem of container {0} is in use by another mount")]
    InUse(ContainerName),
    /// The user to whom files are to be given.
    #[error(transparent)]
    User(#[from] strata_sandbox::user::UserError),
    /// The path is not there.
    #[error("Could not find the file {path} in {place}")]
    NotFound {
        /// The path.
        path: String,
        /// The container or the host.
        place: String,
    },
    /// The path cannot be opened.
    #[error("open {path:?} in {place}")]
    Open {
        /// The path.
        path: String,
        /// The container or the host.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The place to copy to is no directory.
    #[error("extraction point is not a directory")]
    NotADirectory,
    /// A directory was to be copied onto a file.
    #[error("cannot copy directory")]
    DirectoryOntoFile,
    /// A directory was named that is not there.
    #[error("no such directory")]
    NoSuchDirectory,
    /// The container's root cannot be written.
    #[error("container rootfs is marked read-only")]
    ReadOnlyRoot,
    /// The volume cannot be written.
    #[error("mounted volume is marked read-only")]
    ReadOnlyVolume,
    /// The place belongs to the kernel.
    #[error("{path:?} is in a filesystem of the kernel, which holds no files to copy")]
    KernelFilesystem {
        /// The path.
        path: String,
    },
    /// The archive cannot be read.
    #[error("read the archive")]
    Input(#[source] io::Error),
    /// The archive is damaged.
    #[error("read the archive")]
    Tar(#[from] TarError),
    /// An entry would lie outside of the directory.
    #[error("archive entry {path:?} is outside of the directory that it is copied to")]
    Outside {
        /// The name in the archive.
        path: String,
    },
    /// An entry has a symbolic link for its parent.
    #[error("archive entry {path:?} lies behind a symbolic link, which is not followed")]
    BehindLink {
        /// The name in the archive.
        path: String,
    },
    /// A directory would become something else.
    #[error("cannot overwrite directory {path:?} with non-directory")]
    OverwriteDirectory {
        /// The name in the archive.
        path: String,
    },
    /// Something else would become a directory.
    #[error("cannot overwrite non-directory {path:?} with directory")]
    OverwriteFile {
        /// The name in the archive.
        path: String,
    },
    /// A file cannot be made.
    #[error("write {path:?}")]
    Write {
        /// The name in the archive.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read {path:?}")]
    Read {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error(transparent)]
    Output(#[from] TarWriteError),
}

impl ArchiveError {
    /// Whether the other side of a pipe does not read on.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, ArchiveError::Output(TarWriteError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the container or the path does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            ArchiveError::NotFound { .. } => true,
            ArchiveError::Find(error) => error.is_not_found(),
            _ => false,
        }
    }
}

/// A path for a message.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
