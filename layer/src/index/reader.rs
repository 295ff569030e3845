//! Reading an index in place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use strata_sys::map::Map;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::format::{
    EntryRecord, ExtentRecord, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, Header, InodeRecord,
    LayerRecord, MAGIC, NO_OBJECT, NO_XATTRS, PROBE_LIMIT, TABLE_ALIGNMENT, TableRecord, VERSION, XattrSetHeader,
    first_slot, slots_for,
};
use super::iter::{Child, Children, Extents, Xattrs};
use super::types::{Attributes, Device, Kind, Layer, NodeId, Object, Timestamp};
use crate::{DiffId, Digest, path};

/// A mapped index of one layer or of a merged stack.
///
/// Opening looks at the header alone. Afterwards every question is answered in bounded time whatever the bytes are: on a
/// damaged index the answer may be wrong or absent, but nothing panics, and walking down directories ends, because a
/// directory always has a higher number than the one it is in.
#[derive(Clone, Debug)]
pub struct Index {
    bytes: Arc<Bytes>,
    tables: Tables,
    total_size: u64,
    foreign_links: u32,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

/// The byte ranges of the tables; they lie in the file and are multiples of their record's size.
#[derive(Clone, Debug)]
struct Tables {
    layers: Range<usize>,
    inodes: Range<usize>,
    entries: Range<usize>,
    slots: Range<usize>,
    extents: Range<usize>,
    names: Range<usize>,
    targets: Range<usize>,
    xattrs: Range<usize>,
}

impl Index {
    /// Maps the index in `file`, which must not change while the map exists.
    pub fn open(file: &File) -> Result<Index, IndexError> {
        Index::new(Bytes::Mapped(Map::of(file).map_err(IndexError::Map)?))
    }

    /// Reads an index from memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Index, IndexError> {
        Index::new(Bytes::Owned(bytes))
    }

    fn new(bytes: Bytes) -> Result<Index, IndexError> {
        let file = match &bytes {
            Bytes::Mapped(map) => &map[..],
            Bytes::Owned(vec) => &vec[..],
        };
        let (header, _) = Header::ref_from_prefix(file).map_err(|_| IndexError::NotAnIndex)?;
        if header.magic != MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        if header.version.get() != VERSION {
            return Err(IndexError::Version(header.version.get()));
        }
        if header.refuse.get() != 0 {
            return Err(IndexError::Features(header.refuse.get()));
        }
        if header.file_size.get() != file.len() as u64 {
            return Err(IndexError::Size { expected: header.file_size.get(), found: file.len() as u64 });
        }
        if (header.header_size.get() as usize) < size_of::<Header>() {
            return Err(IndexError::Damaged("header size"));
        }
        let tables = Tables {
            layers: range::<LayerRecord>(&header.layers, file.len(), "layer table")?,
            inodes: range::<InodeRecord>(&header.inodes, file.len(), "inode table")?,
            entries: range::<EntryRecord>(&header.entries, file.len(), "entry table")?,
            slots: range::<U32>(&header.slots, file.len(), "slot table")?,
            extents: range::<ExtentRecord>(&header.extents, file.len(), "extent table")?,
            names: range::<u8>(&header.names, file.len(), "names")?,
            targets: range::<u8>(&header.targets, file.len(), "targets")?,
            xattrs: range::<u8>(&header.xattrs, file.len(), "attributes")?,
        };
        let fits = |count: u64, limit: u32| count < u64::from(limit);
        if header.layers.count.get() > u64::from(u16::MAX)
            || !fits(header.inodes.count.get(), u32::MAX)
            || !fits(header.slots.count.get(), u32::MAX)
            || header.slots.count.get() != slots_for(header.entries.count.get().min(u64::from(u32::MAX)))
        {
            return Err(IndexError::Damaged("table sizes"));
        }
        let (total_size, foreign_links) = (header.total_size.get(), header.foreign_links.get());
        let index = Index { total_size, foreign_links, tables, bytes: Arc::new(bytes) };
        match index.inode(NodeId::ROOT).and_then(InodeRecord::kind) {
            Some(Kind::Directory) => Ok(index),
            _ => Err(IndexError::Damaged("root")),
        }
    }

    /// Returns the number of layers that the index was made of.
    pub fn layer_count(&self) -> u16 {
        // Opening has checked that the number fits.
        u16::try_from(self.tables.layers.len() / size_of::<LayerRecord>()).unwrap_or(u16::MAX)
    }

