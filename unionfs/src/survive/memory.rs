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

use strata_sys::shared::{SharedWords, is_resident};

/// The shared memory, and what this process knows about its free parts.
#[derive(Debug)]
pub(crate) struct Memory {
    words: SharedWords,
    layout: Layout,
    free: Mutex<Free>,
    /// The free slots, apart from the rest because each request takes one.
    slots: Mutex<Vec<usize>>,
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
    /// The first slot that was never used: what is only looked at takes memory as well.
    NextSlot,
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
        let memory = Memory { words, layout, free: Mutex::default(), slots: Mutex::default(), counters };
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
        let slots = (0..self.slot_count()).rev();
        *self.free_slots() = slots.filter(|slot| self.slot(*slot)[0].load(Ordering::Acquire) == 0).collect();
        let mut free = Free::default();
        let count = usize_of(self.read_header(Header::NextNode));
        // The lowest are taken first, so that the end can be given back.
        free.nodes = (0..count).rev().filter(|node| self.node(*node)[0].load(Ordering::Acquire) == 0).collect();
        let mut used = Vec::new();
        for record in (0..usize_of(self.read_header(Header::NextRecord))).rev() {
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
        let mut slots = self.free_slots();
        if let Some(slot) = slots.pop() {
            return Some(slot);
        }
        let next = self.slot_count();
        (next < SLOTS).then(|| {
            self.header(Header::NextSlot).store(next as u64 + 1, Ordering::Release);
            next
        })
    }

    /// Returns the number of slots that may have been used.
    pub(super) fn slot_count(&self) -> usize {
        usize_of(self.read_header(Header::NextSlot))
    }

