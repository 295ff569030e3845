//! The read-only layers, already merged: an image's index or a stack of folders.
//!
//! A lower never changes while it is mounted, so everything read from it may be cached for ever. Its nodes are named by
//! the inode number that users see.

mod folders;
mod image;

pub use folders::FolderError;
pub(crate) use folders::FolderLower;
pub use image::ImageError;
pub(crate) use image::{ImageLower, LayerBytes};

use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Result;
use crate::marks::{LayerId, Recorded};
use crate::node::{Ino, Kind, Stat};
use crate::survive::{Keep, RecordId};
use crate::tree::Usage;

/// The lowers of a mount.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a mount")]
pub(crate) enum LowerTree {
    Image(ImageLower),
    Folders(FolderLower),
}

/// Where a node is found: a directory, and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: Ino,
    pub(crate) name: Vec<u8>,
}

/// What is left when references are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Somebody still holds the node.
    Held,
    /// Nobody does, and nothing is known of it any more but, where it takes that to find it again, a directory that
    /// holds it.
    Nobody { parent: Option<Ino> },
}

/// One name in a lower directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowerChild<'a> {
    /// Its place in the directory, from 0. Never changes.
    pub(crate) position: u64,
    pub(crate) name: &'a [u8],
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
}

/// Takes the call to whichever kind of lower it is.
macro_rules! dispatch {
    ($self:ident, $lower:ident => $call:expr) => {
        match $self {
            LowerTree::Image($lower) => $call,
            LowerTree::Folders($lower) => $call,
        }
    };
}

impl LowerTree {
    /// Returns whether a layer keeps owners in an attribute that users of the mount must not see.
    pub(crate) fn keeps_owners_beside(&self) -> bool {
        matches!(self, LowerTree::Folders(lower) if lower.keeps_owners_beside())
    }

    /// Returns whether `ino` names a node that came from the lowers.
    pub(crate) fn contains(&self, ino: Ino) -> bool {
        dispatch!(self, lower => lower.contains(ino))
    }

    /// Returns the number of nodes that something is kept about.
    pub(crate) fn known_count(&self) -> usize {
        match self {
            LowerTree::Image(_) => 0,
            LowerTree::Folders(lower) => lower.known_count(),
        }
    }

    /// Returns which layer a node is from.
    pub(crate) fn layer_of(&self, ino: Ino) -> Option<LayerId> {
        match self {
            LowerTree::Image(lower) => Some(lower.id()),
            LowerTree::Folders(lower) => lower.layer_of(ino),
        }
    }

    /// Returns whether a node is the copy of a file that has names further down too, which the kernel would not know.
    pub(crate) fn is_joined(&self, ino: Ino) -> bool {
        match self {
            LowerTree::Image(_) => false,
            LowerTree::Folders(lower) => lower.is_joined(ino),
        }
    }

    /// Returns whether looking for a name takes no longer than usual: else [`find_copies`](Self::find_copies) is to come
    /// first, by somebody who may take long.
    pub(crate) fn knows_copies(&self) -> bool {
        match self {
            LowerTree::Image(_) => true,
            LowerTree::Folders(lower) => lower.knows_copies(),
        }
    }

    /// Finds what the layers have copied of files with several names.
    pub(crate) fn find_copies(&self) {
        if let LowerTree::Folders(lower) = self {
            lower.find_copies();
        }
    }

    /// Returns the number that was recorded, if it is one of these layers.
    pub(crate) fn known_number(&self, recorded: Recorded) -> Option<Ino> {
        let known = match self {
            LowerTree::Image(lower) => {
                let is_file = || lower.stat(recorded.ino).is_ok_and(|stat| stat.kind != Kind::Directory);
                recorded.layer == lower.id() && lower.contains(recorded.ino) && is_file()
            }
            LowerTree::Folders(lower) => lower.has_layer(recorded.layer),
        };
        known.then_some(recorded.ino)
    }

