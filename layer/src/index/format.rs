//! The bytes of an index, as `docs/formats/index.md` draws them.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::types::Kind;
use crate::objects::Segment;

/// The first bytes of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub magic: [u8; 8],
    pub version: U32,
    pub header_size: U32,
    pub ignorable: U32,
    pub read_only: U32,
    pub refuse: U32,
    pub foreign_links: U32,
    pub file_size: U64,
    pub total_size: U64,
    pub checksum: [u8; 32],
    pub layers: TableRecord,
    pub inodes: TableRecord,
    pub entries: TableRecord,
    pub slots: TableRecord,
    pub extents: TableRecord,
    pub names: TableRecord,
    pub targets: TableRecord,
    pub xattrs: TableRecord,
}

/// Where a table lies: its first byte and how many records it has.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TableRecord {
    pub offset: U64,
    pub count: U64,
}

/// One layer of the stack, bottom first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LayerRecord {
    pub diff_id: [u8; 32],
    pub tar_size: U64,
}

/// One inode. What `payload` and `link` mean depends on the kind, see the accessors.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct InodeRecord {
    pub mode: U16,
    pub layer: U16,
    pub flags: U16,
    pub reserved: U16,
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub mtime_nanoseconds: U32,
    pub mtime_seconds: I64,
    pub size: U64,
    pub payload: U64,
    pub link: U32,
    pub xattrs: U32,
}

impl InodeRecord {
    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::from_mode(self.mode.get())
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }

    /// The two halves of the payload: first entry and number of entries of a directory, first extent and number of
    /// extents of a file with a map, offset in the target arena and length of a symbolic link, major and minor number
    /// of a device.
    pub(crate) fn pair(&self) -> (u32, u32) {
        let payload = self.payload.get();
        #[expect(clippy::cast_possible_truncation, reason = "takes the payload apart")]
        let low = payload as u32;
        (low, (payload >> 32) as u32)
    }
}

/// Puts the two halves of a payload together.
pub(crate) fn pair(low: u32, high: u32) -> U64 {
    U64::new(u64::from(low) | u64::from(high) << 32)
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct EntryRecord {
    pub name_offset: U32,
    pub node: U32,
    pub name_length: u8,
    /// A file type as in the top four bits of a mode, or 0 for a whiteout.
    pub kind: u8,
    pub reserved: U16,
}

/// One run of bytes of a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ExtentRecord {
    pub offset: U64,
    pub length: U64,
    pub source: U64,
}

impl ExtentRecord {
    pub(crate) fn segment(&self) -> Segment {
        Segment { offset: self.offset.get(), length: self.length.get(), source: self.source.get() }
    }
}

/// In front of the attributes of one set: bytes that follow.
pub(crate) type XattrSetHeader = U32;

/// In front of one attribute: name and value follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct XattrHeader {
    pub name_length: U16,
    pub reserved: U16,
    pub value_length: U32,
}

/// The directory ignores what layers below have under its name.
pub(crate) const FLAG_OPAQUE: u16 = 1;
/// The layer has something in the directory but no entry for it.
pub(crate) const FLAG_IMPLICIT: u16 = 2;
/// The payload points into the extent table instead of at the data.
pub(crate) const FLAG_EXTENT_TABLE: u16 = 4;
/// A hard link to a path that this layer does not have; the payload points at the path in the target arena.
pub(crate) const FLAG_FOREIGN_LINK: u16 = 8;
/// An implicit directory with nothing but markers in it: it comes into being only where layers below have it.
pub(crate) const FLAG_BARE: u16 = 16;

/// Stands for "no node".
pub(crate) const NO_NODE: u32 = u32::MAX;
/// Stands for "no extended attributes".
pub(crate) const NO_XATTRS: u32 = u32::MAX;
/// Stands for "no object".
pub(crate) const NO_OBJECT: u32 = 0;

pub(crate) const MAGIC: [u8; 8] = *b"STRINDEX";
pub(crate) const VERSION: u32 = 1;
/// Tables start at multiples of this.
pub(crate) const TABLE_ALIGNMENT: usize = 8;

/// Slots that a lookup looks at before it searches the directory instead.
pub(crate) const PROBE_LIMIT: u32 = 64;

/// Seed of the hash in the file: the same everywhere, so that the bytes are too.
const SLOT_SEED: u64 = 0x243f_6a88_85a3_08d3;

/// Returns the number of hash slots for `entries` names.
pub(crate) fn slots_for(entries: u64) -> u64 {
    entries + entries / 2 + u64::from(entries > 0)
}

/// Returns the slot out of `slots` where the search for `name` in `parent` starts.
pub(crate) fn first_slot(parent: u32, name: &[u8], slots: u32) -> u32 {
    let scaled = (hash(SLOT_SEED, parent, name) >> 32) * u64::from(slots);
    (scaled >> 32) as u32
}

/// Hashes a name in a directory. Part of the format: a change is a new version.
pub(crate) fn hash(seed: u64, parent: u32, name: &[u8]) -> u64 {
    let mut state = seed ^ (u64::from(parent) << 8 | name.len() as u64);
    let mut chunks = name.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        state = fold(state ^ u64::from_le_bytes(word), 0x9e37_79b9_7f4a_7c15);
    }
    let mut word = [0; 8];
    word[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    fold(state ^ u64::from_le_bytes(word), 0xd6e8_feb8_6659_fd93)
}

/// Multiplies to 128 bits and mixes both halves.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "takes the product apart")]
    let low = product as u64;
    low ^ (product >> 64) as u64
}
