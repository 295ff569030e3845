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
        let Some(upper) = &self.upper else { return Ok(self.lower.usage()) };
        let space = rustix::fs::fstatvfs(upper.root())?;
        Ok(Usage {
            blocks: space.f_blocks,
            free: space.f_bfree,
            available: space.f_bavail,
            files: space.f_files,
            free_files: space.f_ffree,
            block_size: u32::try_from(space.f_frsize).unwrap_or(4096),
        })
    }
}
