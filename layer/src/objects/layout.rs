//! How one file of a tar is described to EROFS, or that it cannot be.

use super::{BLOCK, MAX_SOURCE_BLOCKS};

/// A run of bytes of a file and where it lies in the layer's tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Offset in the tar.
    pub source: u64,
}

/// The on-disk form of a file in an object table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Contiguous in the tar and shorter than 4 GiB: a 32-byte inode.
    Compact {
        /// First block of the data in the tar.
        block: u64,
    },
    /// Contiguous in the tar, any length: a 64-byte inode.
    Extended {
        /// First block of the data in the tar.
        block: u64,
    },
    /// With holes: a 64-byte inode followed by one index of 8 bytes per chunk.
    Chunked {
        /// Binary logarithm of the chunk size, 9 to 40.
        chunk_bits: u32,
        /// Number of chunks.
        chunks: u64,
    },
}

impl Layout {
    /// Returns how a file of `size` bytes with these `segments` is stored, or `None` if the table cannot express it:
    /// empty files, segments that are not aligned to 512 bytes, that overlap or leave the file, sparse files whose
    /// index would be large for the data it describes, and data beyond the 2 TiB that block addresses reach.
    ///
    /// Segments are in file order; what they leave out are holes.
    pub fn of<I>(size: u64, segments: I) -> Option<Layout>
    where
        I: IntoIterator<Item = Segment>,
    {
        if size == 0 {
            return None;
        }
        // Every boundary between data and hole lies at a multiple of the chunk size, so the chunk size is the lowest
        // bit set in any of them.
        let mut boundaries = 0u64;
        let mut covered = 0u64;
        let mut data = 0u64;
        let mut first = None;
        let mut count = 0u64;
        for segment in segments {
            let end = segment.offset.checked_add(segment.length)?;
            let source_end = segment.source.checked_add(segment.length)?;
            let aligned = segment.offset % BLOCK == 0 && segment.source % BLOCK == 0;
            let whole = segment.length % BLOCK == 0 || end == size;
            let in_reach = source_end.div_ceil(BLOCK) <= MAX_SOURCE_BLOCKS;
            if segment.length == 0 || segment.offset < covered || end > size || !aligned || !whole || !in_reach {
                return None;
            }
            boundaries |= segment.offset | if end == size { 0 } else { end };
            covered = end;
            data += segment.length;
            count += 1;
            first.get_or_insert(segment);
        }
        if let Some(segment) = first
            && count == 1
            && segment.length == size
        {
            let block = segment.source / BLOCK;
            return Some(if u32::try_from(size).is_ok() {
                Layout::Compact { block }
            } else {
                Layout::Extended { block }
            });
        }
        let chunk_bits = match boundaries {
            // One hole from start to end: the smallest number of the largest chunks.
            0 => MAX_CHUNK_BITS,
            bits => bits.trailing_zeros().min(MAX_CHUNK_BITS),
        };
        let chunks = size.div_ceil(1 << chunk_bits);
        let budget = INDEX_ALWAYS_ALLOWED.max(data / INDEX_SHARE_OF_DATA);
        (chunks <= budget / CHUNK_INDEX_SIZE).then_some(Layout::Chunked { chunk_bits, chunks })
    }

    /// Returns the number of 32-byte slots the file takes in the table.
    pub(super) fn slots(self) -> u64 {
        match self {
            Layout::Compact { .. } => 1,
            Layout::Extended { .. } => 2,
            Layout::Chunked { chunks, .. } => 2 + (chunks * CHUNK_INDEX_SIZE).div_ceil(super::SLOT),
        }
    }

    /// Returns the slot number that the file's nid must be a multiple of. A 64-byte inode must not straddle two blocks.
    pub(super) fn alignment(self) -> u64 {
        match self {
            Layout::Compact { .. } => 1,
            Layout::Extended { .. } | Layout::Chunked { .. } => 2,
        }
    }
}

/// Bytes of one chunk index.
pub(super) const CHUNK_INDEX_SIZE: u64 = 8;
/// The format stores the chunk size as five bits above the block size.
const MAX_CHUNK_BITS: u32 = 9 + 31;
/// A sparse file may have an index of this many bytes whatever its data. So few that a file never takes more of the table
/// than its header takes of the tar.
const INDEX_ALWAYS_ALLOWED: u64 = 384;
/// Otherwise the index may be this fraction of the data it describes.
const INDEX_SHARE_OF_DATA: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, length: u64, source: u64) -> Segment {
        Segment { offset, length, source }
    }

    #[test]
    fn contiguous_files_need_no_index() {
        assert_eq!(Layout::of(5, [segment(0, 5, 1024)]), Some(Layout::Compact { block: 2 }));
        let large = u64::from(u32::MAX);
        assert_eq!(Layout::of(large, [segment(0, large, 512)]), Some(Layout::Compact { block: 1 }));
        assert_eq!(Layout::of(large + 1, [segment(0, large + 1, 512)]), Some(Layout::Extended { block: 1 }));
    }

    #[test]
    fn empty_and_unaligned_files_have_no_object() {
        assert_eq!(Layout::of(0, []), None);
        assert_eq!(Layout::of(5, [segment(0, 5, 1000)]), None, "source not aligned");
        assert_eq!(Layout::of(2048, [segment(0, 100, 512), segment(1024, 1024, 1024)]), None, "ragged hole");
        assert_eq!(Layout::of(2048, [segment(100, 1948, 512)]), None, "hole of 100 bytes");
    }

    #[test]
    fn segments_that_lie_have_no_object() {
        assert_eq!(Layout::of(1024, [segment(0, 1024, 512), segment(512, 512, 512)]), None, "overlap");
        assert_eq!(Layout::of(512, [segment(0, 1024, 512)]), None, "longer than the file");
        assert_eq!(Layout::of(u64::MAX, [segment(512, u64::MAX, 512)]), None, "overflow");
        assert_eq!(Layout::of(512, [segment(0, 512, u64::MAX - 511)]), None, "source overflow");
        assert_eq!(Layout::of(512, [segment(0, 512, MAX_SOURCE_BLOCKS * BLOCK)]), None, "beyond the block addresses");
        assert_eq!(Layout::of(512, [segment(0, 0, 512)]), None, "empty segment");
    }

    #[test]
    fn holes_are_chunks_as_large_as_their_boundaries_allow() {
        assert_eq!(
            Layout::of(16 * 4096, [segment(4096, 4096, 512), segment(12 * 4096, 4096, 512 + 4096)]),
            Some(Layout::Chunked { chunk_bits: 12, chunks: 16 })
        );
        // The last segment may end at a size that is no multiple of anything.
        assert_eq!(Layout::of(8192 + 5, [segment(8192, 5, 512)]), Some(Layout::Chunked { chunk_bits: 13, chunks: 2 }));
        assert_eq!(Layout::of(10 << 40, []), Some(Layout::Chunked { chunk_bits: 40, chunks: 10 }));
    }

    #[test]
    fn an_index_larger_than_its_worth_is_refused() {
        assert_eq!(Layout::of(10 << 30, [segment(4096, 4096, 512)]), None);
        assert_eq!(Layout::of(u64::MAX, []), None);
    }
}