    /// Finds `name` in the directory `dir`, without making the node known.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, Kind)>> {
        dispatch!(self, lower => lower.find(dir, name))
    }

    /// Finds `name` in the directory `dir`; the node can then be asked about.
    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        dispatch!(self, lower => lower.lookup(dir, name))
    }

    /// Returns the attributes as they are in the layer, ids unmapped.
    pub(crate) fn stat(&self, ino: Ino) -> Result<Stat> {
        dispatch!(self, lower => lower.stat(ino))
    }

    /// Returns the directory that holds the directory `dir`; the root is its own parent.
    pub(crate) fn parent(&self, dir: Ino) -> Option<Ino> {
        dispatch!(self, lower => lower.parent(dir))
    }

    /// Returns where a node was found. Known only where references are counted, and for a file with one name.
    pub(crate) fn place(&self, ino: Ino) -> Option<Place> {
        dispatch!(self, lower => lower.place(ino))
    }

    /// Returns the path of a directory from the root of the lowers.
    pub(crate) fn path(&self, dir: Ino) -> Option<Vec<u8>> {
        let mut parts = Vec::new();
        let mut current = dir;
        while current != Ino::ROOT {
            let place = self.place(current)?;
            current = place.parent;
            parts.push(place.name);
        }
        parts.reverse();
        Some(parts.iter().flat_map(|part| [b"/", part.as_slice()].concat()).collect())
    }

    /// Returns a path of a file from the root of the lowers.
    pub(crate) fn file_path(&self, file: Ino) -> Option<Vec<u8>> {
        let place = self.place(file)?;
        Some([&*self.path(place.parent)?, b"/", &place.name].concat())
    }

    /// Returns the number of names in a directory.
    pub(crate) fn child_count(&self, dir: Ino) -> Result<u64> {
        dispatch!(self, lower => lower.child_count(dir))
    }

    /// Calls `visit` for each name of the directory from `position` on, sorted, until it breaks.
    pub(crate) fn for_each_child(
        &self,
        dir: Ino,
        position: u64,
        visit: &mut dyn FnMut(LowerChild<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        dispatch!(self, lower => lower.for_each_child(dir, position, visit))
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        dispatch!(self, lower => lower.read_link(ino))
    }

    /// Calls `visit` with each extended attribute, names as they are in the layer.
    pub(crate) fn for_each_xattr(&self, ino: Ino, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        dispatch!(self, lower => lower.for_each_xattr(ino, visit))
    }

    /// As [`for_each_xattr`](Self::for_each_xattr), and returns by what the kernel's overlayfs finds a file with one name in
    /// its folder again, without that.
    pub(crate) fn for_each_xattr_with_origin(
        &self,
        ino: Ino,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>> {
        match self {
            LowerTree::Image(lower) => lower.for_each_xattr(ino, visit).map(|()| None),
            LowerTree::Folders(lower) => lower.for_each_xattr_with_origin(ino, visit),
        }
    }

    /// Reads from a regular file; fewer bytes than asked only at its end.
    pub(crate) fn read_at(&self, ino: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        dispatch!(self, lower => lower.read_at(ino, buffer, offset))
    }

    /// Returns whether nothing has to be fetched, whatever is read.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            LowerTree::Image(lower) => lower.is_whole(),
            LowerTree::Folders(_) => true,
        }
    }

    /// Returns whether reading these bytes of a file would not wait for them to be fetched.
    pub(crate) fn is_here(&self, ino: Ino, offset: u64, length: u64) -> bool {
        match self {
            LowerTree::Image(lower) => lower.is_here(ino, offset, length),
            LowerTree::Folders(_) => true,
        }
    }

    /// Returns where in the layers of an image a file's data lies.
    pub(crate) fn data_in_layers(&self, ino: Ino) -> Option<Vec<LayerBytes>> {
        match self {
            LowerTree::Image(lower) => lower.data_in_layers(ino),
            LowerTree::Folders(_) => None,
        }
    }

    /// Returns the start of the next data (or, if not `data`, hole) at or after `offset`, as `lseek` does.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        dispatch!(self, lower => lower.seek(ino, offset, data))
    }

    /// Writes the first `length` bytes of a regular file to the empty file `to`, keeping holes.
    pub(crate) fn copy_data(&self, ino: Ino, to: BorrowedFd<'_>, length: u64) -> Result<()> {
        dispatch!(self, lower => lower.copy_data(ino, to, length))
    }

    /// Opens a file whose bytes are those of the node, for the kernel to read from; `None` if there is none.
    pub(crate) fn open_object(&self, ino: Ino) -> Option<OwnedFd> {
        dispatch!(self, lower => lower.open_object(ino))
    }

    /// Opens a regular file or directory to ask for its flags; `None` if nothing there can have any.
    pub(crate) fn open_for_flags(&self, ino: Ino) -> Result<Option<OwnedFd>> {
        match self {
            LowerTree::Image(_) => Ok(None),
            LowerTree::Folders(lower) => lower.open_for_flags(ino).map(Some),
        }
    }

    /// Returns the space that the lower takes; nothing is free.
    pub(crate) fn usage(&self) -> Usage {
        dispatch!(self, lower => lower.usage())
    }

    /// Writes what is known for the next server, from now on. An image needs nothing to be written.
    pub(crate) fn keep(&self, keep: &Arc<Keep>) {
        if let LowerTree::Folders(lower) = self {
            lower.keep(keep);
        }
    }

    /// Reads a record of an earlier server.
    pub(crate) fn restore(&self, record: RecordId, bytes: &[u8]) {
        if let LowerTree::Folders(lower) = self {
            lower.restore(record, bytes);
        }
    }

    /// Sets how often the kernel holds a node that an earlier server knew.
    pub(crate) fn restore_references(&self, ino: Ino, references: u64) {
        dispatch!(self, lower => lower.restore_references(ino, references));
    }

    /// Returns how many nodes are numbered from 1 on without gaps.
    pub(crate) fn gapless(&self) -> u64 {
        match self {
            LowerTree::Image(lower) => lower.highest_ino(),
            LowerTree::Folders(_) => 0,
        }
    }

    /// Counts a reference that the kernel now holds, to a node found as `name` in `parent`.
    pub(crate) fn remember(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<()> {
        dispatch!(self, lower => lower.remember(ino, parent, name))
    }

    /// Takes back `count` references.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> Left {
        dispatch!(self, lower => lower.forget(ino, count))
    }
}
