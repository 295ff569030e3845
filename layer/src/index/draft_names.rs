//! The names of a layer while it is being built: a growing hash table on (directory, name).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::format::{NO_NODE, hash};
use super::names_by_parent::{ByParent, by_parent};
use super::writer::{IndexFull, TableError};
use crate::table::{Scratch, ScratchError, Table};

/// One name in a directory, identified by its place in the order of addition.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct DraftName {
    pub(super) parent: u32,
    /// The inode, `NO_NODE` if there is only a whiteout.
    pub(super) node: u32,
    offset: u32,
    length: u8,
    /// Not 0 if the layer says that the ones below have nothing of this name.
    whiteout: u8,
    reserved: u16,
}

impl DraftName {
    pub(super) fn is_whiteout(&self) -> bool {
        self.whiteout != 0
    }

    /// Where its bytes are: offset and length.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.offset as usize, self.length.into())
    }
}

#[derive(Debug)]
pub(super) struct DraftNames {
    names: Table<DraftName>,
    bytes: Table<u8>,
    /// Number of a name plus 1, or 0; a power of two, at most half full.
    slots: Table<u32>,
    /// Random, so that nobody can prepare names that collide. Nothing that comes out depends on it.
    seed: u64,
    /// The name that was read last from a file.
    buffer: Vec<u8>,
    /// Where tables go that are made anew, once they no longer fit into memory.
    scratch: Option<Scratch>,
}

impl DraftNames {
    pub(super) fn new() -> DraftNames {
        let seed = RandomState::new().build_hasher().finish();
        DraftNames {
            names: Table::Memory(Vec::new()),
            bytes: Table::Memory(Vec::new()),
            slots: Table::Memory(Vec::new()),
            seed,
            buffer: Vec::new(),
            scratch: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns how many bytes of memory the names take.
    pub(super) fn memory(&self) -> usize {
        self.names.memory() + self.bytes.memory() + self.slots.memory()
    }

    /// Moves everything into files.
    pub(super) fn spill(&mut self, scratch: &Scratch) -> Result<(), ScratchError> {
        self.names.spill(scratch)?;
        self.bytes.spill(scratch)?;
        self.slots.spill(scratch)?;
        self.scratch = Some(scratch.clone());
        Ok(())
    }

    pub(super) fn get(&mut self, id: u32) -> Result<DraftName, ScratchError> {
        self.names.get(id as usize)
    }

    /// Gives a name a node.
    pub(super) fn set_node(&mut self, id: u32, node: u32) -> Result<(), ScratchError> {
        self.names.update(id as usize, |name| name.node = node)
    }

    /// Notes that the layers below have nothing of a name.
    pub(super) fn set_whiteout(&mut self, id: u32) -> Result<(), ScratchError> {
        self.names.update(id as usize, |name| name.whiteout = 1)
    }

    pub(super) fn bytes(&mut self, name: &DraftName) -> Result<&[u8], ScratchError> {
        let (offset, length) = name.place();
        self.bytes.range(offset, length, &mut self.buffer)
    }

    /// Returns the id of a name, if it was added.
    pub(super) fn find(&mut self, parent: u32, name: &[u8]) -> Result<Option<u32>, ScratchError> {
        if self.slots.len() == 0 { Ok(None) } else { Ok(self.slot_of(parent, name)?.1) }
    }

    /// Returns the id of a name, adding it without a node if it is new.
    pub(super) fn add(&mut self, parent: u32, name: &[u8]) -> Result<u32, TableError> {
        if self.slots.len() <= self.names.len() * 2 {
            self.grow()?;
        }
        let (slot, known) = self.slot_of(parent, name)?;
        if let Some(id) = known {
            return Ok(id);
        }
        let id = u32::try_from(self.names.len()).ok().filter(|&id| id < u32::MAX).ok_or(IndexFull)?;
        let offset = u32::try_from(self.bytes.len()).map_err(|_| IndexFull)?;
        let length = u8::try_from(name.len()).map_err(|_| IndexFull)?;
        self.bytes.extend(name)?;
        self.names.push(DraftName { parent, node: NO_NODE, offset, length, whiteout: 0, reserved: 0 })?;
        self.slots.set(slot, id + 1)?;
        Ok(id)
    }

    /// Sorts the ids of all names by directory, and within one by name. Nothing can be looked up or added afterwards.
    pub(super) fn by_parent(&mut self, directories: usize) -> Result<ByParent, ScratchError> {
        self.slots = Table::Memory(Vec::new());
        by_parent(&mut self.names, &mut self.bytes, directories, self.scratch.as_ref())
    }

    /// Returns the slot where a name is or would go, and its id.
    fn slot_of(&mut self, parent: u32, name: &[u8]) -> Result<(usize, Option<u32>), ScratchError> {
        let mask = self.slots.len() - 1;
        let mut slot = start_slot(hash(self.seed, parent, name), mask);
        loop {
            let Some(id) = self.slots.get(slot)?.checked_sub(1) else {
                return Ok((slot, None));
            };
            let known = self.get(id)?;
            if known.parent == parent && usize::from(known.length) == name.len() && self.bytes(&known)? == name {
                return Ok((slot, Some(id)));
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) -> Result<(), ScratchError> {
        let length = (self.slots.len() * 2).max(1024);
        let mask = length - 1;
        let mut slots = Table::scattered(self.scratch.as_ref(), length, 0)?;
        for id in 0..self.names.len() {
            let name = self.names.get(id)?;
            let mut slot = start_slot(hash(self.seed, name.parent, self.bytes(&name)?), mask);
            while slots.get(slot)? != 0 {
                slot = (slot + 1) & mask;
            }
            // `add` has seen to it that the number fits.
            slots.set(slot, u32::try_from(id + 1).unwrap_or(u32::MAX))?;
        }
        self.slots = slots;
        Ok(())
    }
}

fn start_slot(hash: u64, mask: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash are as good as any others")]
    let bits = hash as usize;
    bits & mask
}
