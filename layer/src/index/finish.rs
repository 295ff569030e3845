//! From the entries of a layer to its index.

use zerocopy::little_endian::{U16, U32};

use super::builder::{Builder, ROOT};
use super::format::{
    ExtentRecord, FLAG_BARE, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, InodeRecord, NO_NODE,
    NO_OBJECT, NO_XATTRS, pair,
};
use super::types::{Kind, Layer};
use super::writer::{IndexFull, NewIndex, TableError, Writer};
use crate::objects::{ObjectPlacer, Segment};
use crate::table::{Bits, Scratch, Table};

impl Builder {
    /// Returns the index of the layer whose tar is `layer`.
    pub fn finish(self, layer: Layer) -> Result<NewIndex, TableError> {
        // What has outgrown memory once does so again.
        let scratch = self.scratch.clone().filter(|_| self.spilled);
        let finisher = Finisher::new(self, layer, scratch.as_ref())?;
        // Nothing of the layer's entries is needed any more while the file is put together, which takes as much again.
        let writer = finisher.run()?;
        writer.finish()
    }

    /// Says for each inode whether it is a directory that the layer makes, not only one on the way to markers.
    fn directories_with_content(&mut self) -> Result<Bits, TableError> {
        let mut real = Bits::new(self.inodes.len());
        real.set(ROOT as usize);
        for node in 0..self.inodes.len() {
            let inode = self.inodes.get(node)?;
            if inode.kind() == Some(Kind::Directory) && !inode.has(FLAG_IMPLICIT) {
                real.set(node);
            }
        }
        for id in 0..self.names.len() {
            let name = self.names.get(entry_number(id)?)?;
            if name.node != NO_NODE && !self.is_directory(name.node)? {
                real.set(name.parent as usize);
            }
        }
        // A directory has a higher number than the one it is in.
        for node in (1..self.inodes.len()).rev() {
            if real.get(node) {
                let inode = self.inodes.get(node)?;
                if inode.kind() == Some(Kind::Directory) {
                    real.set(inode.link.get() as usize);
                }
            }
        }
        Ok(real)
    }
}

/// A builder that is being turned into an index.
struct Finisher {
    builder: Builder,
    writer: Writer,
    placer: ObjectPlacer,
    /// The number in the index of each inode that has one.
    numbers: Table<u32>,
    /// The directories to fill, in the order of their numbers.
    directories: Table<u32>,
    real: Bits,
    buffer: Vec<u8>,
}

impl Finisher {
    fn new(mut builder: Builder, layer: Layer, scratch: Option<&Scratch>) -> Result<Finisher, TableError> {
        let mut writer = Writer::new([layer], scratch)?;
        writer.reserve(builder.inodes.len(), builder.names.len());
        Ok(Finisher {
            real: builder.directories_with_content()?,
            numbers: Table::filled(scratch, builder.inodes.len(), NO_NODE)?,
            directories: Table::new(scratch)?,
            placer: ObjectPlacer::new(),
            buffer: Vec::new(),
            writer,
            builder,
        })
    }

    fn run(mut self) -> Result<Writer, TableError> {
        let mut by_parent = self.builder.names.by_parent(self.builder.inodes.len())?;
        let root = self.builder.inodes.get(ROOT as usize)?;
        let root = self.finished(&root)?;
        let root = self.writer.add_inode(root)?;
        self.numbers.set(ROOT as usize, root)?;
        self.directories.push(ROOT)?;
        let mut filled = 0;
        while filled < self.directories.len() {
            let directory = self.directories.get(filled)?;
            filled += 1;
            let parent = self.numbers.get(directory as usize)?;
            let first = self.writer.entry_count();
            let mut subdirectories = 0;
            for place in by_parent.of(directory)? {
                let id = by_parent.id(place)?;
                subdirectories += u32::from(self.add_name(id, parent)?);
            }
            let count = self.writer.entry_count() - first;
            let payload = pair(entry_number(first)?, entry_number(count)?);
            self.writer.update_inode(parent, |inode| {
                inode.payload = payload;
                inode.nlink = U32::new(2 + subdirectories);
            })?;
        }
        Ok(self.writer)
    }

