//! Space and file counts of the whole.

use super::Tree;
use crate::Result;

/// What `statfs` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for ordinary users.
    pub available: u64,
    /// Number of inodes.
    pub files: u64,
    /// Free inodes.
    pub free_files: u64,
    /// Bytes in a block.
    pub block_size: u32,
}

impl Tree {
    /// Returns the space of the upper's filesystem; without an upper that of the lower, which is full.
    pub fn statfs(&self) -> Result<Usage> {
        Ok(self.lower.usage())
    }
}
