//! What the kernel knows: how often it was told of each node, how often each is open, and how.
//!
//! Nodes of an image have numbers from 1 on without gaps, so a list of words does for them; others have an entry, and so
//! have all that are or were open.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory::{Memory, usize_of};
use crate::table;

/// The nodes that the kernel knows.
#[derive(Debug)]
pub(crate) struct Known {
    memory: Arc<Memory>,
    /// Entries by node.
    entries: [Mutex<HashMap<u64, usize>>; SHARDS],
    /// The first word of the list, and how many nodes are in it.
    direct: (usize, u64),
}

/// A node as the kernel knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownNode {
    /// The kernel's number.
    pub(crate) node: u64,
    /// The inode number, if that is another; otherwise 0.
    pub(crate) ino: u64,
    /// How often the kernel was told.
    pub(crate) lookups: u64,
    /// How often it is open.
    pub(crate) opens: u64,
    /// How it is served, in bits of the front end's choice.
    pub(crate) state: u64,
    /// The number of its backing file plus one.
    pub(crate) backing: u64,
}

/// A counter of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    Lookups,
    Opens,
}

impl Known {
    /// Opens the table. `direct` is the number of nodes that are numbered without gaps.
    pub(crate) fn open(memory: Arc<Memory>, direct: u64) -> Known {
        let entries: [Mutex<HashMap<u64, usize>>; SHARDS] = std::array::from_fn(|_| Mutex::default());
        for entry in 0..memory.node_count() {
            let node = memory.node(entry)[NODE].load(Ordering::Acquire);
            if node != 0 {
                shard(&entries, node).insert(node, entry);
            }
        }
        let direct = memory.direct(direct);
        Known { memory, entries, direct }
    }

    /// Notes that the kernel is told of a node.
    pub(crate) fn told(&self, node: u64) {
        if node > ROOT {
            self.change(node, Counter::Lookups, 1);
        }
    }

    /// Notes that the kernel forgets a node.
    pub(crate) fn forgot(&self, node: u64, count: u64) {
        if node <= ROOT {
            return;
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.change(node, Counter::Lookups, count.saturating_neg());
    }

    /// Notes that a node is open once more.
    pub(crate) fn opened(&self, node: u64) {
        self.change(node, Counter::Opens, 1);
    }

    /// Notes that a node is open once less.
    pub(crate) fn closed(&self, node: u64) {
        self.change(node, Counter::Opens, -1);
    }

    /// Notes how a node is served.
    pub(crate) fn set(&self, node: u64, ino: u64, state: u64, backing: u64) {
        let mut entries = shard(&self.entries, node);
        let plain = state == 0 && backing == 0 && ino == 0;
        let entry = match entries.get(&node) {
            Some(entry) => *entry,
            None if plain => return,
            None => match self.make(&mut entries, node) {
                Some(entry) => entry,
                None => return,
            },
        };
        let words = self.memory.node(entry);
        words[INO].store(ino, Ordering::Release);
        words[STATE].store(state, Ordering::Release);
        words[BACKING].store(backing, Ordering::Release);
        self.drop_if_unused(&mut entries, node, entry);
    }

    /// Returns the node and the counter that a word is.
    pub(crate) fn counter(&self, word: usize) -> Option<(u64, Counter)> {
        let (first, count) = self.direct;
        if let Some(place) = word.checked_sub(first).map(|place| place as u64).filter(|place| *place < count) {
            return Some((place + 1, Counter::Lookups));
        }
        let (entry, place) = self.memory.node_of_word(word)?;
        let counter = match place {
            LOOKUPS => Counter::Lookups,
            OPENS => Counter::Opens,
            _ => return None,
        };
        Some((self.memory.node(entry)[NODE].load(Ordering::Acquire), counter)).filter(|(node, _)| *node != 0)
    }

    /// Calls `visit` with every node that the kernel knows or has open.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(&KnownNode)) {
        let (first, count) = self.direct;
        for place in 0..count {
            let lookups = self.memory.word(first + usize_of(place)).load(Ordering::Acquire);
            if lookups > 0 {
                visit(&KnownNode { node: place + 1, lookups, ..KnownNode::default() });
            }
        }
        for entry in 0..self.memory.node_count() {
            let words = self.memory.node(entry);
            let value = |word: usize| words[word].load(Ordering::Acquire);
            let known = KnownNode {
                node: value(NODE),
                ino: value(INO),
                lookups: value(LOOKUPS),
                opens: value(OPENS),
                state: value(STATE),
                backing: value(BACKING),
            };
            if known.node != 0 {
                visit(&known);
            }
        }
    }