    /// Returns the layer at `position`, the bottom one being 0.
    pub fn layer(&self, position: u16) -> Option<Layer> {
        let record = self.record::<LayerRecord>(&self.tables.layers, position.into())?;
        Some(Layer { diff_id: DiffId(Digest::from_bytes(record.diff_id)), tar_size: record.tar_size.get() })
    }

    /// Returns the number of nodes; their ids are the numbers below it.
    pub fn inode_count(&self) -> u32 {
        // Opening has checked that the number fits.
        u32::try_from(self.tables.inodes.len() / size_of::<InodeRecord>()).unwrap_or(u32::MAX)
    }

    /// Returns the number of names, whiteouts included, the root not.
    pub fn entry_count(&self) -> u32 {
        u32::try_from(self.tables.entries.len() / size_of::<EntryRecord>()).unwrap_or(u32::MAX)
    }

    /// Returns the digest that the index carries of all of itself; only [`Index::verify`] compares it. It identifies the
    /// index, and through the digests of their tars also the layers.
    pub fn checksum(&self) -> [u8; 32] {
        // Opening has checked that there is a header.
        Header::ref_from_prefix(self.as_bytes()).map_or([0; 32], |(header, _)| header.checksum)
    }

    /// Returns the length of the index itself.
    pub fn file_size(&self) -> u64 {
        self.as_bytes().len() as u64
    }

    /// Returns the index itself, byte for byte.
    pub fn as_bytes(&self) -> &[u8] {
        match &*self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }

    /// Gives the memory back that the parts of the file read so far take in this process.
    pub(crate) fn forget(&self) {
        self.forget_range(0..self.as_bytes().len());
    }

    /// The same, but for the hash table of the names.
    pub(super) fn forget_all_but_slots(&self) {
        let slots = self.tables.slots.clone();
        self.forget_range(0..slots.start);
        self.forget_range(slots.end..self.as_bytes().len());
    }

    fn forget_range(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &*self.bytes {
            // Only the memory would be missed.
            let _ = map.forget(range);
        }
    }

    /// Returns the sum of the sizes of all regular files, each counted once.
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Returns the number of hard links to files below this layer.
    pub fn foreign_link_count(&self) -> u32 {
        self.foreign_links
    }

