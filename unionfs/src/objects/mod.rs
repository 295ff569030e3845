//! Kernel-openable files for the members of a layer's tar, without unpacking it.
//!
//! A layer's object table (`strata_layer::objects`) is mounted as EROFS with the tar as its data device. A file of that
//! mount, opened by its number, is what the FUSE front end registers as the backing file of a passthrough open.
//!
//! What must stay true:
//! - The mount is *detached*: it is in no mount table, has no path, and lasts as long as somebody holds [`ObjectMount`]
//!   or a file opened through it. Nothing is left behind by a process that is killed.
//! - It is read-only, whatever the caller does: the kernel reopens backing files with a client's flags.
//! - All processes that serve a layer share one mount of it, because every mount has a page cache of its own.
//! - Nothing is believed without a look: the table carries a digest, a fresh mount must show the bytes that the tar
//!   has, and a mount taken from another process must be the one its record names.
//!
//! Where any of this is not possible, [`ObjectsUnavailable`] says why and file data is read from the tar instead.

mod handle;
mod mount;
mod readahead;
mod share;
mod table;
mod unavailable;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::{fmt, io};

use strata_layer::objects;

use self::handle::HandleForm;
use self::share::{Holding, Record};
pub use self::unavailable::ObjectsUnavailable;
use crate::spec::ImageLayer;

/// The files of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPaths {
    /// The uncompressed tar.
    pub tar: PathBuf,
    /// The index of this layer alone.
    pub index: PathBuf,
    /// The object table; made when absent or damaged.
    pub objects: PathBuf,
}

impl From<&ImageLayer> for ObjectPaths {
    fn from(layer: &ImageLayer) -> ObjectPaths {
        let ImageLayer { tar, index, objects, .. } = layer.clone();
        ObjectPaths { tar, index, objects }
    }
}

/// The object table of one layer, mounted.
#[derive(Debug)]
#[must_use = "the mount goes away with its last holder"]
pub struct ObjectMount {
    /// Our line in the record beside the table. First, so that it is gone before the descriptor that it names.
    _holding: Option<Holding>,
    root: OwnedFd,
    form: HandleForm,
    origin: Origin,
}

/// How an [`ObjectMount`] came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process mounted it.
    Mounted,
    /// Another process had it mounted.
    Shared,
}

impl ObjectMount {
    /// Makes the layer's files openable: joins the mount of another process that serves the layer, or else mounts the
    /// table, after making it if it is absent or damaged.
    pub fn open(paths: &ObjectPaths) -> Result<ObjectMount, ObjectsUnavailable> {
        let tar = File::open(&paths.tar).map_err(ObjectsUnavailable::io("open", &paths.tar))?;
        let source = table::Source::open(&paths.index, tar)?;
        let uuid = objects::uuid(&source.owner());
        // Held until the mount is recorded, so that processes that start together end up with one mount.
        let mut record = Record::lock(&paths.objects)?;
        let (root, form, origin) = match record.join(&uuid) {
            Some(root) => {
                let form = HandleForm::learn(&root)?;
                (root, form, Origin::Shared)
            }
            None => {
                let table = table::open_or_make(&source, &paths.objects)?;
                let (root, form) = mount::mount_checked(&table, &source)?;
                (root, form, Origin::Mounted)
            }
        };
        let holding = record.add(&root);
        Ok(ObjectMount { _holding: holding, root, form, origin })
    }

    /// Opens the file with this number for reading.
    pub fn open_object(&self, nid: u64) -> io::Result<OwnedFd> {
        self.form.open(&self.root, nid)
    }

    /// Returns how the mount came to be.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

/// An [`ObjectMount`] that is opened when first asked for, once.
pub struct LazyObjectMount {
    paths: ObjectPaths,
    mount: OnceLock<Result<ObjectMount, ObjectsUnavailable>>,
}

impl LazyObjectMount {
    /// Remembers the files; touches nothing.
    pub fn new(paths: ObjectPaths) -> LazyObjectMount {
        LazyObjectMount { paths, mount: OnceLock::new() }
    }

    /// Returns the mount, or why there is none. The first call decides for good.
    pub fn get(&self) -> Result<&ObjectMount, &ObjectsUnavailable> {
        let open = || {
            ObjectMount::open(&self.paths).inspect_err(|error| {
                let objects = &self.paths.objects;
                tracing::debug!(?objects, error = error as &dyn std::error::Error, "layer has no objects");
            })
        };
        self.mount.get_or_init(open).as_ref()
    }
}

impl fmt::Debug for LazyObjectMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyObjectMount")
            .field("objects", &self.paths.objects)
            .field("mount", &self.mount.get())
            .finish()
    }
}
