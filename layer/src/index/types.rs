//! What an index says about a node.

/// A node of an index: a directory or anything else that has attributes. All hard links of a file are one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The directory at the top.
    pub const ROOT: NodeId = NodeId(0);

    /// Makes the id with this number.
    pub const fn from_u32(number: u32) -> NodeId {
        NodeId(number)
    }

    /// Returns the number, which counts from 0 without gaps.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A directory.
    Directory = 0o4,
    /// A regular file.
    Regular = 0o10,
    /// A symbolic link.
    Symlink = 0o12,
    /// A character device.
    CharDevice = 0o2,
    /// A block device.
    BlockDevice = 0o6,
    /// A named pipe.
    Fifo = 0o1,
    /// A socket.
    Socket = 0o14,
}

impl Kind {
    /// Returns the type that the top four bits of `mode` (`S_IFMT`) stand for.
    pub fn from_mode(mode: u16) -> Option<Kind> {
        Kind::from_bits((mode >> 12) as u8)
    }

    /// Returns the type as it stands in a mode (`S_IFDIR`, `S_IFREG`, ...).
    pub fn to_mode(self) -> u16 {
        u16::from(self.to_bits()) << 12
    }

    /// Returns the type as it stands in a directory entry (`DT_DIR`, `DT_REG`, ...).
    pub fn to_bits(self) -> u8 {
        self as u8
    }

    /// Returns the type that a directory entry (`DT_DIR`, `DT_REG`, ...) stands for.
    pub fn from_bits(bits: u8) -> Option<Kind> {
        Some(match bits {
            0o1 => Kind::Fifo,
            0o2 => Kind::CharDevice,
            0o4 => Kind::Directory,
            0o6 => Kind::BlockDevice,
            0o10 => Kind::Regular,
            0o12 => Kind::Symlink,
            0o14 => Kind::Socket,
            _ => return None,
        })
    }
}

/// A point in time, in seconds from 1970 (down for times before it) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// The number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// What `stat` would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The type.
    pub kind: Kind,
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the node; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// Bytes of a regular file, length of the target of a symbolic link, else 0.
    pub size: u64,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// The device behind a device node, else 0:0.
    pub device: Device,
}

/// One run of bytes of a file and where it lies. What no extent covers is a hole and reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Position of the layer in the stack, bottom 0.
    pub layer: u16,
    /// Offset in the tar of that layer.
    pub source: u64,
}

/// The inode of a regular file in the object table of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Position of the layer in the stack, bottom 0.
    pub layer: u16,
    /// Inode number in that layer's object table.
    pub nid: u64,
}

/// One layer that the index was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The digest of its tar.
    pub diff_id: crate::DiffId,
    /// The length of its tar.
    pub tar_size: u64,
}
