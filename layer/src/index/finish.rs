//! From the entries of a layer to its index.

use zerocopy::little_endian::{U16, U32};

use super::builder::{Builder, ROOT};
use super::format::{
    ExtentRecord, FLAG_BARE, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, InodeRecord, NO_NODE,
    NO_OBJECT, pair,
};
use super::types::{Kind, Layer};
use super::writer::{IndexFull, Writer};
use crate::objects::{ObjectPlacer, Segment};

impl Builder {
    /// Returns the index of the layer whose tar is `layer`.
    pub fn finish(self, layer: Layer) -> Result<Vec<u8>, IndexFull> {
        let real = self.directories_with_content();
        let by_parent = self.names.by_parent(self.inodes.len());
        let mut writer = Writer::new([layer]);
        writer.reserve(self.inodes.len(), self.names.len());
        let mut placer = ObjectPlacer::new();
        // The number in the index of each inode that has one.
        let mut numbers = vec![NO_NODE; self.inodes.len()];
        let mut directories = vec![ROOT];
        let root = self.finished(&self.inodes[ROOT as usize], &mut writer, &mut placer)?;
        numbers[ROOT as usize] = writer.add_inode(root)?;
        let mut filled = 0;
        while let Some(&directory) = directories.get(filled) {
            filled += 1;
            let parent = numbers[directory as usize];
            let first = writer.entry_count();
            let mut subdirectories = 0;
            for &id in by_parent.of(directory) {
                let name = self.names.get(id);
                let bytes = self.names.bytes(name);
                let Some(inode) = self.inodes.get(name.node as usize) else {
                    if name.whiteout {
                        writer.add_entry(bytes, NO_NODE, None)?;
                    }
                    continue;
                };
                let is_directory = inode.kind() == Some(Kind::Directory);
                let bare = is_directory && !real[name.node as usize];
                if bare && name.whiteout {
                    writer.add_entry(bytes, NO_NODE, None)?;
                    continue;
                }
                let number = &mut numbers[name.node as usize];
                if *number == NO_NODE {
                    let mut inode = self.finished(inode, &mut writer, &mut placer)?;
                    if is_directory {
                        inode.link = U32::new(parent);
                        if name.whiteout {
                            // Deleted and made anew: neither contents nor attributes come from below.
                            inode.flags = U16::new(FLAG_OPAQUE);
                        }
                        if bare {
                            inode.flags |= U16::new(FLAG_BARE);
                        }
                        subdirectories += 1;
                        directories.push(name.node);
                    }
                    *number = writer.add_inode(inode)?;
                } else {
                    writer.inode_mut(*number).nlink += 1;
                }
                writer.add_entry(bytes, *number, inode.kind())?;
            }
            let count = writer.entry_count() - first;
            let inode = writer.inode_mut(parent);
            inode.payload = pair(entry_number(first)?, entry_number(count)?);
            inode.nlink = U32::new(2 + subdirectories);
        }
        // Not needed while the file is put together, which takes as much again.
        drop((self, by_parent, numbers, directories));
        writer.finish()
    }

    /// Says for each inode whether it is a directory that the layer makes, not only one on the way to markers.
    fn directories_with_content(&self) -> Vec<bool> {
        let mut real = vec![false; self.inodes.len()];
        real[ROOT as usize] = true;
        for (node, inode) in self.inodes.iter().enumerate() {
            real[node] |= inode.kind() == Some(Kind::Directory) && !inode.has(FLAG_IMPLICIT);
        }
        for name in self.names.iter() {
            if name.node != NO_NODE && !self.is_directory(name.node) {
                real[name.parent as usize] = true;
            }
        }
        // A directory has a higher number than the one it is in.
        for node in (1..self.inodes.len()).rev() {
            if real[node] && self.inodes[node].kind() == Some(Kind::Directory) {
                real[self.inodes[node].link.get() as usize] = true;
            }
        }
        real
    }

    /// Returns an inode as the index holds it, with its target, map, attributes and object moved there.
    fn finished(
        &self,
        draft: &InodeRecord,
        writer: &mut Writer,
        placer: &mut ObjectPlacer,
    ) -> Result<InodeRecord, IndexFull> {
        let mut inode = *draft;
        inode.nlink = U32::new(1);
        if let Some(xattrs) = self.xattrs.get(draft.xattrs.get() as usize) {
            let attributes = xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
            inode.xattrs = U32::new(writer.add_xattrs(attributes)?);
        }
        let (first, length) = draft.pair();
        let range = first as usize..first as usize + length as usize;
        match draft.kind() {
            Some(Kind::Symlink) => inode.payload = writer.add_target(&self.targets[range])?,
            Some(Kind::Regular) if draft.has(FLAG_FOREIGN_LINK) => {
                inode.payload = writer.add_target(&self.targets[range])?;
            }
            Some(Kind::Regular) => {
                let size = draft.size.get();
                let nid = if draft.has(FLAG_EXTENT_TABLE) {
                    let extents = &self.extents[range];
                    inode.payload = writer.add_extents(extents)?;
                    placer.place(size, extents.iter().map(ExtentRecord::segment))
                } else {
                    placer.place(size, [Segment { offset: 0, length: size, source: draft.payload.get() }])
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
