//! The names of a layer while it is being built: a growing hash table on (directory, name).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::ops::Range;

use super::format::{NO_NODE, hash};
use super::writer::IndexFull;

/// One name in a directory, identified by its place in the order of addition.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftName {
    pub(super) parent: u32,
    /// The inode, `NO_NODE` if there is only a whiteout.
    pub(super) node: u32,
    offset: u32,
    length: u8,
    /// The layer says that the ones below have nothing of this name.
    pub(super) whiteout: bool,
}

#[derive(Debug)]
pub(super) struct DraftNames {
    names: Vec<DraftName>,
    bytes: Vec<u8>,
    /// Number of a name plus 1, or 0; a power of two, at most half full.
    slots: Vec<u32>,
    /// Random, so that nobody can prepare names that collide. Nothing that comes out depends on it.
    seed: u64,
}

impl DraftNames {
    pub(super) fn new() -> DraftNames {
        let seed = RandomState::new().build_hasher().finish();
        DraftNames { names: Vec::new(), bytes: Vec::new(), slots: Vec::new(), seed }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn get(&self, id: u32) -> &DraftName {
        &self.names[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut DraftName {
        &mut self.names[id as usize]
    }

    pub(super) fn bytes(&self, name: &DraftName) -> &[u8] {
        &self.bytes[name.offset as usize..][..usize::from(name.length)]
    }

    /// Returns the id of a name, if it was added.
    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        if self.slots.is_empty() { None } else { self.slot_of(parent, name).1 }
    }

    /// Returns the id of a name, adding it without a node if it is new.
    pub(super) fn add(&mut self, parent: u32, name: &[u8]) -> Result<u32, IndexFull> {
        if self.slots.len() <= self.names.len() * 2 {
            self.grow();
        }
        let (slot, known) = self.slot_of(parent, name);
        if let Some(id) = known {
            return Ok(id);
        }
        let id = u32::try_from(self.names.len()).ok().filter(|&id| id < u32::MAX).ok_or(IndexFull)?;
        let offset = u32::try_from(self.bytes.len()).map_err(|_| IndexFull)?;
        let length = u8::try_from(name.len()).map_err(|_| IndexFull)?;
        self.bytes.extend_from_slice(name);
        self.names.push(DraftName { parent, node: NO_NODE, offset, length, whiteout: false });
        self.slots[slot] = id + 1;
        Ok(id)
    }

    /// Sorts the ids of all names by directory, and within one by name.
    pub(super) fn by_parent(&self, directories: usize) -> ByParent {
        let mut start = vec![0u32; directories + 1];
        for name in &self.names {
            start[name.parent as usize + 1] += 1;
        }
        for i in 1..start.len() {
            start[i] += start[i - 1];
        }
        let mut next = start.clone();
        let mut ids = vec![0; self.names.len()];
        for (id, name) in (0..).zip(&self.names) {
            let place = &mut next[name.parent as usize];
            ids[*place as usize] = id;
            *place += 1;
        }
        for range in start.windows(2) {
            let children = &mut ids[range[0] as usize..range[1] as usize];
            children.sort_unstable_by_key(|&id| self.bytes(self.get(id)));
        }
        ByParent { start, ids }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &DraftName> {
        self.names.iter()
    }

    /// Returns the slot where a name is or would go, and its id.
    fn slot_of(&self, parent: u32, name: &[u8]) -> (usize, Option<u32>) {
        let mask = self.slots.len() - 1;
        let mut slot = start_slot(hash(self.seed, parent, name), mask);
        loop {
            let Some(id) = self.slots[slot].checked_sub(1) else {
                return (slot, None);
            };
            let known = self.get(id);
            if known.parent == parent && self.bytes(known) == name {
                return (slot, Some(id));
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let length = (self.slots.len() * 2).max(1024);
        let mask = length - 1;
        let mut slots = vec![0; length];
        for (id, name) in (0..).zip(&self.names) {
            let mut slot = start_slot(hash(self.seed, name.parent, self.bytes(name)), mask);
            while slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            slots[slot] = id + 1;
        }
        self.slots = slots;
    }
}

/// The ids of all names, directory by directory.
#[derive(Debug)]
pub(super) struct ByParent {
    start: Vec<u32>,
    ids: Vec<u32>,
}

impl ByParent {
    pub(super) fn of(&self, directory: u32) -> &[u32] {
        let Range { start, end } = self.start[directory as usize]..self.start[directory as usize + 1];
        &self.ids[start as usize..end as usize]
    }
}

fn start_slot(hash: u64, mask: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash are as good as any others")]
    let bits = hash as usize;
    bits & mask
}