    /// Adds a name to the directory that is being filled, and returns whether it is one more directory.
    fn add_name(&mut self, id: u32, parent: u32) -> Result<bool, TableError> {
        let name = self.builder.names.get(id)?;
        let inode = match name.node {
            NO_NODE => None,
            node => Some(self.builder.inodes.get(node as usize)?),
        };
        let is_directory = inode.is_some_and(|inode| inode.kind() == Some(Kind::Directory));
        let bare = is_directory && !self.real.get(name.node as usize);
        let Some(inode) = inode.filter(|_| !(bare && name.is_whiteout())) else {
            if name.is_whiteout() {
                self.writer.add_entry(self.builder.names.bytes(&name)?, NO_NODE, None)?;
            }
            return Ok(false);
        };
        let mut number = self.numbers.get(name.node as usize)?;
        let is_new = number == NO_NODE;
        if is_new {
            let mut inode = self.finished(&inode)?;
            if is_directory {
                inode.link = U32::new(parent);
                if name.is_whiteout() {
                    // Deleted and made anew: neither contents nor attributes come from below.
                    inode.flags = U16::new(FLAG_OPAQUE);
                }
                if bare {
                    inode.flags |= U16::new(FLAG_BARE);
                }
                self.directories.push(name.node)?;
            }
            number = self.writer.add_inode(inode)?;
            self.numbers.set(name.node as usize, number)?;
        } else {
            self.writer.update_inode(number, |inode| inode.nlink += 1)?;
        }
        self.writer.add_entry(self.builder.names.bytes(&name)?, number, inode.kind())?;
        Ok(is_new && is_directory)
    }

    /// Returns an inode as the index holds it, with its target, map, attributes and object moved there.
    fn finished(&mut self, draft: &InodeRecord) -> Result<InodeRecord, TableError> {
        let mut inode = *draft;
        inode.nlink = U32::new(1);
        if draft.xattrs.get() != NO_XATTRS {
            let place = draft.xattrs.get() as usize;
            let mut length = [0; 4];
            length.copy_from_slice(self.builder.xattrs.range(place, 4, &mut self.buffer)?);
            let length = u32::from_le_bytes(length) as usize;
            let set = self.builder.xattrs.range(place + 4, length, &mut self.buffer)?;
            inode.xattrs = U32::new(self.writer.add_xattr_set(set)?);
        }
        let (first, length) = draft.pair();
        let (first, length) = (first as usize, length as usize);
        match draft.kind() {
            Some(Kind::Symlink) => {
                inode.payload =
                    self.writer.add_target(self.builder.targets.range(first, length, &mut self.buffer)?)?;
            }
            Some(Kind::Regular) if draft.has(FLAG_FOREIGN_LINK) => {
                inode.payload =
                    self.writer.add_target(self.builder.targets.range(first, length, &mut self.buffer)?)?;
            }
            Some(Kind::Regular) => {
                let size = draft.size.get();
                let nid = if draft.has(FLAG_EXTENT_TABLE) {
                    let mut buffer = Vec::new();
                    let extents = self.builder.extents.range(first, length, &mut buffer)?;
                    inode.payload = self.writer.add_extents(extents)?;
                    self.placer.place(size, extents.iter().map(ExtentRecord::segment))
                } else {
                    self.placer.place(size, [Segment { offset: 0, length: size, source: draft.payload.get() }])
                };
                inode.link = U32::new(nid.and_then(|nid| u32::try_from(nid).ok()).unwrap_or(NO_OBJECT));
            }
            _ => {}
        }
        Ok(inode)
    }
}

fn entry_number(count: usize) -> Result<u32, IndexFull> {
    u32::try_from(count).map_err(|_| IndexFull)
}
