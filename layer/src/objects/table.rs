//! The bytes of an object table.

use sha2::{Digest as _, Sha256};

use crate::index::{Index, IndexError};

use super::{BLOCK, FIRST_NID, Layout, MAX_NID, MAX_SOURCE_BLOCKS, ROOT_NID, SLOT, Segment};

/// Why an object table cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The index is damaged.
    #[error("use the layer's index")]
    Index(#[from] IndexError),
    /// The index is not of a single layer.
    #[error("index has {0} layers instead of one")]
    Layers(u16),
    /// The rule of [`Layout::of`] has no form for a file that claims an object.
    #[error("file with object {nid} cannot be expressed in a table")]
    NotExpressible {
        /// The object.
        nid: u64,
    },
    /// The number is reserved, misaligned, or too high for a tar of this size.
    #[error("object {nid} is out of range")]
    NidOutOfRange {
        /// The object.
        nid: u64,
    },
    /// Two files claim the same place.
    #[error("object {nid} overlaps another one")]
    Overlap {
        /// The later of the two.
        nid: u64,
    },
    /// The data of a file lies outside the tar.
    #[error("data of object {nid} lies outside the tar")]
    OutsideTar {
        /// The object.
        nid: u64,
    },
}

/// Returns the object table of the layer that `index` describes, which is the index of a single layer.
///
/// The same index always gives the same table. It is marked as belonging to this index: see [`is_intact`]. Checks all of
/// the index, since everything that the kernel will see depends on it.
pub fn table_of(index: &Index) -> Result<Vec<u8>, TableError> {
    index.verify()?;
    let tar_size = match (index.layer(0), index.layer_count()) {
        (Some(layer), 1) => layer.tar_size,
        (_, count) => return Err(TableError::Layers(count)),
    };
    let mut builder = TableBuilder::new(tar_size);
    let mut segments = Vec::new();
    for node in index.nodes() {
        let Some(object) = index.object(node) else { continue };
        let size = index.attributes(node).map_or(0, |attributes| attributes.size);
        segments.clear();
        segments.extend(index.extents(node).map(|extent| Segment {
            offset: extent.offset,
            length: extent.length,
            source: extent.source,
        }));
        builder.add(object.nid, size, &segments)?;
    }
    Ok(builder.finish(&index.checksum()))
}

/// Builds one object table in memory.
#[derive(Debug)]
pub struct TableBuilder {
    tar_size: u64,
    /// Everything from the metadata start on; slot `n` is at `32 * n`.
    slots: Vec<u8>,
    files: u64,
}

impl TableBuilder {
    /// Starts the table of a tar of `tar_size` bytes.
    pub fn new(tar_size: u64) -> TableBuilder {
        TableBuilder { tar_size, slots: root_directory(), files: 0 }
    }

    /// Adds the regular file of `size` bytes at `segments`, to which an [`super::ObjectPlacer`] has given `nid`.
    ///
    /// The order of the calls does not matter. Trusts nothing: a damaged index gives an error, not a table through
    /// which a file shows bytes from outside the tar.
    pub fn add(&mut self, nid: u64, size: u64, segments: &[Segment]) -> Result<(), TableError> {
        let layout = Layout::of(size, segments.iter().copied()).ok_or(TableError::NotExpressible { nid })?;
        let outside = |segment: &Segment| segment.source + segment.length > self.tar_size;
        if segments.iter().any(outside) {
            return Err(TableError::OutsideTar { nid });
        }
        // The slots of a file are fewer bytes than its header and data in the tar (a rule of `Layout::of`), so a table
        // larger than its tar is a lie and must not cost memory.
        let end = nid.checked_add(layout.slots()).filter(|end| {
            nid >= FIRST_NID
                && nid.is_multiple_of(layout.alignment())
                && *end <= MAX_NID
                && *end * SLOT <= self.tar_size.saturating_add(4096)
        });
        let range = end.and_then(|end| Some(usize::try_from(nid * SLOT).ok()?..usize::try_from(end * SLOT).ok()?));
        let range = range.ok_or(TableError::NidOutOfRange { nid })?;
        if self.slots.len() < range.end {
            self.slots.resize(range.end, 0);
        }
        let place = &mut self.slots[range];
        // No slot in use is all zeros: an inode has a mode or a link count there, an index a device or a hole.
        if place.iter().any(|byte| *byte != 0) {
            return Err(TableError::Overlap { nid });
        }
        encode_file(place, nid, size, layout, segments);
        self.files += 1;
        Ok(())
    }

