//! The index of a layer or of a merged stack: one file, mapped and read in place.
//!
//! An index says everything about a tree but the bytes of its files: names, attributes, and where in which tar each
//! file's data lies. The index of a single layer also keeps what only matters for stacking: whiteouts, opaque and
//! implicit directories, hard links to files of layers below. [`merge`](crate::merge::merge) resolves all of that.
//!
//! [`Index`] reads, [`Builder`] makes the index of one layer. The bytes are described in `docs/formats/index.md`.
//! They depend on nothing but the contents: the same layers always give the same index.

mod builder;
mod draft_names;
mod finish;
pub(crate) mod format;
mod iter;
mod names_by_parent;
mod reader;
mod types;
mod verify;
pub(crate) mod writer;

pub(crate) use builder::implicit_directory;
pub use builder::{BuildError, Builder, Content, Metadata};
pub use iter::{Child, Children, Extents, Xattrs};
pub use reader::{Index, IndexError};
pub use types::{Attributes, Device, Extent, Kind, Layer, NodeId, Object, Timestamp};
pub use writer::{IndexFull, NewIndex, TableError};

#[cfg(test)]
mod tests;
