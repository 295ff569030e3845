//! The object table of a layer: an EROFS image without names whose files are the members of the layer's tar.
//!
//! The kernel can mount the table with the tar as its data device, open a file of it by inode number (nid) and use that
//! as the backing file of a FUSE passthrough open. One table serves every image that contains the layer.
//!
//! Two steps make it, at different times:
//! 1. [`ObjectPlacer`] hands out nids while the layer's index is built; the index records them.
//! 2. [`table_of`] makes the table from a finished index, whenever somebody first wants to mount it.
//!
//! Both use the same [`Layout`] rule, so a nid in an index always points at the inode that the table holds there.
//! What must stay true: the rule is a pure function of a file's size and extents, in the order the files were placed. A
//! change of the rule is a new version of the index format. The bytes are drawn in `docs/formats/objects.md`.

mod layout;
mod place;
mod table;
#[cfg(test)]
mod tests;

pub use layout::{Layout, Segment};
pub use place::ObjectPlacer;
pub use table::{TableBuilder, TableError, is_intact, table_of, uuid};

/// Block size of the table and alignment of data in a tar.
const BLOCK: u64 = 512;
/// Size of the unit that nids count.
const SLOT: u64 = 32;
/// The root directory; not 0, so that a file handle of it shows where the kernel keeps the number.
pub const ROOT_NID: u64 = 2;
/// The first nid of a file: the root's inode and its two names take two slots.
const FIRST_NID: u64 = 4;
/// No slot at or above this is used, which bounds the table to 2^26 blocks.
const MAX_NID: u64 = 1 << 30;
/// Blocks of a tar that can be addressed: 32 bits less what the table itself may take.
const MAX_SOURCE_BLOCKS: u64 = (1 << 32) - MAX_NID * SLOT / BLOCK - 16;