    /// Returns the finished table. `owner` is anything that identifies what the table was made from.
    pub fn finish(self, owner: &[u8]) -> Vec<u8> {
        let mut table = vec![0; META_OFFSET];
        table.extend_from_slice(&self.slots);
        table.resize(table.len().next_multiple_of(FILE_LEN_UNIT), 0);
        let super_block = self.super_block(table.len() / BLOCK_LEN, owner);
        table[SUPER_OFFSET..META_OFFSET].copy_from_slice(&super_block);
        let digest = digest(&table);
        put(&mut table, SUPER_OFFSET + VOLUME_NAME, digest);
        let checksum = checksum(&table[SUPER_OFFSET..META_OFFSET]);
        put(&mut table, SUPER_OFFSET + CHECKSUM, checksum.to_le_bytes());
        table
    }

    /// Returns the superblock and the slot of the tar, without digest and checksum.
    fn super_block(&self, blocks: usize, owner: &[u8]) -> [u8; SUPER_LEN] {
        let mut bytes = [0; SUPER_LEN];
        put(&mut bytes, 0, MAGIC.to_le_bytes());
        put(&mut bytes, 8, FEATURE_COMPAT_CHECKSUM.to_le_bytes());
        put(&mut bytes, 12, [BLOCK_BITS]);
        put(&mut bytes, 14, low16(ROOT_NID).to_le_bytes());
        put(&mut bytes, 16, (self.files + 1).to_le_bytes());
        put(&mut bytes, 36, low32(blocks as u64).to_le_bytes());
        put(&mut bytes, 40, low32(META_OFFSET as u64 / BLOCK).to_le_bytes());
        put(&mut bytes, UUID, uuid(owner));
        put(&mut bytes, 80, (FEATURE_CHUNKED_FILE | FEATURE_DEVICE_TABLE).to_le_bytes());
        put(&mut bytes, 86, 1u16.to_le_bytes()); // devices
        put(&mut bytes, 88, low16(DEVICE_SLOT as u64 / 128).to_le_bytes());
        let device = DEVICE_SLOT - SUPER_OFFSET;
        put(&mut bytes, device, *b"tar");
        put(&mut bytes, device + 64, low32(self.tar_size.div_ceil(BLOCK).min(MAX_SOURCE_BLOCKS)).to_le_bytes());
        put(&mut bytes, device + 68, low32(TAR_START).to_le_bytes());
        bytes
    }
}

/// Says whether `table` is one that [`TableBuilder::finish`] made for this `owner` and has not been changed since.
///
/// Detects damage, not malice: who can write the file can also compute the digest.
pub fn is_intact(table: &[u8], owner: &[u8]) -> bool {
    let Some(super_block) = table.get(SUPER_OFFSET..META_OFFSET) else { return false };
    super_block[UUID..UUID + 16] == uuid(owner)
        && super_block[CHECKSUM..CHECKSUM + 4] == checksum(super_block).to_le_bytes()
        && super_block[VOLUME_NAME..VOLUME_NAME + 16] == digest(table)
}

