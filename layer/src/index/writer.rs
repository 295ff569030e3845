//! Assembling the tables of an index into a file.

use std::collections::HashMap;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use sha2::{Digest as _, Sha256};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::format::{
    EntryRecord, ExtentRecord, FLAG_FOREIGN_LINK, Header, InodeRecord, LayerRecord, MAGIC, NO_XATTRS, PROBE_LIMIT,
    TABLE_ALIGNMENT, TableRecord, VERSION, XattrHeader, XattrSetHeader, first_slot, pair, slots_for,
};
use super::types::{Kind, Layer};
use crate::table::{Record, Scratch, ScratchError, Table};

/// Collects records; the caller adds them in the order that the format asks for.
///
/// That order is: the root, then directory after directory in the order of their numbers, for each its children sorted
/// by name; a child's inode, unless it is a further link, directly follows the one of the child before it.
#[derive(Debug)]
pub(crate) struct Writer {
    layers: Vec<LayerRecord>,
    inodes: Table<InodeRecord>,
    entries: Table<EntryRecord>,
    extents: Table<ExtentRecord>,
    names: Table<u8>,
    targets: Table<u8>,
    xattrs: Table<u8>,
    xattr_sets: HashMap<Vec<u8>, u32>,
    /// How many bytes `xattr_sets` has.
    known_xattrs: usize,
    total_size: u64,
    foreign_links: u32,
    scratch: Option<Scratch>,
}