    /// Returns a path of a node, the first one in the order of directories, or `None` if nothing leads there. It may look
    /// through all entries: for messages.
    pub fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        let name_in = |directory: NodeId, node: NodeId| {
            self.children(directory).find(|child| child.node == node && !child.whiteout).map(|child| child.name)
        };
        let mut names = Vec::new();
        let mut current = node;
        while current != NodeId::ROOT {
            // Only directories know where they are.
            let directory = match self.parent(current) {
                Some(parent) => parent,
                None => self.nodes().find(|&directory| name_in(directory, current).is_some())?,
            };
            if directory >= current && !names.is_empty() {
                return None;
            }
            names.push(name_in(directory, current)?);
            current = directory;
        }
        Some(path::join(names.into_iter().rev()))
    }

    /// Returns all node ids in ascending order, the root first. Directories come before what they contain.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + DoubleEndedIterator + use<> {
        (0..self.inode_count()).map(NodeId::from_u32)
    }

    /// Returns the node called `name` in `directory`. A whiteout is no node.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.lookup_child(directory, name).filter(|child| !child.whiteout).map(|child| child.node)
    }

    /// Returns the entry called `name` in `directory`, which may be a whiteout.
    pub fn lookup_child(&self, directory: NodeId, name: &[u8]) -> Option<Child<'_>> {
        let children = self.entry_range(directory);
        if children.is_empty() {
            return None;
        }
        let slots = u32::try_from(self.tables.slots.len() / size_of::<U32>()).unwrap_or(u32::MAX);
        let mut slot = first_slot(directory.as_u32(), name, slots);
        for _ in 0..PROBE_LIMIT {
            let number = self.record::<U32>(&self.tables.slots, slot)?.get().checked_sub(1)?;
            // Names of other directories are told apart without looking at them.
            if children.contains(&number)
                && let Some(child) = self.child(directory, number)
                && child.name == name
            {
                return Some(child);
            }
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
        }
        self.search(directory, children, name)
    }

    /// Finds a name by halving the directory's range, for names that found no slot.
    fn search(&self, directory: NodeId, mut range: Range<u32>, name: &[u8]) -> Option<Child<'_>> {
        while !range.is_empty() {
            let middle = range.start + (range.end - range.start) / 2;
            let child = self.child(directory, middle)?;
            match child.name.cmp(name) {
                std::cmp::Ordering::Equal => return Some(child),
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
            }
        }
        None
    }

    /// Returns what `stat` would say of a node.
    pub fn attributes(&self, node: NodeId) -> Option<Attributes> {
        let inode = self.inode(node)?;
        let kind = inode.kind()?;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = inode.pair();
                Device { major, minor }
            }
            _ => Device::default(),
        };
        Some(Attributes {
            kind,
            permissions: inode.mode.get() & 0o7777,
            uid: inode.uid.get(),
            gid: inode.gid.get(),
            nlink: inode.nlink.get(),
            size: inode.size.get(),
            mtime: Timestamp {
                seconds: inode.mtime_seconds.get(),
                nanoseconds: inode.mtime_nanoseconds.get().min(999_999_999),
            },
            device,
        })
    }

    /// Returns the directory that contains `directory`; the root contains itself.
    pub fn parent(&self, directory: NodeId) -> Option<NodeId> {
        let inode = self.inode(directory).filter(|inode| inode.kind() == Some(Kind::Directory))?;
        let parent = inode.link.get();
        (parent < directory.as_u32() || directory == NodeId::ROOT).then_some(NodeId::from_u32(parent))
    }

    /// Returns the entries of a directory, sorted by name; nothing if it is none.
    pub fn children(&self, directory: NodeId) -> Children<'_> {
        Children::new(self, directory, self.entry_range(directory))
    }

    /// Returns where a symbolic link points to.
    pub fn symlink_target(&self, node: NodeId) -> Option<&[u8]> {
        let inode = self.inode(node).filter(|inode| inode.kind() == Some(Kind::Symlink))?;
        self.target(inode)
    }

    /// Returns the path that a hard link to a file below this layer points to; only in the index of a single layer.
    pub fn foreign_link(&self, node: NodeId) -> Option<&[u8]> {
        let inode = self.inode(node).filter(|inode| inode.has(FLAG_FOREIGN_LINK))?;
        self.target(inode)
    }

    fn target(&self, inode: &InodeRecord) -> Option<&[u8]> {
        let (offset, length) = inode.pair();
        self.slice(&self.tables.targets, offset, length)
    }

    /// Returns the extended attributes of a node, sorted by name.
    pub fn xattrs(&self, node: NodeId) -> Xattrs<'_> {
        Xattrs::new(self.xattr_set(node).unwrap_or_default())
    }

    /// Returns the encoded attributes of a node.
    pub(crate) fn xattr_set(&self, node: NodeId) -> Option<&[u8]> {
        let offset = self.inode(node)?.xattrs.get();
        if offset == NO_XATTRS {
            return None;
        }
        let arena = self.as_bytes().get(self.tables.xattrs.clone())?.get(offset as usize..)?;
        let (length, rest) = XattrSetHeader::ref_from_prefix(arena).ok()?;
        rest.get(..length.get() as usize)
    }

    /// Returns where the bytes of a regular file lie, in file order.
    pub fn extents(&self, node: NodeId) -> Extents<'_> {
        let Some(inode) = self.inode(node).filter(|inode| inode.kind() == Some(Kind::Regular)) else {
            return Extents::none();
        };
        if inode.has(FLAG_FOREIGN_LINK) {
            return Extents::none();
        }
        if !inode.has(FLAG_EXTENT_TABLE) {
            return Extents::contiguous(inode.layer.get(), inode.size.get(), inode.payload.get());
        }
        Extents::mapped(inode.layer.get(), self.extent_records(inode).unwrap_or_default())
    }

    pub(crate) fn extent_records(&self, inode: &InodeRecord) -> Option<&[ExtentRecord]> {
        let (first, count) = inode.pair();
        let records = <[ExtentRecord]>::ref_from_bytes(self.as_bytes().get(self.tables.extents.clone())?).ok()?;
        records.get(first as usize..(first as usize).checked_add(count as usize)?)
    }

    /// Returns the inode of a regular file in the object table of its layer; `None` if it is empty or the table cannot
    /// express it.
    pub fn object(&self, node: NodeId) -> Option<Object> {
        let inode = self.inode(node).filter(|inode| inode.kind() == Some(Kind::Regular))?;
        let nid = inode.link.get();
        (nid != NO_OBJECT).then_some(Object { layer: inode.layer.get(), nid: nid.into() })
    }

    /// Returns the layer that a node's attributes and data come from, the bottom one being 0.
    pub fn origin(&self, node: NodeId) -> Option<u16> {
        self.inode(node).map(|inode| inode.layer.get())
    }

    /// Returns whether a directory hides what the layers below have under its name; only in the index of a single layer.
    pub fn is_opaque(&self, directory: NodeId) -> bool {
        self.inode(directory).is_some_and(|inode| inode.has(FLAG_OPAQUE))
    }

    /// Returns whether a directory has no entry of its own in the layer, only something in it. It then takes its
    /// attributes from the layers below.
    pub fn is_implicit(&self, directory: NodeId) -> bool {
        self.inode(directory).is_some_and(|inode| inode.has(FLAG_IMPLICIT))
    }

    /// Returns whether what a node's record points at is inside the tables; the accessors say "nothing" where it is not.
    pub(super) fn references_are_valid(&self, node: NodeId) -> bool {
        self.inode(node).is_some_and(|inode| {
            let (first, count) = inode.pair();
            let data = match inode.kind() {
                Some(Kind::Directory) => {
                    first.checked_add(count).is_some_and(|end| end <= self.entry_count()) && self.parent(node).is_some()
                }
                Some(Kind::Regular) if inode.has(FLAG_FOREIGN_LINK) => self.target(inode).is_some(),
                Some(Kind::Regular) if inode.has(FLAG_EXTENT_TABLE) => self.extent_records(inode).is_some(),
                Some(Kind::Symlink) => self.target(inode).is_some(),
                _ => true,
            };
            data && (inode.xattrs.get() == NO_XATTRS || self.xattr_set(node).is_some())
        })
    }

    pub(crate) fn inode(&self, node: NodeId) -> Option<&InodeRecord> {
        self.record(&self.tables.inodes, node.as_u32())
    }

    /// The numbers of the entries of a directory; they exist.
    pub(super) fn entry_range(&self, directory: NodeId) -> Range<u32> {
        let Some(inode) = self.inode(directory).filter(|inode| inode.kind() == Some(Kind::Directory)) else {
            return 0..0;
        };
        let (first, count) = inode.pair();
        match first.checked_add(count) {
            Some(end) if end <= self.entry_count() => first..end,
            _ => 0..0,
        }
    }

    /// Returns one entry, or `None` where it points outside or back up the tree.
    pub(super) fn child(&self, directory: NodeId, number: u32) -> Option<Child<'_>> {
        let entry = self.record::<EntryRecord>(&self.tables.entries, number)?;
        let name = self.slice(&self.tables.names, entry.name_offset.get(), entry.name_length.into())?;
        let node = NodeId::from_u32(entry.node.get());
        if entry.kind == 0 {
            return Some(Child { name, node, kind: Kind::CharDevice, whiteout: true });
        }
        let kind = Kind::from_bits(entry.kind)?;
        let descends = kind != Kind::Directory || node > directory;
        descends.then_some(Child { name, node, kind, whiteout: false })
    }

    fn record<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        table: &Range<usize>,
        number: u32,
    ) -> Option<&T> {
        let start = table.start.checked_add(size_of::<T>().checked_mul(number as usize)?)?;
        let end = start.checked_add(size_of::<T>()).filter(|&end| end <= table.end)?;
        T::ref_from_bytes(self.as_bytes().get(start..end)?).ok()
    }

    fn slice(&self, table: &Range<usize>, offset: u32, length: u32) -> Option<&[u8]> {
        let start = table.start.checked_add(offset as usize)?;
        let end = start.checked_add(length as usize).filter(|&end| end <= table.end)?;
        self.as_bytes().get(start..end)
    }
}

