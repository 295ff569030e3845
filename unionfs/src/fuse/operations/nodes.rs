//! How each open node is served: from the kernel's page cache filled by us, or by the kernel straight from a file.
//!
//! A node has one mode from its first open to its last release, because the kernel allows only one backing file per
//! inode at a time. Files of the upper are passed through, and so is everything of a mount that cannot be written. On a
//! mount that can, a lower file is passed through only if memory sharing and speed count and a writer beside long-lived
//! readers is rare: programs, and large files that are no database.
//!
//! A writer that meets readers of a passed-through lower file cannot share their node. The file is copied up, the node
//! is *superseded* by a further one with the same inode number (`superseded.rs`), and the writer's open is answered
//! ESTALE, upon which the kernel looks the name up again, once. The old readers keep the old bytes.
//!
//! Locks: a shard, under which the tree may be used; then the table of superseding nodes, that of callers sent away or the
//! set of mapped ones, under which nothing is waited for. No shard is taken by what the tree calls under its own locks.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fuse::backing::Backing;
use crate::node::Ino;
use crate::survive::{Header, Keep, Known};
use crate::table;

use super::mapped::Mapped;
use super::sent_away::SentAway;
use super::superseded::{FIRST_ALIAS, Superseded};

/// The number by which the kernel names a node. The same as the inode number, but for nodes that supersede another.
pub(super) type NodeNumber = u64;

/// The state of all nodes that are open or have been.
#[derive(Debug)]
pub(super) struct Nodes {
    /// Where all of it is written for the next server.
    keep: Option<Arc<Keep>>,
    /// How many servers there have been, this one included.
    pub(super) generation: u64,
    shards: [Mutex<HashMap<NodeNumber, Node>>; SHARDS],
    superseded: Superseded,
    pub(super) sent_away: SentAway,
    /// The nodes that are `mapped`.
    mapped: Mapped,
    idle: AtomicU64,
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) opens: u64,
    /// Those of them that were opened of an earlier server and that the tree counts, whatever they were opened as.
    pub(super) counted: u64,
    /// How many of these are of running programs, which nobody may change.
    pub(super) executed: u64,
    pub(super) mode: Mode,
    pub(super) backing: Option<Arc<Backing>>,
    /// Its pages in the kernel may be older than the file.
    pub(super) stale_cache: bool,
    /// Whether the kernel has got the content of the lower's file with an open.
    pub(super) sent_along: bool,
    /// Whether the lower's file is one to pass through, once that was found out.
    pub(super) suits: Option<bool>,
    /// Stores through a mapping may change it without the kernel telling, so attributes must not be kept. Set by
    /// [`Nodes::note_mapped`] only.
    mapped: bool,
}

/// How the data of an open node is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Through the page cache of the node.
    #[default]
    Cached,
    /// From a file of the lower.
    Lower,
    /// From the file in the upper.
    Upper,
}

impl Nodes {
    /// Makes an empty table; with `keep`, what is in it is written for the next server.
    pub(super) fn new(keep: Option<Arc<Keep>>) -> Nodes {
        // Numbers of an earlier server are not used again: the kernel may know one.
        let generation = keep.as_ref().map_or(0, |keep| keep.memory().read_header(Header::Generation));
        Nodes {
            keep,
            generation,
            shards: std::array::from_fn(|_| Mutex::default()),
            superseded: Superseded::new(FIRST_ALIAS + (generation << 32)),
            sent_away: SentAway::default(),
            mapped: Mapped::default(),
            idle: AtomicU64::new(0),
        }
    }

    /// Returns what is written for the next server.
    pub(super) fn known(&self) -> Option<&Known> {
        // The list of nodes without gaps has been made before.
        self.keep.as_ref().map(|keep| keep.known(0))
    }

