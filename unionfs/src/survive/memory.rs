//! The memory that outlives a worker: words that the keeper shares with every worker it forks.
//!
//! Nothing of it is ever on a disk; after a reboot there is no connection that it could be about.
//!
//! ```text
//! header | slots | effects | nodes                | table              | blocks
//!        | one per request  | 8 words per node    | one word per       | the records' bytes; blocks of 2^n words,
//!        | in work          | the kernel knows    | record: its block  | the first says which n
//! ```
//!
//! A process can be killed between any two stores, so each change is one store: a record is written to a block of its
//! own, and then its word in the table is changed. Who has which block is found out again by the next worker.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use strata_sys::shared::SharedWords;

/// The shared memory, and what this process knows about its free parts.
#[derive(Debug)]
pub(crate) struct Memory {
    words: SharedWords,
    layout: Layout,
    free: Mutex<Free>,
    /// Each guards the counters whose word number has this remainder.
    pub(super) counters: [Mutex<()>; COUNTER_LOCKS],
}

/// Where the parts begin, in words.
#[derive(Clone, Copy, Debug)]
struct Layout {
    nodes: usize,
    table: usize,
    blocks: usize,
    end: usize,
}

/// What is free, as far as this process knows.
#[derive(Debug, Default)]
struct Free {
    slots: Vec<usize>,
    nodes: Vec<usize>,
    records: Vec<usize>,
    /// By the power of two.
    blocks: [Vec<usize>; CLASSES],
}

/// What the header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Header {
    /// Not 0: something did not fit, and no further worker can go on from here.
    Lost,
    /// How many workers there have been.
    Generation,
    /// Requests that the present worker has answered.
    Answered,
    /// The first word of the blocks that was never used.
    NextBlock,
    /// The first record that was never used.
    NextRecord,
    /// The first node that was never used.
    NextNode,
    /// How the last worker ended: an [`End`].
    End,
    /// Requests seen again after a worker's death.
    Resent,
    /// Those of them that had told what they were about to change.
    Intended,
    /// Those of them that had done it.
    Executed,
    /// Those given up because every worker died of them.
    Poisoned,
    /// Files without a name that could not be kept for the next worker.
    Unpinned,
    /// Kill this process once in so many steps; 0 for never. Only tests set it.
    KillOneIn,
    /// Only at this step; 0 for any.
    KillAt,
    /// Not 0: what the journal says is not believed. Only tests set it.
    Forgetful,
    /// Abort at every request with this number; 0 for none. Only tests set it.
    Deadly,
    /// State of the dice that kill.
    Dice,
    /// Kills by those dice.
    Kills,
    /// The first word and the length of the list of nodes that are numbered without gaps.
    DirectFirst,
    DirectCount,
    /// Longest time from a worker's death to its successor's readiness, in microseconds.
    LongestPause,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum End {
    /// By a signal from outside.
    Killed,
    /// By a fault of its own.
    Fault,
    /// Before it served: no request is to blame.
    Unready,
}

/// A record in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordId(usize);

impl Memory {
    /// Reserves the memory: as much as the limits of this process allow.
    pub(crate) fn new() -> io::Result<Memory> {
        let mut result = Err(io::ErrorKind::OutOfMemory.into());
        for bits in [31, 28, 26] {
            result = SharedWords::new(1 << bits);
            if result.is_ok() {
                break;
            }
        }
        let words = result?;
        let nodes = (EFFECTS + SLOTS * EFFECTS_PER_SLOT * EFFECT_WORDS).next_multiple_of(512);
        let table = nodes + words.len() / 8;
        let blocks = table + words.len() / 64;
        let layout = Layout { nodes, table, blocks, end: words.len() };
        let counters = std::array::from_fn(|_| Mutex::default());
        let memory = Memory { words, layout, free: Mutex::default(), counters };
        memory.header(Header::NextBlock).store(layout.blocks as u64, Ordering::Release);
        memory.find_free();
        Ok(memory)
    }

    /// Returns a word of the header.
    pub(crate) fn header(&self, header: Header) -> &AtomicU64 {
        &self.words[header as usize]
    }