/// Why a file is not usable as an index. The tar is still there: the answer to all of them but `Map` is to build it anew.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be mapped.
    #[error("map the index")]
    Map(#[source] io::Error),
    /// It does not start like an index.
    #[error("not an index")]
    NotAnIndex,
    /// It was written by another version of strata.
    #[error("index has version {0}, expected {VERSION}")]
    Version(u32),
    /// It uses features that this version does not know and must.
    #[error("index needs unknown features {0:#x}")]
    Features(u32),
    /// It was cut or extended.
    #[error("index is {found} bytes long, expected {expected}")]
    Size {
        /// What the header says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The checksum over the whole file is wrong.
    #[error("checksum of the index is wrong")]
    Checksum,
    /// Something in it contradicts the format.
    #[error("damaged index: {0}")]
    Damaged(&'static str),
}

/// Checks a table's place and returns its bytes.
fn range<T>(table: &TableRecord, file_length: usize, what: &'static str) -> Result<Range<usize>, IndexError> {
    let damaged = IndexError::Damaged(what);
    let place = || {
        let start = usize::try_from(table.offset.get()).ok()?;
        let length = usize::try_from(table.count.get()).ok()?.checked_mul(size_of::<T>())?;
        let end = start.checked_add(length)?;
        let aligned = start.is_multiple_of(TABLE_ALIGNMENT);
        (aligned && start >= size_of::<Header>() && end <= file_length).then_some(start..end)
    };
    place().ok_or(damaged)
}
