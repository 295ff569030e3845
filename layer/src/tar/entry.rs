//! One entry of an archive, all its headers taken together.

use std::ops::Range;

use crate::index::{Device, Timestamp};
use crate::objects::Segment;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands in the archive, never empty, without NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// Owner; not the highest number, which stands for "no one" in system calls.
    pub uid: u32,
    /// Group; likewise.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Names and values of the extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of a regular file with its holes, else 0.
    pub size: u64,
    /// The bytes of the archive that hold the file's data, a sparse map in front of them not included.
    pub data: Range<u64>,
    /// Where those bytes belong in the file, if it has holes.
    pub sparse: Option<Vec<Segment>>,
    /// Where in the archive the entry begins, with the first of its headers.
    pub offset: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// Another name of the file at `target`.
    HardLink {
        /// A name as those of entries.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points to.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}
