//! Assembling the tables of an index into a file.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::format::{
    EntryRecord, ExtentRecord, FLAG_FOREIGN_LINK, Header, InodeRecord, LayerRecord, MAGIC, NO_XATTRS, PROBE_LIMIT,
    TABLE_ALIGNMENT, TableRecord, VERSION, XattrHeader, XattrSetHeader, first_slot, pair, slots_for,
};
use super::types::{Kind, Layer};

/// Collects records; the caller adds them in the order that the format asks for.
///
/// That order is: the root, then directory after directory in the order of their numbers, for each its children sorted
/// by name; a child's inode, unless it is a further link, directly follows the one of the child before it.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    layers: Vec<LayerRecord>,
    inodes: Vec<InodeRecord>,
    entries: Vec<EntryRecord>,
    extents: Vec<ExtentRecord>,
    names: Vec<u8>,
    targets: Vec<u8>,
    xattrs: Vec<u8>,
    xattr_sets: HashMap<Vec<u8>, u32>,
    total_size: u64,
    foreign_links: u32,
}

impl Writer {
    pub(crate) fn new(layers: impl IntoIterator<Item = Layer>) -> Writer {
        let layers = layers
            .into_iter()
            .map(|layer| LayerRecord { diff_id: *layer.diff_id.0.as_bytes(), tar_size: U64::new(layer.tar_size) })
            .collect();
        Writer { layers, ..Writer::default() }
    }

    /// Makes room, so that adding does not move the tables.
    pub(crate) fn reserve(&mut self, inodes: usize, entries: usize) {
        self.inodes.reserve(inodes);
        self.entries.reserve(entries);
    }

    pub(crate) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Adds an inode and returns its number.
    pub(crate) fn add_inode(&mut self, inode: InodeRecord) -> Result<u32, IndexFull> {
        // The highest number stands for "none".
        let node = u32::try_from(self.inodes.len()).ok().filter(|&node| node < u32::MAX).ok_or(IndexFull)?;
        if inode.kind() == Some(Kind::Regular) {
            self.total_size = self.total_size.saturating_add(inode.size.get());
        }
        if inode.has(FLAG_FOREIGN_LINK) {
            self.foreign_links += 1;
        }
        self.inodes.push(inode);
        Ok(node)
    }

    /// Returns an inode that was added, to complete it.
    pub(crate) fn inode_mut(&mut self, node: u32) -> &mut InodeRecord {
        &mut self.inodes[node as usize]
    }

    /// Adds a name to the directory that is being filled.
    pub(crate) fn add_entry(&mut self, name: &[u8], node: u32, kind: Option<Kind>) -> Result<(), IndexFull> {
        let name_length = u8::try_from(name.len()).map_err(|_| IndexFull)?;
        let name_offset = U32::new(offset_in(&self.names)?);
        self.names.extend_from_slice(name);
        self.entries.push(EntryRecord {
            name_offset,
            node: U32::new(node),
            name_length,
            kind: kind.map_or(0, Kind::to_bits),
            reserved: U16::ZERO,
        });
        Ok(())
    }

    /// Adds a link target or path and returns its payload.
    pub(crate) fn add_target(&mut self, target: &[u8]) -> Result<U64, IndexFull> {
        let offset = offset_in(&self.targets)?;
        let length = u32::try_from(target.len()).map_err(|_| IndexFull)?;
        self.targets.extend_from_slice(target);
        Ok(pair(offset, length))
    }

    /// Adds the map of a file and returns its payload.
    pub(crate) fn add_extents(&mut self, extents: &[ExtentRecord]) -> Result<U64, IndexFull> {
        let first = u32::try_from(self.extents.len()).map_err(|_| IndexFull)?;
        let count = u32::try_from(extents.len()).map_err(|_| IndexFull)?;
        self.extents.extend_from_slice(extents);
        Ok(pair(first, count))
    }