/// Returns the UUID that every table made for `owner`, and every mount of one, has.
pub fn uuid(owner: &[u8]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(RULE);
    hasher.update(owner);
    let mut uuid = half(hasher);
    // The form that RFC 9562 gives to UUIDs of one's own making.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The root directory: an inode and, inline behind it, the names `.` and `..`, so that the table can be mounted.
fn root_directory() -> Vec<u8> {
    let mut slots = vec![0; usize::from(low16(FIRST_NID * SLOT))];
    let inode = usize::from(low16(ROOT_NID * SLOT));
    put(&mut slots, inode, FORMAT_COMPACT_INLINE.to_le_bytes());
    put(&mut slots, inode + 4, (S_IFDIR | 0o555).to_le_bytes());
    put(&mut slots, inode + 6, 2u16.to_le_bytes()); // links
    put(&mut slots, inode + 8, 27u32.to_le_bytes());
    put(&mut slots, inode + 20, low32(ROOT_NID).to_le_bytes());
    let names = inode + 32;
    for (entry, name_offset) in [(names, 24u16), (names + 12, 25)] {
        put(&mut slots, entry, ROOT_NID.to_le_bytes());
        put(&mut slots, entry + 8, name_offset.to_le_bytes());
        put(&mut slots, entry + 10, [FILE_TYPE_DIRECTORY]);
    }
    put(&mut slots, names + 24, *b"...");
    slots
}

/// Writes the inode of a file, and its chunk indexes, to the slots it takes.
fn encode_file(slots: &mut [u8], nid: u64, size: u64, layout: Layout, segments: &[Segment]) {
    let format = match layout {
        Layout::Compact { .. } => FORMAT_COMPACT_PLAIN,
        Layout::Extended { .. } => FORMAT_EXTENDED_PLAIN,
        Layout::Chunked { .. } => FORMAT_EXTENDED_CHUNKED,
    };
    put(slots, 0, format.to_le_bytes());
    put(slots, 4, (S_IFREG | 0o444).to_le_bytes());
    put(slots, 20, low32(nid).to_le_bytes());
    let content = match layout {
        Layout::Compact { block } | Layout::Extended { block } => low32(TAR_START + block),
        Layout::Chunked { chunk_bits, .. } => (chunk_bits - u32::from(BLOCK_BITS)) | CHUNK_FORMAT_INDEXES,
    };
    put(slots, 16, content.to_le_bytes());
    if let Layout::Compact { .. } = layout {
        put(slots, 6, 1u16.to_le_bytes()); // links
        put(slots, 8, low32(size).to_le_bytes());
    } else {
        put(slots, 8, size.to_le_bytes());
        put(slots, 44, 1u32.to_le_bytes()); // links
    }
    if let Layout::Chunked { chunk_bits, chunks } = layout {
        let indexes = &mut slots[64..];
        for index in indexes.chunks_exact_mut(CHUNK_INDEX_LEN).take(usize::try_from(chunks).unwrap_or(usize::MAX)) {
            put(index, 4, HOLE.to_le_bytes());
        }
        for segment in segments {
            let first = segment.offset >> chunk_bits;
            let past = (segment.offset + segment.length).div_ceil(1 << chunk_bits);
            for chunk in first..past {
                let block = (segment.source + ((chunk - first) << chunk_bits)) / BLOCK;
                let at = usize::try_from(chunk).expect("indexes are in memory") * CHUNK_INDEX_LEN;
                put(indexes, at + 2, 1u16.to_le_bytes()); // device
                put(indexes, at + 4, low32(block).to_le_bytes());
            }
        }
    }
}

/// Returns the digest of a table: of everything but itself and the checksum.
fn digest(table: &[u8]) -> [u8; 16] {
    let mut head = [0; META_OFFSET];
    head.copy_from_slice(&table[..META_OFFSET]);
    put(&mut head, SUPER_OFFSET + CHECKSUM, [0; 4]);
    put(&mut head, SUPER_OFFSET + VOLUME_NAME, [0; 16]);
    let mut hasher = Sha256::new();
    hasher.update(head);
    hasher.update(&table[META_OFFSET..]);
    half(hasher)
}

/// Returns the first half of a SHA-256.
fn half(hasher: Sha256) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize()[..16]);
    half
}

