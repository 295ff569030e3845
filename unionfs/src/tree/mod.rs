//! The union: nodes over a stack of one writable and any number of read-only layers.

mod readdir;
mod statfs;
mod xattr;

pub use readdir::DirEntry;
pub use statfs::Usage;

use rustix::io::Errno;

use crate::Result;
use crate::idmap::Ids;
use crate::lower::{FolderError, FolderLower, ImageError, ImageLower, LowerTree};
use crate::node::{Ino, Kind, Stat};
use crate::spec::{Lower, MountSpec};

/// A union of layers, as a mount shows it.
#[derive(Debug)]
pub struct Tree {
    lower: LowerTree,
    ids: Ids,
}

/// Why the layers of a mount cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl Tree {
    /// Opens the layers.
    pub fn open(spec: &MountSpec) -> Result<Tree, OpenError> {
        let lower = match &spec.lower {
            Lower::Image { index, layers } => LowerTree::Image(ImageLower::open(index, layers, spec.upper.is_some())?),
            Lower::Folders(folders) => {
                LowerTree::Folders(FolderLower::open(folders, Vec::new(), crate::handles::capacity())?)
            }
        };
        let ids = Ids { uid: spec.options.uid_map.clone(), gid: spec.options.gid_map.clone() };
        Ok(Tree { lower, ids })
    }

    /// Finds `name` in the directory `dir` and counts a reference to it, which [`forget`](Self::forget) takes back.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Stat> {
        let ino = match name {
            // The kernel asks for these when it has a file handle only.
            b"." => dir,
            b".." => self.parent(dir)?,
            _ => self.lower.lookup(dir, name)?.ok_or(Errno::NOENT)?,
        };
        self.hold(ino, dir, name)
    }

    /// Counts a reference to a node found as `name` in `dir`.
    fn hold(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Stat> {
        self.lower.remember(ino, dir, name)?;
        let stat = self.stat(ino);
        if stat.is_err() {
            self.lower.forget(ino, 1);
        }
        stat
    }

    /// Takes back `count` references to a node.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.lower.forget(ino, count);
    }

    /// Returns the attributes of a node.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let mut stat = self.lower.stat(ino)?;
        if !self.ids.is_identity() {
            stat.uid = self.ids.uid_to_host(stat.uid);
            stat.gid = self.ids.gid_to_host(stat.gid);
        }
        Ok(stat)
    }

    /// Returns the directory that holds the directory `dir`.
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        self.lower.parent(dir).ok_or(Errno::STALE)
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.lower.read_link(ino)
    }

    /// Reads from a regular file; fewer bytes than asked only at its end.
    pub fn read(&self, ino: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.lower.read_at(ino, buffer, offset)
    }

    /// Returns whether the node is a directory.
    pub fn is_directory(&self, ino: Ino) -> Result<bool> {
        Ok(self.stat(ino)?.kind == Kind::Directory)
    }
}