    fn change(&self, node: u64, counter: Counter, delta: i64) {
        let (first, count) = self.direct;
        if counter == Counter::Lookups && node <= count {
            self.memory.add(first + usize_of(node - 1), delta);
            return;
        }
        let mut entries = shard(&self.entries, node);
        let entry = match entries.get(&node) {
            Some(entry) => *entry,
            None if delta < 0 => return,
            None => match self.make(&mut entries, node) {
                Some(entry) => entry,
                None => return,
            },
        };
        let place = match counter {
            Counter::Lookups => LOOKUPS,
            Counter::Opens => OPENS,
        };
        if self.memory.add(self.memory.node_word(entry, place), delta) == 0 {
            self.drop_if_unused(&mut entries, node, entry);
        }
    }

    fn make(&self, entries: &mut HashMap<u64, usize>, node: u64) -> Option<usize> {
        let entry = self.memory.take_node()?;
        let words = self.memory.node(entry);
        for word in [LOOKUPS, OPENS, STATE, BACKING, INO] {
            words[word].store(0, Ordering::Relaxed);
        }
        words[NODE].store(node, Ordering::Release);
        entries.insert(node, entry);
        Some(entry)
    }

    fn drop_if_unused(&self, entries: &mut HashMap<u64, usize>, node: u64, entry: usize) {
        let words = self.memory.node(entry);
        if [LOOKUPS, OPENS, STATE, BACKING, INO].iter().all(|word| words[*word].load(Ordering::Acquire) == 0) {
            words[NODE].store(0, Ordering::Release);
            table::remove(entries, &node);
            self.memory.give_node(entry);
        }
    }
}

fn shard(entries: &[Mutex<HashMap<u64, usize>>; SHARDS], node: u64) -> MutexGuard<'_, HashMap<u64, usize>> {
    // Nothing that can panic runs under the lock.
    entries[usize_of(node % SHARDS as u64)].lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel knows the root without being told.
const ROOT: u64 = 1;
/// Words of an entry.
const NODE: usize = 0;
const LOOKUPS: usize = 1;
const OPENS: usize = 2;
const STATE: usize = 3;
const BACKING: usize = 4;
const INO: usize = 5;
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn all(known: &Known) -> Vec<KnownNode> {
        let mut all = Vec::new();
        known.for_each(&mut |node| all.push(*node));
        all
    }

    #[test]
    fn what_the_kernel_knows_is_known_to_the_next_worker() {
        let memory = Arc::new(Memory::new().unwrap());
        let known = Known::open(Arc::clone(&memory), 100);
        for node in [1, 7, 7, 100, 101, 1 << 40] {
            known.told(node);
        }
        known.opened(7);
        known.set(7, 0, 3, 12);
        known.forgot(101, 1);
        known.forgot(100, 1);
        known.forgot(5000, 1);
        let expected = [
            KnownNode { node: 7, lookups: 2, ..KnownNode::default() },
            KnownNode { node: 7, opens: 1, state: 3, backing: 12, ..KnownNode::default() },
            KnownNode { node: 1 << 40, lookups: 1, ..KnownNode::default() },
        ];
        let mut found = all(&known);
        found.sort_by_key(|known| (known.node, known.opens));
        assert_eq!(found, expected);
        memory.find_free();
        let next = Known::open(Arc::clone(&memory), 100);
        next.closed(7);
        next.set(7, 0, 0, 0);
        next.forgot(7, 2);
        next.forgot(1 << 40, 1);
        assert_eq!(all(&next), []);
    }

    #[test]
    fn a_word_leads_back_to_its_node() {
        let memory = Arc::new(Memory::new().unwrap());
        let known = Known::open(Arc::clone(&memory), 100);
        known.told(200);
        known.opened(9);
        let (first, _) = known.direct;
        assert_eq!(known.counter(first + 8), Some((9, Counter::Lookups)));
        let word = |node: u64, place| memory.node_word(shard(&known.entries, node)[&node], place);
        assert_eq!(known.counter(word(200, LOOKUPS)), Some((200, Counter::Lookups)));
        assert_eq!(known.counter(word(9, OPENS)), Some((9, Counter::Opens)));
        assert_eq!(known.counter(0), None);
    }
}