    /// Adds a set of attributes, once however often it occurs, and returns its number.
    pub(crate) fn add_xattrs<'a>(
        &mut self,
        attributes: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<u32, IndexFull> {
        let mut set = Vec::new();
        for (name, value) in attributes {
            let header = XattrHeader {
                name_length: U16::new(u16::try_from(name.len()).map_err(|_| IndexFull)?),
                reserved: U16::ZERO,
                value_length: U32::new(u32::try_from(value.len()).map_err(|_| IndexFull)?),
            };
            set.extend_from_slice(header.as_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        self.add_xattr_set(&set)
    }

    /// Adds a set of attributes as another index has it.
    pub(crate) fn add_xattr_set(&mut self, set: &[u8]) -> Result<u32, IndexFull> {
        if set.is_empty() {
            return Ok(NO_XATTRS);
        }
        if let Some(&known) = self.xattr_sets.get(set) {
            return Ok(known);
        }
        let offset = offset_in(&self.xattrs)?;
        let length = u32::try_from(set.len()).map_err(|_| IndexFull)?;
        self.xattrs.extend_from_slice(XattrSetHeader::new(length).as_bytes());
        self.xattrs.extend_from_slice(set);
        self.xattr_sets.insert(set.to_vec(), offset);
        Ok(offset)
    }

    /// Returns the bytes of the index.
    pub(crate) fn finish(self) -> Result<Vec<u8>, IndexFull> {
        let slots = hash_slots(&self.inodes, &self.entries, &self.names)?;
        let records = [size_of_val(&self.inodes[..]), size_of_val(&self.entries[..]), size_of_val(&self.extents[..])];
        let arenas = [self.names.len(), self.targets.len(), self.xattrs.len()];
        let rest = HEADER_SIZE + size_of_val(&self.layers[..]) + size_of_val(&slots[..]) + 8 * TABLE_ALIGNMENT;
        let mut file = Vec::with_capacity(rest + records.iter().chain(&arenas).sum::<usize>());
        file.resize(HEADER_SIZE, 0);
        let mut header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_size: U32::new(u32::try_from(HEADER_SIZE).map_err(|_| IndexFull)?),
            ignorable: U32::ZERO,
            read_only: U32::ZERO,
            refuse: U32::ZERO,
            foreign_links: U32::new(self.foreign_links),
            file_size: U64::ZERO,
            total_size: U64::new(self.total_size),
            checksum: [0; 32],
            layers: append(&mut file, self.layers),
            inodes: append(&mut file, self.inodes),
            entries: append(&mut file, self.entries),
            slots: append(&mut file, slots),
            extents: append(&mut file, self.extents),
            names: append(&mut file, self.names),
            targets: append(&mut file, self.targets),
            xattrs: append(&mut file, self.xattrs),
        };
        header.file_size = U64::new(file.len() as u64);
        file[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        header.checksum = Sha256::digest(&file).into();
        file[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        Ok(file)
    }
}

/// Moves a table to the end of the file and returns where it is.
fn append<T: IntoBytes + Immutable>(file: &mut Vec<u8>, table: Vec<T>) -> TableRecord {
    file.resize(file.len().next_multiple_of(TABLE_ALIGNMENT), 0);
    let place = TableRecord { offset: U64::new(file.len() as u64), count: U64::new(table.len() as u64) };
    file.extend_from_slice(table.as_bytes());
    place
}

/// A table has outgrown what its numbers can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more entries, names or attributes than an index can hold")]
pub struct IndexFull;

/// Fills the table in which lookups start. A name whose slots near its place are all taken is left out: the reader then
/// searches its directory, so crafted collisions cost a binary search and no more.
fn hash_slots(inodes: &[InodeRecord], entries: &[EntryRecord], names: &[u8]) -> Result<Vec<U32>, IndexFull> {
    let count = u32::try_from(slots_for(entries.len() as u64)).map_err(|_| IndexFull)?;
    let mut slots = vec![U32::ZERO; count as usize];
    let directories = (0u32..).zip(inodes).filter(|(_, inode)| inode.kind() == Some(Kind::Directory));
    for (node, directory) in directories {
        let (first, length) = directory.pair();
        for number in first..first + length {
            let entry = &entries[number as usize];
            let start = entry.name_offset.get() as usize;
            let name = &names[start..start + usize::from(entry.name_length)];
            let mut slot = first_slot(node, name, count);
            for _ in 0..PROBE_LIMIT {
                if slots[slot as usize] == U32::ZERO {
                    slots[slot as usize] = U32::new(number + 1);
                    break;
                }
                slot = if slot + 1 == count { 0 } else { slot + 1 };
            }
        }
    }
    Ok(slots)
}

fn offset_in(arena: &[u8]) -> Result<u32, IndexFull> {
    u32::try_from(arena.len()).map_err(|_| IndexFull)
}

const HEADER_SIZE: usize = size_of::<Header>();