impl Writer {
    /// Starts an index whose tables are in memory, or in files if there is somewhere to make them.
    pub(crate) fn new(
        layers: impl IntoIterator<Item = Layer>,
        scratch: Option<&Scratch>,
    ) -> Result<Writer, ScratchError> {
        let layers = layers
            .into_iter()
            .map(|layer| LayerRecord { diff_id: *layer.diff_id.0.as_bytes(), tar_size: U64::new(layer.tar_size) })
            .collect();
        Ok(Writer {
            layers,
            inodes: Table::new(scratch)?,
            entries: Table::new(scratch)?,
            extents: Table::new(scratch)?,
            names: Table::new(scratch)?,
            targets: Table::new(scratch)?,
            xattrs: Table::new(scratch)?,
            xattr_sets: HashMap::new(),
            known_xattrs: 0,
            total_size: 0,
            foreign_links: 0,
            scratch: scratch.cloned(),
        })
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
    pub(crate) fn add_inode(&mut self, inode: InodeRecord) -> Result<u32, TableError> {
        // The highest number stands for "none".
        let node = u32::try_from(self.inodes.len()).ok().filter(|&node| node < u32::MAX).ok_or(IndexFull)?;
        if inode.kind() == Some(Kind::Regular) {
            self.total_size = self.total_size.saturating_add(inode.size.get());
        }
        if inode.has(FLAG_FOREIGN_LINK) {
            self.foreign_links += 1;
        }
        self.inodes.push(inode)?;
        Ok(node)
    }

    /// Completes an inode that was added.
    pub(crate) fn update_inode(
        &mut self,
        node: u32,
        change: impl FnOnce(&mut InodeRecord),
    ) -> Result<(), ScratchError> {
        self.inodes.update(node as usize, change)
    }

    /// Adds a name to the directory that is being filled.
    pub(crate) fn add_entry(&mut self, name: &[u8], node: u32, kind: Option<Kind>) -> Result<(), TableError> {
        let name_length = u8::try_from(name.len()).map_err(|_| IndexFull)?;
        let name_offset = U32::new(offset_in(&self.names)?);
        self.names.extend(name)?;
        self.entries.push(EntryRecord {
            name_offset,
            node: U32::new(node),
            name_length,
            kind: kind.map_or(0, Kind::to_bits),
            reserved: U16::ZERO,
        })?;
        Ok(())
    }

    /// Adds a link target or path and returns its payload.
    pub(crate) fn add_target(&mut self, target: &[u8]) -> Result<U64, TableError> {
        let offset = offset_in(&self.targets)?;
        let length = u32::try_from(target.len()).map_err(|_| IndexFull)?;
        self.targets.extend(target)?;
        Ok(pair(offset, length))
    }

    /// Adds the map of a file and returns its payload.
    pub(crate) fn add_extents(&mut self, extents: &[ExtentRecord]) -> Result<U64, TableError> {
        let first = u32::try_from(self.extents.len()).map_err(|_| IndexFull)?;
        let count = u32::try_from(extents.len()).map_err(|_| IndexFull)?;
        self.extents.extend(extents)?;
        Ok(pair(first, count))
    }

    /// Adds a set of attributes and returns its number. However often it occurs it is there once, as long as the sets
    /// before it are few enough to be remembered.
    pub(crate) fn add_xattr_set(&mut self, set: &[u8]) -> Result<u32, TableError> {
        if set.is_empty() {
            return Ok(NO_XATTRS);
        }
        if let Some(&known) = self.xattr_sets.get(set) {
            return Ok(known);
        }
        let offset = offset_in(&self.xattrs)?;
        let length = u32::try_from(set.len()).map_err(|_| IndexFull)?;
        self.xattrs.extend(XattrSetHeader::new(length).as_bytes())?;
        self.xattrs.extend(set)?;
        if self.known_xattrs + set.len() <= REMEMBERED_XATTRS {
            self.known_xattrs += set.len() + REMEMBERED_OVERHEAD;
            self.xattr_sets.insert(set.to_vec(), offset);
        }
        Ok(offset)
    }

    /// Returns the index, complete but for its place.
    pub(crate) fn finish(mut self) -> Result<NewIndex, TableError> {
        self.xattr_sets = HashMap::new();
        let slots = hash_slots(&mut self.inodes, &mut self.entries, &mut self.names, self.scratch.as_ref())?;
        let Writer { layers, inodes, entries, extents, names, targets, xattrs, total_size, foreign_links, .. } = self;
        let mut end = HEADER_SIZE as u64;
        let mut place = |count: usize, size: usize| {
            let offset = end.next_multiple_of(TABLE_ALIGNMENT as u64);
            end = offset + (count * size) as u64;
            TableRecord { offset: U64::new(offset), count: U64::new(count as u64) }
        };
        let header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_size: U32::new(u32::try_from(HEADER_SIZE).map_err(|_| IndexFull)?),
            ignorable: U32::ZERO,
            read_only: U32::ZERO,
            refuse: U32::ZERO,
            foreign_links: U32::new(foreign_links),
            file_size: U64::ZERO,
            total_size: U64::new(total_size),
            checksum: [0; 32],
            layers: place(layers.len(), size_of::<LayerRecord>()),
            inodes: place(inodes.len(), size_of::<InodeRecord>()),
            entries: place(entries.len(), size_of::<EntryRecord>()),
            slots: place(slots.len(), size_of::<U32>()),
            extents: place(extents.len(), size_of::<ExtentRecord>()),
            names: place(names.len(), 1),
            targets: place(targets.len(), 1),
            xattrs: place(xattrs.len(), 1),
        };
        let header = Header { file_size: U64::new(end), ..header };
        Ok(NewIndex { header, layers: Table::Memory(layers), inodes, entries, slots, extents, names, targets, xattrs })
    }
}

/// An index that is to be written to a file.
#[derive(Debug)]
pub struct NewIndex {
    header: Header,
    layers: Table<LayerRecord>,
    inodes: Table<InodeRecord>,
    entries: Table<EntryRecord>,
    slots: Table<U32>,
    extents: Table<ExtentRecord>,
    names: Table<u8>,
    targets: Table<u8>,
    xattrs: Table<u8>,
}