    pub(crate) fn count(&self, header: Header) {
        self.header(header).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read_header(&self, header: Header) -> u64 {
        self.header(header).load(Ordering::Acquire)
    }

    /// Says that what is here is not complete any more.
    pub(crate) fn lose(&self) {
        if self.header(Header::Lost).swap(1, Ordering::AcqRel) == 0 {
            tracing::warn!(
                "no room to remember everything: the mount would not survive its server's death from now on"
            );
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.read_header(Header::Lost) != 0
    }

    /// Finds out what is free: after a fork nobody else uses the memory.
    pub(crate) fn find_free(&self) {
        let mut free = Free {
            slots: (0..SLOTS).rev().filter(|slot| self.slot(*slot)[0].load(Ordering::Acquire) == 0).collect(),
            ..Free::default()
        };
        let count = usize_of(self.read_header(Header::NextNode));
        free.nodes = (0..count).filter(|node| self.node(*node)[0].load(Ordering::Acquire) == 0).collect();
        let mut used = Vec::new();
        for record in 0..usize_of(self.read_header(Header::NextRecord)) {
            match usize_of(self.words[self.layout.table + record].load(Ordering::Acquire)) {
                0 => free.records.push(record),
                block => used.push(block),
            }
        }
        if self.read_header(Header::DirectCount) > 0 {
            used.push(usize_of(self.read_header(Header::DirectFirst)) - 1);
        }
        used.sort_unstable();
        let mut used = used.into_iter().peekable();
        let end = usize_of(self.read_header(Header::NextBlock));
        let mut block = self.layout.blocks;
        while block < end {
            let class = usize_of(self.words[block].load(Ordering::Acquire));
            if used.next_if_eq(&block).is_none() {
                free.blocks[class.min(CLASSES - 1)].push(block);
            }
            block += 1 << class;
        }
        *self.free() = free;
    }

    /// Writes a record, in place of an older one if there is one. `None` if there is no room.
    pub(crate) fn put(&self, record: Option<RecordId>, bytes: &[u8]) -> Option<RecordId> {
        let Some((block, record)) = self.allocate(record, bytes.len()) else {
            self.lose();
            return None;
        };
        let words = &self.words[block..];
        words[1].store(bytes.len() as u64, Ordering::Relaxed);
        store_bytes(&words[2..], bytes);
        let old = usize_of(self.words[self.layout.table + record].swap(block as u64, Ordering::AcqRel));
        if old != 0 {
            self.free_block(old);
        }
        Some(RecordId(record))
    }

    /// Removes a record.
    pub(crate) fn remove(&self, record: RecordId) {
        let old = usize_of(self.words[self.layout.table + record.0].swap(0, Ordering::AcqRel));
        if old != 0 {
            self.free_block(old);
        }
        self.free().records.push(record.0);
    }

    /// Calls `visit` with every record.
    pub(crate) fn for_each_record(&self, visit: &mut dyn FnMut(RecordId, &[u8])) {
        let mut bytes = Vec::new();
        for record in 0..usize_of(self.read_header(Header::NextRecord)) {
            let block = usize_of(self.words[self.layout.table + record].load(Ordering::Acquire));
            if block != 0 {
                let length = usize_of(self.words[block + 1].load(Ordering::Relaxed));
                load_bytes(&self.words[block + 2..], length, &mut bytes);
                visit(RecordId(record), &bytes);
            }
        }
    }

    /// Returns the words of a slot.
    pub(super) fn slot(&self, slot: usize) -> &[AtomicU64] {
        let first = HEADER_WORDS + slot * SLOT_WORDS;
        &self.words[first..first + SLOT_WORDS]
    }

    /// Returns one of the effects of a slot: what it changed, and what that was before.
    pub(super) fn effect(&self, slot: usize, effect: usize) -> &[AtomicU64] {
        let first = EFFECTS + (slot * EFFECTS_PER_SLOT + effect) * EFFECT_WORDS;
        &self.words[first..first + EFFECT_WORDS]
    }

    /// Takes a free slot.
    pub(super) fn take_slot(&self) -> Option<usize> {
        self.free().slots.pop()
    }

    pub(super) fn give_slot(&self, slot: usize) {
        self.free().slots.push(slot);
    }

    /// Returns the words of a node.
    pub(super) fn node(&self, node: usize) -> &[AtomicU64] {
        let first = self.layout.nodes + node * NODE_WORDS;
        &self.words[first..first + NODE_WORDS]
    }

    /// Returns the number, among all words, of one of a node's.
    pub(super) fn node_word(&self, node: usize, word: usize) -> usize {
        self.layout.nodes + node * NODE_WORDS + word
    }

    pub(super) fn word(&self, word: usize) -> &AtomicU64 {
        &self.words[word]
    }

    /// Takes a free node, whose first word is to be set last.
    pub(super) fn take_node(&self) -> Option<usize> {
        let mut free = self.free();
        if let Some(node) = free.nodes.pop() {
            return Some(node);
        }
        let next = usize_of(self.read_header(Header::NextNode));
        if self.layout.nodes + (next + 1) * NODE_WORDS > self.layout.table {
            drop(free);
            self.lose();
            return None;
        }
        self.header(Header::NextNode).store(next as u64 + 1, Ordering::Release);
        Some(next)
    }

    /// Gives back a node, whose first word is 0.
    pub(super) fn give_node(&self, node: usize) {
        self.free().nodes.push(node);
    }

    pub(super) fn node_count(&self) -> usize {
        usize_of(self.read_header(Header::NextNode))
    }

    /// Returns the entry, and the place in it, that a word is.
    pub(super) fn node_of_word(&self, word: usize) -> Option<(usize, usize)> {
        let place = word.checked_sub(self.layout.nodes).filter(|_| word < self.layout.table)?;
        Some((place / NODE_WORDS, place % NODE_WORDS))
    }

    /// Returns the list of words for nodes that are numbered without gaps, made the first time: where it begins and how
    /// many it is for.
    pub(super) fn direct(&self, count: u64) -> (usize, u64) {
        if self.read_header(Header::DirectCount) == 0 && count > 0 {
            // A block like any other, but of no record: it stays.
            let class = (usize_of(count) + 1).next_power_of_two().trailing_zeros() as usize;
            let block = usize_of(self.read_header(Header::NextBlock));
            match block.checked_add(1 << class).filter(|next| *next <= self.layout.end && class < CLASSES) {
                Some(next) => {
                    self.words[block].store(class as u64, Ordering::Release);
                    self.header(Header::DirectFirst).store(block as u64 + 1, Ordering::Release);
                    self.header(Header::NextBlock).store(next as u64, Ordering::Release);
                    self.header(Header::DirectCount).store(count, Ordering::Release);
                }
                None => self.lose(),
            }
        }
        (usize_of(self.read_header(Header::DirectFirst)), self.read_header(Header::DirectCount))
    }

    /// Takes a block with room for so many bytes, and a record if none is given.
    fn allocate(&self, record: Option<RecordId>, length: usize) -> Option<(usize, usize)> {
        let words = 2 + length.div_ceil(8);
        let class = words.next_power_of_two().trailing_zeros().max(3) as usize;
        let mut free = self.free();
        let block = match free.blocks.get_mut(class)?.pop() {
            Some(block) => block,
            None => {
                let block = usize_of(self.read_header(Header::NextBlock));
                let next = block.checked_add(1 << class).filter(|next| *next <= self.layout.end)?;
                self.words[block].store(class as u64, Ordering::Release);
                self.header(Header::NextBlock).store(next as u64, Ordering::Release);
                block
            }
        };
        let record = match record {
            Some(RecordId(record)) => record,
            None => match free.records.pop() {
                Some(record) => record,
                None => {
                    let next = usize_of(self.read_header(Header::NextRecord));
                    if self.layout.table + next >= self.layout.blocks {
                        free.blocks[class].push(block);
                        return None;
                    }
                    self.header(Header::NextRecord).store(next as u64 + 1, Ordering::Release);
                    next
                }
            },
        };
        Some((block, record))
    }

    fn free_block(&self, block: usize) {
        let class = usize_of(self.words[block].load(Ordering::Relaxed)).min(CLASSES - 1);
        if class >= LARGE_CLASS {
            self.words.release(block + 1, (1 << class) - 1);
        }
        self.free().blocks[class].push(block);
    }

    /// Nothing that can panic runs under this lock, and nothing that waits.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores bytes, eight to a word.
pub(super) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut value = [0; 8];
        value[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
}

/// Loads `length` bytes that [`store_bytes`] stored.
pub(super) fn load_bytes(words: &[AtomicU64], length: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    for word in words.iter().take(length.div_ceil(8)) {
        bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    bytes.truncate(length);
}

/// What is in shared memory fits the address space.
pub(super) fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

const HEADER_WORDS: usize = 512;
/// Requests that can be in work at once, and those of the past whose fate is not known yet.
pub(super) const SLOTS: usize = 1024;
pub(super) const SLOT_WORDS: usize = 176;
const EFFECTS: usize = HEADER_WORDS + SLOTS * SLOT_WORDS;
/// Counters that one request may change.
pub(super) const EFFECTS_PER_SLOT: usize = 8192;
const EFFECT_WORDS: usize = 2;
const NODE_WORDS: usize = 8;
const CLASSES: usize = 28;
/// Blocks of this many words (a power of two) give their pages back.
const LARGE_CLASS: usize = 11;
pub(super) const COUNTER_LOCKS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn records(memory: &Memory) -> Vec<(RecordId, Vec<u8>)> {
        let mut all = Vec::new();
        memory.for_each_record(&mut |record, bytes| all.push((record, bytes.to_vec())));
        all
    }

    #[test]
    fn records_are_kept_replaced_and_removed() {
        let memory = Memory::new().unwrap();
        let first = memory.put(None, b"first").unwrap();
        let second = memory.put(None, &[7; 3000]).unwrap();
        assert_eq!(records(&memory), [(first, b"first".to_vec()), (second, vec![7; 3000])]);
        assert_eq!(memory.put(Some(first), b""), Some(first));
        memory.remove(second);
        assert_eq!(records(&memory), [(first, Vec::new())]);
        assert_eq!(memory.put(None, b"third"), Some(second), "its number is used again");
    }

    #[test]
    fn what_is_free_is_found_again() {
        let memory = Memory::new().unwrap();
        let kept: Vec<_> = (0..50_u8).map(|number| memory.put(None, &[number; 40]).unwrap()).collect();
        for record in kept.iter().skip(1).step_by(2) {
            memory.remove(*record);
        }
        let before = (records(&memory), memory.read_header(Header::NextBlock));
        memory.find_free();
        for number in 0..25 {
            memory.put(None, &[number; 41]).unwrap();
        }
        assert_eq!(memory.read_header(Header::NextBlock), before.1, "freed blocks are used first");
        assert_eq!(records(&memory).len(), before.0.len() + 25);
        for (record, bytes) in before.0 {
            assert!(records(&memory).contains(&(record, bytes)));
        }
    }
}
