//! The identity and the attributes of what the union shows.

use std::fmt;

pub use strata_layer::index::{Device, Kind, Timestamp};

/// An inode number as users see it, which is also the identity of a node inside the union.
///
/// Numbers are stable: over copy-up, over remount, and for as long as anybody holds the node. The numbers of lower
/// objects come first, those of objects born in the upper lie outside their range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The attributes of a node, as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub permissions: u16,
    /// Number of names; for a directory 1 or exact, 0 for what has been removed and is still held.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of reads and writes.
    pub block_size: u32,
    /// The device behind a device node.
    pub device: Device,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// When it was made, where that is known.
    pub birth: Option<Timestamp>,
}

impl Stat {
    /// Returns type and permissions as `st_mode` holds them.
    pub fn mode(&self) -> u32 {
        type_bits(self.kind) | u32::from(self.permissions)
    }
}

/// Returns whether a new node would be a whiteout if it were made as it is asked for.
pub(crate) fn is_null_device(kind: Kind, device: Device) -> bool {
    kind == Kind::CharDevice && device == Device { major: 0, minor: 0 }
}

/// Returns the `S_IFMT` bits of a type.
pub(crate) fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Directory => libc::S_IFDIR,
        Kind::Regular => libc::S_IFREG,
        Kind::Symlink => libc::S_IFLNK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
    }
}

/// Returns the type in an `st_mode`, or `None` for bits that mean nothing.
pub(crate) fn kind_of(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::Regular,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        _ => return None,
    })
}

/// Returns the permission bits of an `st_mode`.
pub(crate) fn permission_bits(mode: u32) -> u16 {
    // Twelve bits always fit.
    u16::try_from(mode & 0o7777).unwrap_or(0)
}