impl NewIndex {
    /// Writes the index to a file, which must be empty; returns its checksum.
    pub fn write_to(self, file: &mut (impl Write + Seek)) -> Result<[u8; 32], ScratchError> {
        let mut out = Hashing { out: BufWriter::with_capacity(WRITE_BUFFER, file), sha: Sha256::new(), written: 0 };
        let mut header = self.header;
        out.write_all(header.as_bytes())?;
        append(&mut out, self.layers)?;
        append(&mut out, self.inodes)?;
        append(&mut out, self.entries)?;
        append(&mut out, self.slots)?;
        append(&mut out, self.extents)?;
        append(&mut out, self.names)?;
        append(&mut out, self.targets)?;
        append(&mut out, self.xattrs)?;
        header.checksum = out.sha.finalize().into();
        out.out.flush()?;
        let file = out.out.get_mut();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(header.as_bytes())?;
        Ok(header.checksum)
    }

    /// Returns the checksum that the index has, without putting it together anywhere.
    pub fn checksum(self) -> Result<[u8; 32], ScratchError> {
        self.write_to(&mut Nowhere)
    }

    /// Returns the bytes of the index.
    pub fn into_bytes(self) -> Result<Vec<u8>, ScratchError> {
        let size = usize::try_from(self.header.file_size.get()).unwrap_or(usize::MAX);
        let mut file = std::io::Cursor::new(Vec::with_capacity(size));
        self.write_to(&mut file)?;
        Ok(file.into_inner())
    }
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Nowhere {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Ok(0)
    }
}

/// Hashes what is written.
struct Hashing<W: Write> {
    out: BufWriter<W>,
    sha: Sha256,
    written: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sha.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a table where its alignment allows.
fn append<T: Record>(out: &mut Hashing<impl Write>, mut table: Table<T>) -> Result<(), ScratchError> {
    let padding = out.written.next_multiple_of(TABLE_ALIGNMENT as u64) - out.written;
    out.write_all(&[0; TABLE_ALIGNMENT][..usize::try_from(padding).unwrap_or(0)])?;
    table.write_to(out)
}

/// Returns a set of attributes, sorted by name, as an index has it.
pub(super) fn xattr_set<'a>(attributes: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Vec<u8>, IndexFull> {
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
    Ok(set)
}

/// A table has outgrown what its numbers can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more entries, names or attributes than an index can hold")]
pub struct IndexFull;

/// Why an index cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is too large.
    #[error(transparent)]
    Full(#[from] IndexFull),
    /// There is no place for it.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
}

/// Fills the table in which lookups start. A name whose slots near its place are all taken is left out: the reader then
/// searches its directory, so crafted collisions cost a binary search and no more.
fn hash_slots(
    inodes: &mut Table<InodeRecord>,
    entries: &mut Table<EntryRecord>,
    names: &mut Table<u8>,
    scratch: Option<&Scratch>,
) -> Result<Table<U32>, TableError> {
    let count = u32::try_from(slots_for(entries.len() as u64)).map_err(|_| IndexFull)?;
    let mut slots = Table::scattered(scratch, count as usize, U32::ZERO)?;
    let mut buffer = Vec::new();
    for node in 0..inodes.len() {
        let directory = inodes.get(node)?;
        if directory.kind() != Some(Kind::Directory) {
            continue;
        }
        let (first, length) = directory.pair();
        let node = u32::try_from(node).map_err(|_| IndexFull)?;
        for number in first..first + length {
            let entry = entries.get(number as usize)?;
            let name = names.range(entry.name_offset.get() as usize, entry.name_length.into(), &mut buffer)?;
            let mut slot = first_slot(node, name, count);
            for _ in 0..PROBE_LIMIT {
                if slots.get(slot as usize)? == U32::ZERO {
                    slots.set(slot as usize, U32::new(number + 1))?;
                    break;
                }
                slot = if slot + 1 == count { 0 } else { slot + 1 };
            }
        }
    }
    Ok(slots)
}

fn offset_in(arena: &Table<u8>) -> Result<u32, IndexFull> {
    u32::try_from(arena.len()).map_err(|_| IndexFull)
}

const HEADER_SIZE: usize = size_of::<Header>();
const WRITE_BUFFER: usize = 256 << 10;
/// How many bytes of different sets of attributes are remembered, each with what it costs beside.
const REMEMBERED_XATTRS: usize = 4 << 20;
const REMEMBERED_OVERHEAD: usize = 64;