    /// Takes over what an earlier server has written. `counts` says whether the tree counts the opens of a node.
    pub(super) fn restore(&self, known: &Known, device: &Arc<OwnedFd>, counts: impl Fn(Ino) -> bool) {
        known.for_each(&mut |known| {
            if known.node >= FIRST_ALIAS {
                self.superseded.restore(known.node, Ino(known.ino), known.lookups);
            }
            if known.state == 0 && known.backing == 0 && known.opens == 0 {
                return;
            }
            let number = known.backing.checked_sub(1).and_then(|number| u32::try_from(number).ok());
            let backing = number.map(|number| Arc::new(Backing::taken_over(device, number)));
            self.idle.fetch_add(u64::from(backing.is_some()), Ordering::Relaxed);
            let ino = Ino(if known.ino == 0 { known.node } else { known.ino });
            let counted = if known.opens > 0 && counts(ino) { known.opens } else { 0 };
            let mut node = Node { opens: known.opens, counted, backing, ..Node::of_bits(known.state) };
            // Closing is written first.
            node.executed = node.executed.min(node.opens);
            if node.mapped {
                self.mapped.add(known.node);
            }
            self.lock(known.node).insert(known.node, node);
        });
    }

    /// Writes the state of a node that was `before`. The caller holds its shard.
    fn write(&self, node: NodeNumber, before: (u64, u64, u64), state: Option<&Node>) {
        let Some(known) = self.known() else { return };
        let after = state.map_or((0, 0, 0), Node::written);
        for _ in before.0..after.0 {
            known.opened(node);
        }
        // Before the rest: who is executed again because of this server's death is known to have closed, and is not to
        // take anything else back twice.
        for _ in after.0..before.0 {
            known.closed(node);
        }
        if (before.1, before.2) != (after.1, after.2) {
            let ino = if node < FIRST_ALIAS { 0 } else { self.ino(node).0 };
            known.set(node, ino, after.1, after.2);
        }
    }

    /// Returns the inode number of a node.
    pub(super) fn ino(&self, node: NodeNumber) -> Ino {
        self.superseded.ino(node)
    }

    /// Returns the node that stands for an inode number at present.
    pub(super) fn current(&self, ino: Ino) -> NodeNumber {
        self.superseded.current(ino)
    }

    /// Returns whether another node stands for the node's inode number.
    pub(super) fn is_superseded(&self, node: NodeNumber) -> bool {
        node < FIRST_ALIAS && self.current(Ino(node)) != node
    }

    /// Returns whether a node has superseded another.
    pub(super) fn supersedes(&self, node: NodeNumber) -> bool {
        node >= FIRST_ALIAS
    }

    /// Returns the node that stands for an inode number at present, and notes that the kernel is told about it.
    pub(super) fn tell(&self, ino: Ino) -> NodeNumber {
        let node = self.superseded.tell(ino);
        if let Some(known) = self.known() {
            known.told(node);
        }
        node
    }

    /// Lets a further node stand for the inode number of one that is open, if none does yet. The caller has its shard.
    pub(super) fn supersede(&self, ino: Ino) {
        if let Some(number) = self.superseded.add(ino)
            && let Some(known) = self.known()
        {
            known.set(number, ino.0, 0, 0);
        }
    }

    /// Prepares a node for a caller that has been sent away once: he must be able to open it, whoever opens it before him.
    /// Returns whether it was superseded for that.
    pub(super) fn make_way(&self, ino: Ino) -> bool {
        if self.superseded.current(ino) != ino.0 {
            return false;
        }
        self.with(ino.0, |node| {
            node.suits = Some(false);
            let readers = node.opens > 0 && node.mode == Mode::Lower;
            if readers {
                self.supersede(ino);
            }
            readers
        })
    }

    /// Reads and changes the state of a node, which is made if there is none. All changes go through here and
    /// [`with_known`](Self::with_known).
    pub(super) fn with<R>(&self, node: NodeNumber, change: impl FnOnce(&mut Node) -> R) -> R {
        let mut shard = self.lock(node);
        let state = shard.entry(node).or_default();
        let before = state.written();
        let result = change(state);
        self.write(node, before, Some(state));
        result
    }

    /// Reads and changes the state of a node if there is any.
    pub(super) fn with_known<R>(&self, node: NodeNumber, change: impl FnOnce(&mut Node) -> R) -> Option<R> {
        let mut shard = self.lock(node);
        let state = shard.get_mut(&node)?;
        let before = state.written();
        let result = change(state);
        self.write(node, before, Some(state));
        Some(result)
    }

