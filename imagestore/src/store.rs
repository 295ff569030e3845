//! The store: opening it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;

use crate::catalog::{Catalog, CatalogError};
use crate::disk::{DiskError, OnDisk, exists, make_folder, names_in};
use crate::format::{Access, FormatError, establish};
use crate::layout::Layout;
use crate::{reserve, work};

/// An open image store. Any number of processes and threads may use one store at once.
#[derive(Debug)]
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) access: Access,
}

impl Store {
    /// Opens the store below `root`, which is made if it does not exist, and removes what killed processes left.
    pub fn open(root: &Path) -> Result<Store, OpenError> {
        let root = std::path::absolute(root).on_disk("find", root)?;
        let layout = Layout::new(root);
        let root = layout.root();
        DirBuilder::new().recursive(true).mode(0o700).create(root).on_disk("create", root)?;
        let mode = fs::metadata(root).on_disk("examine", root)?.permissions().mode();
        // A folder that somebody else has filled keeps its mode; what is made in it is private by itself.
        let is_ours = exists(&layout.format())? || names_in(root)?.is_empty();
        if mode & 0o077 != 0 && is_ours {
            fs::set_permissions(root, fs::Permissions::from_mode(0o700)).on_disk("restrict", root)?;
        }
        let access = establish(&layout)?;
        if access == Access::ReadWrite {
            for folder in layout.folders() {
                make_folder(&folder)?;
            }
            work::remove_leftovers(&layout)?;
            Catalog::establish(&layout)?;
            reserve::put_aside(&layout);
        }
        Ok(Store { layout, access })
    }

    /// Returns the folder that the store is in.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Returns what may be done with the store.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn catalog(&self) -> Result<Catalog, CatalogError> {
        Catalog::read(&self.layout)
    }

    /// Runs an operation that makes room. If there is no room for itself, it gets what was put aside for that.
    pub(crate) fn with_reserve<T, E>(
        &self,
        is_full: impl Fn(&E) -> bool,
        operation: impl Fn() -> Result<T, E>,
    ) -> Result<T, E> {
        let result = match operation() {
            Err(error) if is_full(&error) && reserve::give_up(&self.layout) => operation(),
            result => result,
        };
        reserve::put_aside(&self.layout);
        result
    }

    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::ReadOnly),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store is of another version.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// What any operation on the store may fail with.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The list of images could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store may only be read.
    #[error("the store is read-only: it has features of a newer version")]
    ReadOnly,
    /// A lease that keeps something cannot be understood, so nothing is collected.
    #[error("lease {name:?} is damaged")]
    Lease {
        /// The lease.
        name: String,
    },
}

impl StoreError {
    /// Returns whether the disk is full.
    pub fn is_full(&self) -> bool {
        let (Self::Disk(disk) | Self::Catalog(CatalogError::Disk(disk))) = self else { return false };
        let is = |errno: Errno| disk.source.raw_os_error() == Some(errno.raw_os_error());
        is(Errno::NOSPC) || is(Errno::DQUOT)
    }
}