/// Returns the checksum that the kernel verifies: CRC-32C, without the final inversion, of the first block from the
/// superblock on with the checksum field taken as zero.
fn checksum(super_block: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in super_block.iter().enumerate() {
        let byte = if (CHECKSUM..CHECKSUM + 4).contains(&at) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

/// Writes `field` to `bytes` at `at`.
fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

/// Returns a number that the limits of the format keep below 2^32.
fn low32(value: u64) -> u32 {
    u32::try_from(value).expect("bounded by MAX_NID and MAX_SOURCE_BLOCKS")
}

/// Returns a constant that is below 2^16.
fn low16(value: u64) -> u16 {
    u16::try_from(value).expect("a constant of the format")
}

const BLOCK_BITS: u8 = 9;
const BLOCK_LEN: usize = 1 << BLOCK_BITS;
/// The kernel does not care, but fsck.erofs and loop devices want whole pages.
const FILE_LEN_UNIT: usize = 4096;
const CHUNK_INDEX_LEN: usize = 8;
const SUPER_OFFSET: usize = 1024;
/// The superblock and the device slot share the block at 1024; the kernel's checksum covers all of it.
const SUPER_LEN: usize = 512;
const DEVICE_SLOT: usize = 1152;
/// Where slot 0 is.
const META_OFFSET: usize = SUPER_OFFSET + SUPER_LEN;
/// The address that the first block of the tar has in the table's block numbering, above all blocks of the table.
const TAR_START: u64 = (1 << 32) - MAX_SOURCE_BLOCKS;

const MAGIC: u32 = 0xe0f5_e1e2;
const FEATURE_COMPAT_CHECKSUM: u32 = 1;
const FEATURE_CHUNKED_FILE: u32 = 4;
const FEATURE_DEVICE_TABLE: u32 = 8;
/// The version of the placing rule; part of every UUID.
const RULE: [u8; 16] = *b"strata objects 1";
/// Offsets of fields in the superblock. The volume name, of which the kernel makes no use, holds the digest.
const CHECKSUM: usize = 4;
const UUID: usize = 48;
const VOLUME_NAME: usize = 64;

const FORMAT_COMPACT_PLAIN: u16 = 0;
const FORMAT_COMPACT_INLINE: u16 = 2 << 1;
const FORMAT_EXTENDED_PLAIN: u16 = 1;
const FORMAT_EXTENDED_CHUNKED: u16 = 1 | 4 << 1;
const CHUNK_FORMAT_INDEXES: u32 = 0x20;
/// The block address of a chunk without data.
const HOLE: u32 = u32::MAX;
const FILE_TYPE_DIRECTORY: u8 = 2;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectPlacer;

    fn whole(size: u64, source: u64) -> [Segment; 1] {
        [Segment { offset: 0, length: size, source }]
    }

    #[test]
    fn checksum_is_crc32c_without_final_inversion() {
        // "123456789" has the CRC-32C e3069283; bytes 4 to 8 read as zero here, so put the digits behind them.
        assert_eq!(checksum(&[]), !0);
        let mut crc = checksum(&[0xE2, 0xE1, 0xF5, 0xE0, 9, 9, 9, 9]);
        assert_eq!(crc, 0x5045_b54a, "the kernel starts from this value behind magic and checksum");
        crc = checksum(b"1234");
        assert_eq!(!crc, 0xf63a_f4ee);
    }

    #[test]
    fn same_input_same_table() {
        let make = |owner: &[u8]| {
            let mut placer = ObjectPlacer::new();
            let mut builder = TableBuilder::new(8192);
            for (size, source) in [(100, 512), (1000, 1536)] {
                let nid = placer.place(size, whole(size, source)).unwrap();
                builder.add(nid, size, &whole(size, source)).unwrap();
            }
            builder.finish(owner)
        };
        assert_eq!(make(b"a"), make(b"a"));
        assert_ne!(uuid(b"a"), uuid(b"b"));
        assert_eq!(make(b"a")[SUPER_OFFSET + UUID..][..16], uuid(b"a"));
        assert_eq!(make(b"a").len(), 4096);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut builder = TableBuilder::new(8192);
        builder.add(4, 100, &whole(100, 512)).unwrap();
        let mut table = builder.finish(b"owner");
        assert!(is_intact(&table, b"owner"));
        assert!(!is_intact(&table, b"another"));
        assert!(!is_intact(&table[..table.len() - 1], b"owner"));
        assert!(!is_intact(&table[..1024], b"owner"));
        assert!(!is_intact(&[], b"owner"));
        for at in 0..table.len() {
            table[at] ^= 0x10;
            assert!(!is_intact(&table, b"owner"), "byte {at}");
            table[at] ^= 0x10;
        }
    }

    #[test]
    fn claims_that_do_not_fit_are_refused() {
        let mut builder = TableBuilder::new(8192);
        assert!(matches!(builder.add(4, 0, &[]), Err(TableError::NotExpressible { .. })));
        assert!(matches!(builder.add(4, 513, &whole(513, 7680)), Err(TableError::OutsideTar { .. })));
        builder.add(4, 512, &whole(512, 7680)).unwrap();
        assert!(matches!(builder.add(4, 512, &whole(512, 7680)), Err(TableError::Overlap { .. })));
        assert!(matches!(builder.add(3, 5, &whole(5, 512)), Err(TableError::NidOutOfRange { .. })));
        assert!(matches!(builder.add(u64::MAX, 5, &whole(5, 512)), Err(TableError::NidOutOfRange { .. })));
        assert!(matches!(builder.add(1 << 20, 5, &whole(5, 512)), Err(TableError::NidOutOfRange { .. })));
        let hole = [Segment { offset: 512, length: 512, source: 512 }];
        assert!(matches!(builder.add(5, 1024, &hole), Err(TableError::NidOutOfRange { .. })), "not aligned");
        builder.add(6, 1024, &hole).unwrap();
        assert!(matches!(builder.add(8, 5, &whole(5, 512)), Err(TableError::Overlap { .. })), "the chunk indexes");
    }
}