    pub(super) fn give_slot(&self, slot: usize) {
        self.free_slots().push(slot);
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
            None if let Some(block) = self.split(&mut free, class) => block,
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

    /// Takes a block of this class from the front of a larger free one, and frees the rest in blocks that double in size.
    fn split(&self, free: &mut Free, class: usize) -> Option<usize> {
        let larger = (class + 1..CLASSES).find(|larger| !free.blocks[*larger].is_empty())?;
        let block = free.blocks[larger].pop()?;
        // The last first: up to the last store nobody sees any of it.
        for part in (class..larger).rev() {
            let start = block + (1 << part);
            self.words[start].store(part as u64, Ordering::Release);
            free.blocks[part].push(start);
        }
        self.words[block].store(class as u64, Ordering::Release);
        Some(block)
    }

    /// Gives pages of which nothing is used any more back to the system. It looks at all that is free.
    pub(crate) fn give_back(&self) {
        // Not all at once: whoever needs one of these waits meanwhile.
        let first = self.layout.nodes;
        let place = |node| (first + node * NODE_WORDS, NODE_WORDS);
        self.give_back_list(&mut self.free().nodes, Header::NextNode, &place);
        let first = self.layout.table;
        self.give_back_list(&mut self.free().records, Header::NextRecord, &|record| (first + record, 1));
        self.give_back_blocks(&mut self.free().blocks);
        self.give_back_direct();
    }

    /// Gives back the entries of a list that are free, all of which are zero: those at the end by making it shorter. Those
    /// that stay are taken again the lowest first.
    fn give_back_list(&self, free: &mut Vec<usize>, next: Header, place: &dyn Fn(usize) -> (usize, usize)) {
        free.sort_unstable();
        let mut end = usize_of(self.read_header(next));
        let whole = end;
        while end > 0 && free.last() == Some(&(end - 1)) {
            free.pop();
            end -= 1;
        }
        self.header(next).store(end as u64, Ordering::Release);
        let release = |from: usize, to: usize| {
            let (start, length) = place(from);
            self.words.release(start, (to - from) * length);
        };
        release(end, whole);
        for run in free.chunk_by(|a, b| a + 1 == *b) {
            release(run[0], run[0] + run.len());
        }
        free.reverse();
        free.shrink_to_fit();
    }

    /// Joins free blocks beside each other to larger ones, and gives back what is in those.
    fn give_back_blocks(&self, free: &mut [Vec<usize>; CLASSES]) {
        let sized = |(class, blocks): (usize, &mut Vec<usize>)| {
            std::mem::take(blocks).into_iter().map(move |block| (block, 1 << class)).collect::<Vec<_>>()
        };
        let mut all: Vec<(usize, usize)> = free.iter_mut().enumerate().flat_map(sized).collect();
        all.sort_unstable();
        for run in all.chunk_by(|a, b| a.0 + a.1 == b.0) {
            let (start, end) = (run[0].0, run[run.len() - 1].0 + run[run.len() - 1].1);
            if end as u64 == self.read_header(Header::NextBlock) {
                self.header(Header::NextBlock).store(start as u64, Ordering::Release);
                self.words.release(start, end - start);
                continue;
            }
            let mut joined = Vec::new();
            let mut block = start;
            while block < end {
                let class = ((end - block).ilog2() as usize).min(CLASSES - 1);
                joined.push((block, class));
                block += 1 << class;
            }
            // The last first, and nothing is given back before all are written: whoever goes from block to block, which
            // may be the next worker at any moment, meets old ones until it meets new ones.
            for (block, class) in joined.iter().rev() {
                self.words[*block].store(*class as u64, Ordering::Release);
                free[*class].push(*block);
            }
            for (block, class) in joined {
                self.words.release(block + 1, (1 << class) - 1);
            }
        }
    }

    /// Gives back the pages of the list for nodes that are numbered without gaps where it is zero.
    fn give_back_direct(&self) {
        let [first, count] =
            [Header::DirectFirst, Header::DirectCount].map(|header| usize_of(self.read_header(header)));
        // Nobody changes a counter meanwhile: always in this order, and whoever changes one holds no other.
        let _counters: Vec<_> =
            self.counters.iter().map(|counter| counter.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut page = first.next_multiple_of(SharedWords::PER_PAGE);
        while page + SharedWords::PER_PAGE <= first + count {
            let words = &self.words[page..page + SharedWords::PER_PAGE];
            // What is looked at would be there then.
            if is_resident(words) && words.iter().all(|word| word.load(Ordering::Relaxed) == 0) {
                self.words.release(page, SharedWords::PER_PAGE);
            }
            page += SharedWords::PER_PAGE;
        }
    }

    fn free_block(&self, block: usize) {
        let class = usize_of(self.words[block].load(Ordering::Relaxed)).min(CLASSES - 1);
        if class >= LARGE_CLASS {
            self.words.release(block + 1, (1 << class) - 1);
        }
        self.free().blocks[class].push(block);
    }

    fn free_slots(&self) -> MutexGuard<'_, Vec<usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Records, where the blocks begin, and where they end.
    fn blocks(memory: &Memory) -> Vec<(usize, usize)> {
        let end = usize_of(memory.read_header(Header::NextBlock));
        let mut block = memory.layout.blocks;
        let mut blocks = Vec::new();
        while block < end {
            let class = usize_of(memory.words[block].load(Ordering::Acquire));
            assert!((3..CLASSES).contains(&class), "a block at {block} of class {class}");
            blocks.push((block, 1 << class));
            block += 1 << class;
        }
        assert_eq!(block, end);
        blocks
    }

    /// Memory of the system that a range of words takes, in pages.
    fn resident(memory: &Memory, first: usize, count: usize) -> usize {
        let pages = memory.words[first..first + count].chunks(SharedWords::PER_PAGE);
        pages.filter(|page| is_resident(page)).count()
    }

    #[test]
    fn what_nobody_needs_any_more_is_given_back() {
        let memory = Memory::new().unwrap();
        let put = |number: usize| memory.put(None, &number.to_le_bytes().repeat(3 + number % 20)).unwrap();
        let all: Vec<_> = (0..50_000).map(put).collect();
        let nodes: Vec<_> = (0..50_000).map(|_| memory.take_node().unwrap()).collect();
        nodes.iter().for_each(|node| memory.node(*node)[0].store(1, Ordering::Release));
        let whole = usize_of(memory.read_header(Header::NextBlock)) - memory.layout.blocks;
        let taken = || {
            let table = memory.layout.table;
            resident(&memory, memory.layout.nodes, 50_000 * NODE_WORDS)
                + resident(&memory, table, 50_000)
                + resident(&memory, memory.layout.blocks, whole)
        };
        let peak = taken();
        // All but one in a thousand, and not the last.
        let kept = |number: &usize| number.is_multiple_of(1000);
        for number in (0..50_000).filter(|number| !kept(number)) {
            memory.remove(all[number]);
            memory.node(nodes[number])[0].store(0, Ordering::Release);
            memory.give_node(nodes[number]);
        }
        let left = records(&memory);
        memory.give_back();
        assert!(taken() * 5 < peak, "{} of {peak} pages", taken());
        assert_eq!(records(&memory), left);
        assert_eq!(memory.node_count(), 49_001);
        assert!(blocks(&memory).len() < 2000);

        // It goes on from there, and so does the next worker.
        for _ in 0..2 {
            let more: Vec<_> = (0..10_000).map(put).collect();
            assert!(blocks(&memory).len() > 10_000);
            assert_eq!(memory.take_node(), Some(1), "the lowest first");
            memory.give_node(1);
            more.into_iter().for_each(|record| memory.remove(record));
            assert_eq!(records(&memory), left);
            memory.give_back();
            memory.find_free();
        }
        all.iter().enumerate().filter(|(number, _)| kept(number)).for_each(|(_, record)| memory.remove(*record));
        memory.give_back();
        assert_eq!(usize_of(memory.read_header(Header::NextBlock)), memory.layout.blocks);
        assert_eq!(memory.read_header(Header::NextRecord), 0);
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
