//! Space and file counts of the whole.

use super::Tree;
use crate::Result;
use crate::quota::LayerUsage;
use crate::spec::Limits;

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
    /// Returns the space of the upper: its limits where it has any, else its filesystem's; without an upper that of the
    /// lower, which is full.
    pub fn statfs(&self) -> Result<Usage> {
        let Some(upper) = &self.upper else { return Ok(self.lower.usage()) };
        let space = rustix::fs::fstatvfs(upper.root())?;
        let whole = Usage {
            blocks: space.f_blocks,
            free: space.f_bfree,
            available: space.f_bavail,
            files: space.f_files,
            free_files: space.f_ffree,
            block_size: u32::try_from(space.f_frsize).unwrap_or(4096),
        };
        Ok(match &self.ledger {
            Some(ledger) => limited(whole, ledger.limits(), ledger.usage()),
            None => whole,
        })
    }
}

/// Returns what is left of a share of a filesystem: never more than the filesystem has.
fn limited(whole: Usage, limits: Limits, used: LayerUsage) -> Usage {
    let mut share = whole;
    if let Some(limit) = limits.bytes {
        let block = u64::from(whole.block_size).max(1);
        share.blocks = (limit / block).max(1);
        let left = limit.saturating_sub(used.bytes) / block;
        share.free = left.min(whole.free);
        share.available = left.min(whole.available);
    }
    if let Some(limit) = limits.inodes {
        share.files = limit;
        share.free_files = limit.saturating_sub(used.inodes);
        if whole.files > 0 {
            share.free_files = share.free_files.min(whole.free_files);
        }
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_shows_its_limits_and_never_more_than_there_is() {
        let whole = Usage { blocks: 1000, free: 100, available: 50, files: 500, free_files: 400, block_size: 4096 };
        let limits = Limits { bytes: Some(40 * 4096 + 100), inodes: Some(10) };
        let shown = limited(whole, limits, LayerUsage { bytes: 10 * 4096, inodes: 3 });
        let expected = Usage { blocks: 40, free: 30, available: 30, files: 10, free_files: 7, block_size: 4096 };
        assert_eq!(shown, expected);
        let over = limited(whole, limits, LayerUsage { bytes: 99 * 4096, inodes: 30 });
        assert_eq!((over.free, over.available, over.free_files), (0, 0, 0));
        let large = limited(whole, Limits { bytes: Some(1 << 40), inodes: None }, LayerUsage::default());
        assert_eq!((large.blocks, large.free, large.available, large.files), (1 << 28, 100, 50, 500));
    }
}