    fn lock(&self, node: NodeNumber) -> MutexGuard<'_, HashMap<NodeNumber, Node>> {
        let shard = usize::try_from(node % SHARDS as u64).unwrap_or(0);
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a node, if anything is known of it, may be changed through a mapping.
    pub(super) fn note_mapped(&self, node: NodeNumber) {
        self.with_known(node, |state| {
            state.mapped = true;
            self.mapped.add(node);
        });
    }

    /// Returns whether the kernel may keep the attributes of a node. Takes no shard: it is called while the tree lists a
    /// directory, and who holds a shard may wait for the tree.
    pub(super) fn attributes_stay(&self, node: NodeNumber) -> bool {
        // What two nodes share is changed by one without the other.
        self.current(Ino(node)) == node && !self.supersedes(node) && !self.mapped.contains(node)
    }

    /// Takes back `count` references of the kernel to a node.
    pub(super) fn forget(&self, node: NodeNumber, count: u64) {
        let removed = {
            let mut shard = self.lock(node);
            // The kernel also takes back single references to nodes that it keeps; those that are open it keeps.
            let removed = if shard.get(&node).is_some_and(|state| state.opens == 0) {
                table::remove(&mut shard, &node)
            } else {
                None
            };
            if let Some(removed) = &removed {
                self.write(node, removed.written(), None);
                if removed.mapped {
                    self.mapped.remove(node);
                }
            }
            removed
        };
        if let Some(known) = self.known() {
            known.forgot(node, count);
        }
        if removed.is_some_and(|node| node.backing.is_some()) {
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
        self.superseded.forget(node, count);
        // It stands for the number as long as the kernel knows it or somebody reads the old bytes. Under the lock that
        // opening takes: nobody is sent to it when it goes.
        if let Some(ino) = self.superseded.unused(node) {
            let shard = self.lock(ino.0);
            let readers = shard.get(&ino.0).is_some_and(|node| node.opens > 0 && node.mode == Mode::Lower);
            if !readers
                && let Some(number) = self.superseded.remove_unused(ino)
                && let Some(known) = self.known()
            {
                known.set(number, 0, 0, 0);
            }
        }
    }

    /// Notes that a node has got a backing file, and gives up those of closed ones if there are too many.
    pub(super) fn added_backing(&self) {
        if self.idle.fetch_add(1, Ordering::Relaxed) < MAX_BACKINGS {
            return;
        }
        for shard in &self.shards {
            let mut dropped = Vec::new();
            for (number, node) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
                if node.opens == 0 && node.backing.is_some() {
                    let before = node.written();
                    dropped.extend(node.backing.take());
                    // Written before the number is given back, and may come to mean another file.
                    self.write(*number, before, Some(node));
                }
            }
            self.idle.fetch_sub(dropped.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Node {
    /// Returns what is written of it: opens, state and backing file.
    fn written(&self) -> (u64, u64, u64) {
        let mode = match self.mode {
            Mode::Cached => 0,
            Mode::Lower => 1,
            Mode::Upper => 2,
        };
        let flags = [self.stale_cache, self.mapped, self.suits.is_some(), self.suits == Some(true)];
        let state = flags.iter().fold(self.executed << 2 | mode, |bits, flag| bits << 1 | u64::from(*flag));
        (self.opens, state, self.backing.as_ref().map_or(0, |backing| u64::from(backing.number()) + 1))
    }

    fn of_bits(state: u64) -> Node {
        let [stale_cache, mapped, known, suits] = std::array::from_fn(|place| state & (0x8 >> place) != 0);
        Node {
            executed: state >> 6,
            mode: match state >> 4 & 3 {
                1 => Mode::Lower,
                2 => Mode::Upper,
                _ => Mode::Cached,
            },
            stale_cache,
            mapped,
            suits: known.then_some(suits),
            ..Node::default()
        }
    }
}

/// Returns whether a lower file on a writable mount is one to pass through, from its size and first bytes.
pub(super) fn suits_passthrough(size: u64, head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF") || (size >= LARGE && !is_database(head))
}

/// Returns whether these are the first bytes of a file that is changed in place while others have it open.
fn is_database(head: &[u8]) -> bool {
    let berkeley = [0x0005_3162_u32, 0x0006_1561, 0x0004_2253];
    let word = head.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    head.starts_with(b"SQLite format 3\0")
        || head.starts_with(b"GDBM")
        || head.get(16..20) == Some(&0xbeef_c0de_u32.to_ne_bytes())
        || word.is_some_and(|word| berkeley.contains(&word) || berkeley.contains(&word.swap_bytes()))
}

/// How many bytes [`suits_passthrough`] wants to see.
pub(super) const HEAD: usize = 32;
/// Lower files from here on are passed through.
const LARGE: u64 = 1 << 20;
/// Most backing files that are kept for nodes which may not be open any more.
const MAX_BACKINGS: u64 = 4096;
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_large_files_but_no_databases_are_passed_through() {
        assert!(suits_passthrough(100, b"\x7fELF\x02\x01\x01"));
        assert!(suits_passthrough(LARGE, b""));
        assert!(!suits_passthrough(LARGE - 1, b"#!/bin/sh"));
        assert!(!suits_passthrough(LARGE * 9, b"SQLite format 3\0...."));
        let mut berkeley = [0; HEAD];
        berkeley[12..16].copy_from_slice(&0x0005_3162_u32.to_be_bytes());
        assert!(!suits_passthrough(LARGE * 9, &berkeley));
    }

    #[test]
    fn a_superseding_node_shares_the_number_until_it_is_forgotten() {
        let nodes = Nodes::new(None);
        assert_eq!(nodes.tell(Ino(7)), 7);
        nodes.supersede(Ino(7));
        let node = nodes.tell(Ino(7));
        assert!(nodes.is_superseded(7) && nodes.supersedes(node));
        assert_eq!(nodes.ino(node), Ino(7));
        assert!(!nodes.attributes_stay(node) && !nodes.attributes_stay(7));
        assert_eq!(nodes.tell(Ino(7)), node);
        nodes.forget(node, 1);
        assert_eq!(nodes.current(Ino(7)), node);
        nodes.forget(node, 1);
        assert_eq!(nodes.current(Ino(7)), 7);
        assert!(nodes.attributes_stay(7));
    }

    #[test]
    fn a_superseding_node_stays_while_the_old_bytes_are_read() {
        let nodes = Nodes::new(None);
        nodes.with(7, |node| (node.opens, node.mode) = (1, Mode::Lower));
        nodes.supersede(Ino(7));
        let node = nodes.tell(Ino(7));
        // The kernel takes single references back, to either.
        nodes.forget(node, 1);
        nodes.forget(7, 1);
        assert_eq!(nodes.tell(Ino(7)), node);
        nodes.forget(node, 1);
        nodes.with(7, |node| node.opens = 0);
        nodes.forget(7, 1);
        assert_eq!(nodes.current(Ino(7)), 7);
    }

    #[test]
    fn attributes_of_a_mapped_node_do_not_stay_and_are_asked_for_without_its_shard() {
        let nodes = Nodes::new(None);
        nodes.note_mapped(7);
        assert!(nodes.attributes_stay(7), "nothing is known of it");
        nodes.with(7, |node| node.opens = 1);
        nodes.note_mapped(7);
        // With the shard taken by somebody else this would wait for ever.
        nodes.with(7, |_| {
            std::thread::scope(|scope| {
                let (tell, told) = std::sync::mpsc::channel();
                let nodes = &nodes;
                scope.spawn(move || tell.send((nodes.attributes_stay(7), nodes.attributes_stay(7 + SHARDS as u64))));
                let told = told.recv_timeout(std::time::Duration::from_secs(10));
                if told != Ok((false, true)) {
                    eprintln!("{told:?}");
                    std::process::abort();
                }
            });
        });
        nodes.with(7, |node| node.opens = 0);
        nodes.forget(7, 1);
        assert!(nodes.attributes_stay(7));
    }

    #[test]
    fn who_was_sent_away_can_open_what_he_finds() {
        let nodes = Nodes::new(None);
        assert!(!nodes.make_way(Ino(8)));
        assert_eq!(nodes.with(8, |node| node.suits), Some(false));
        nodes.with(7, |node| (node.opens, node.mode) = (1, Mode::Lower));
        assert!(nodes.make_way(Ino(7)));
        assert!(!nodes.make_way(Ino(7)));
        assert!(nodes.is_superseded(7));
    }
}
