//! Why the files of a layer cannot be opened by the kernel.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a layer has no [`super::ObjectMount`]; its data is read from the tar instead.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsUnavailable {
    /// EROFS cannot be mounted, or files opened by handle, from inside a user namespace.
    #[error("mounting EROFS needs the initial user namespace's CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH")]
    NotPermitted,
    /// The kernel was built without EROFS, or its module is not there.
    #[error("the kernel has no EROFS")]
    NoErofs,
    /// Linux before 6.12, or a store on a filesystem that cannot back EROFS metadata: tmpfs and overlayfs.
    #[error(
        "the kernel cannot mount EROFS from a file there (it is older than 6.12, or the store is on tmpfs or overlayfs)"
    )]
    NotBackedByFile,
    /// The kernel names EROFS files in a way that is not known here.
    #[error("the kernel has an unknown form of EROFS file handles (type {kind}, {length} bytes)")]
    HandleForm {
        /// Type of the root's handle.
        kind: i32,
        /// Length of the root's handle.
        length: usize,
    },
    /// The mount shows other bytes than the tar has.
    #[error("object {nid} reads differently from the tar")]
    WrongContent {
        /// The object that was compared.
        nid: u64,
    },
    /// The mount, or the tar below it, cannot be read.
    #[error("read object {nid} to compare it with the tar")]
    Probe {
        /// The object that was to be compared.
        nid: u64,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The layer's index cannot be read.
    #[error("read the index {path:?}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: strata_layer::index::IndexError,
    },
    /// The tar is not the one that the index describes.
    #[error("tar has {length} bytes, its index says {expected}")]
    TarLength {
        /// Bytes of the tar.
        length: u64,
        /// Bytes in the index.
        expected: u64,
    },
    /// The index is damaged, or describes objects that contradict each other or the tar.
    #[error("make an object table from {path:?}")]
    Table {
        /// The index.
        path: PathBuf,
        /// The first contradiction.
        source: strata_layer::objects::TableError,
    },
    /// A system call on one of the layer's files failed.
    #[error("{operation} {path:?}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A step of mounting failed for a reason that has no name here.
    #[error("mount the object table: {step}")]
    Mount {
        /// The step.
        step: &'static str,
        /// Why it failed.
        source: Errno,
    },
}

impl ObjectsUnavailable {
    /// Returns a function that says which operation on which file failed.
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ObjectsUnavailable {
        move |source| ObjectsUnavailable::Io { operation, path: path.to_owned(), source }
    }

    /// Returns a function that says which step of mounting failed.
    pub(super) fn mount(step: &'static str) -> impl FnOnce(Errno) -> ObjectsUnavailable {
        move |source| match source {
            Errno::PERM => ObjectsUnavailable::NotPermitted,
            _ => ObjectsUnavailable::Mount { step, source },
        }
    }
}
