//! Checking a whole index.

use sha2::{Digest as _, Sha256};
use zerocopy::FromBytes as _;

use super::format::Header;
use super::reader::{Index, IndexError};
use super::types::{Kind, NodeId};

impl Index {
    /// Checks the checksum and everything that the format promises: that the directories form one tree whose names are
    /// sorted and can be found, that inodes and entries are in order, that link counts are right, and that every number
    /// points at something.
    ///
    /// The other methods do not need it to be safe. It reads all of the file, and gives back what was read as it goes on, so that a
    /// large one does not take its size in memory.
    pub fn verify(&self) -> Result<(), IndexError> {
        self.verify_checksum()?;
        self.verify_structure()
    }

    /// Checks whether this is, byte for byte, the index that has the checksum.
    pub fn is_the_one_of(&self, checksum: &[u8; 32]) -> bool {
        self.checksum() == *checksum && self.verify_checksum().is_ok()
    }

    pub(super) fn verify_structure(&self) -> Result<(), IndexError> {
        let mut links = vec![0u32; self.inode_count() as usize];
        let mut next_entry = 0;
        let mut next_node = NodeId::ROOT.as_u32() + 1;
        let mut looked_at = 0;
        for node in self.nodes() {
            let Some(attributes) = self.attributes(node) else {
                return damaged("kind of an inode");
            };
            self.forget_sometimes(&mut looked_at, 1);
            if self.origin(node).is_none_or(|layer| layer >= self.layer_count().max(1)) {
                return damaged("layer of an inode");
            }
            if !self.references_are_valid(node) {
                return damaged("what an inode points at");
            }
            self.verify_data(node, attributes.kind, attributes.size)?;
            if attributes.kind != Kind::Directory {
                continue;
            }
            let entries = self.entry_range(node);
            if !entries.is_empty() {
                if entries.start != next_entry {
                    return damaged("place of a directory's entries");
                }
                next_entry = entries.end;
            }
            let subdirectories = self.verify_children(node, &mut links, &mut next_node, &mut looked_at)?;
            if attributes.nlink != subdirectories.saturating_add(2) {
                return damaged("link count of a directory");
            }
        }
        if next_entry != self.entry_count() {
            return damaged("entries of no directory");
        }
        for node in self.nodes() {
            self.forget_sometimes(&mut looked_at, 1);
            let links = links[node.as_u32() as usize];
            let right = match self.attributes(node) {
                Some(attributes) if attributes.kind == Kind::Directory => links == u32::from(node != NodeId::ROOT),
                Some(attributes) => links > 0 && attributes.nlink == links,
                None => false,
            };
            if !right {
                return damaged("link count");
            }
        }
        Ok(())
    }

    /// Checks the entries of a directory and returns how many are directories.
    fn verify_children(
        &self,
        directory: NodeId,
        links: &mut [u32],
        next_node: &mut u32,
        looked_at: &mut usize,
    ) -> Result<u32, IndexError> {
        let mut previous: &[u8] = b"";
        let mut subdirectories = 0;
        for child in self.children(directory) {
            if !is_name(child.name) || child.name <= previous {
                return damaged("name of an entry");
            }
            previous = child.name;
            self.forget_sometimes(looked_at, 1);
            if self.lookup_child(directory, child.name) != Some(child) {
                return damaged("lookup of an entry");
            }
            if child.whiteout {
                continue;
            }
            if self.attributes(child.node).map(|attributes| attributes.kind) != Some(child.kind) {
                return damaged("kind of an entry");
            }
            let number = child.node.as_u32();
            if number > *next_node {
                return damaged("order of the inodes");
            }
            *next_node += u32::from(number == *next_node);
            links[number as usize] += 1;
            if child.kind == Kind::Directory {
                subdirectories += 1;
                if self.parent(child.node) != Some(directory) {
                    return damaged("parent of a directory");
                }
            }
        }
        Ok(subdirectories)
    }

    fn verify_checksum(&self) -> Result<(), IndexError> {
        let (header, rest) = Header::ref_from_prefix(self.as_bytes()).map_err(|_| IndexError::NotAnIndex)?;
        let mut blank = *header;
        blank.checksum = [0; 32];
        let mut sha = Sha256::new();
        sha.update(zerocopy::IntoBytes::as_bytes(&blank));
        for part in rest.chunks(WINDOW) {
            sha.update(part);
            if rest.len() > SMALL {
                self.forget();
            }
        }
        if header.checksum == <[u8; 32]>::from(sha.finalize()) { Ok(()) } else { Err(IndexError::Checksum) }
    }

    /// Gives back what was read once enough was, but the hash table: it is read in no order, so all of it is needed until the end.
    fn forget_sometimes(&self, looked_at: &mut usize, more: usize) {
        *looked_at += more;
        if *looked_at >= FORGET && self.as_bytes().len() > SMALL {
            *looked_at = 0;
            self.forget_all_but_slots();
        }
    }

    /// Checks what the payload of an inode points at.
    fn verify_data(&self, node: NodeId, kind: Kind, size: u64) -> Result<(), IndexError> {
        let mut set = self.xattrs(node);
        let mut previous: &[u8] = b"";
        for (name, _) in &mut set {
            if name <= previous {
                return damaged("extended attributes");
            }
            previous = name;
        }
        if !set.is_at_end() {
            return damaged("extended attributes");
        }
        if kind == Kind::Symlink && self.symlink_target(node).is_none_or(|target| target.len() as u64 != size) {
            return damaged("target of a symbolic link");
        }
        let mut covered = 0;
        for extent in self.extents(node) {
            let end = extent.offset.checked_add(extent.length).filter(|&end| end <= size);
            let source_end = extent.source.checked_add(extent.length);
            let in_tar = self.layer(extent.layer).zip(source_end).is_some_and(|(layer, end)| end <= layer.tar_size);
            match end {
                Some(end) if extent.length > 0 && extent.offset >= covered && in_tar => covered = end,
                _ => return damaged("extents of a file"),
            }
        }
        Ok(())
    }
}

fn damaged<T>(what: &'static str) -> Result<T, IndexError> {
    Err(IndexError::Damaged(what))
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

/// How much is hashed before what was read is given back.
const WINDOW: usize = 4 << 20;
/// What may stay in memory as it is.
const SMALL: usize = 16 << 20;
/// How many inodes and entries are looked at before that is done.
const FORGET: usize = 32 << 10;
