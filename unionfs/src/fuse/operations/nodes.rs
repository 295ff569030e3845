//! How each open node is served: from the kernel's page cache filled by us, or by the kernel straight from a file.
//!
//! A node has one mode from its first open to its last release, because the kernel allows only one backing file per
//! inode at a time. Files of the upper are passed through, and so is everything of a mount that cannot be written. On a
//! mount that can, a lower file is passed through only if memory sharing and speed count and a writer beside long-lived
//! readers is rare: programs, and large files that are no database.
//!
//! A writer that meets readers of a passed-through lower file cannot share their node. The file is copied up, the node
//! is *superseded* by a further one with the same inode number, and the writer's open is answered ESTALE, upon which the
//! kernel looks the name up again. The old readers keep the old bytes.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::fuse::backing::Backing;
use crate::node::Ino;
use crate::survive::{Header, Keep, Known};

/// The number by which the kernel names a node. The same as the inode number, but for nodes that supersede another.
pub(super) type NodeNumber = u64;

/// The state of all nodes that are open or have been.
#[derive(Debug)]
pub(super) struct Nodes {
    /// Where all of it is written for the next server.
    keep: Option<Arc<Keep>>,
    shards: [Mutex<HashMap<NodeNumber, Node>>; SHARDS],
    aliases: RwLock<Aliases>,
    any_alias: AtomicBool,
    idle: AtomicU64,
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) opens: u64,
    pub(super) mode: Mode,
    pub(super) backing: Option<Arc<Backing>>,
    /// Its pages in the kernel may be older than the file.
    pub(super) stale_cache: bool,
    /// Whether the kernel has got the content of the lower's file with an open.
    pub(super) sent_along: bool,
    /// Whether the lower's file is one to pass through, once that was found out.
    pub(super) suits: Option<bool>,
    /// Stores through a mapping may change it without the kernel telling, so attributes must not be kept.
    pub(super) mapped: bool,
    /// Set when a further node took over; holds the threads that have been told so.
    pub(super) superseded: Option<HashSet<u32>>,
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

#[derive(Debug, Default)]
struct Aliases {
    known: HashMap<NodeNumber, Alias>,
    current: HashMap<Ino, NodeNumber>,
    next: NodeNumber,
}

/// A node that superseded another.
#[derive(Clone, Copy, Debug)]
struct Alias {
    ino: Ino,
    /// How often the kernel was told about it.
    references: u64,
}

impl Nodes {
    /// Makes an empty table; with `keep`, what is in it is written for the next server.
    pub(super) fn new(keep: Option<Arc<Keep>>) -> Nodes {
        // Numbers of an earlier server are not used again: the kernel may know one.
        let generation = keep.as_ref().map_or(0, |keep| keep.memory().read_header(Header::Generation));
        let next = FIRST_ALIAS + (generation << 32);
        Nodes {
            keep,
            shards: std::array::from_fn(|_| Mutex::default()),
            aliases: RwLock::new(Aliases { next, ..Aliases::default() }),
            any_alias: AtomicBool::new(false),
            idle: AtomicU64::new(0),
        }
    }

    /// Returns what is written for the next server.
    pub(super) fn known(&self) -> Option<&Known> {
        // The list of nodes without gaps has been made before.
        self.keep.as_ref().map(|keep| keep.known(0))
    }

    /// Takes over what an earlier server has written.
    pub(super) fn restore(&self, known: &Known, device: &Arc<OwnedFd>) {
        known.for_each(&mut |known| {
            if known.node >= FIRST_ALIAS {
                let mut aliases = self.write_aliases();
                let ino = Ino(known.ino);
                aliases.known.insert(known.node, Alias { ino, references: known.lookups });
                let current = aliases.current.entry(ino).or_default();
                *current = known.node.max(*current);
                self.any_alias.store(true, Ordering::Release);
            }
            if known.state == 0 && known.backing == 0 && known.opens == 0 {
                return;
            }
            let number = known.backing.checked_sub(1).and_then(|number| u32::try_from(number).ok());
            let backing = number.map(|number| Arc::new(Backing::taken_over(device, number)));
            self.idle.fetch_add(u64::from(backing.is_some()), Ordering::Relaxed);
            let node = Node { opens: known.opens, backing, ..Node::of_bits(known.state) };
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
        if (before.1, before.2) != (after.1, after.2) {
            let ino = if node < FIRST_ALIAS { 0 } else { self.ino(node).0 };
            known.set(node, ino, after.1, after.2);
        }
        for _ in after.0..before.0 {
            known.closed(node);
        }
    }

    /// Returns the inode number of a node.
    pub(super) fn ino(&self, node: NodeNumber) -> Ino {
        if node < FIRST_ALIAS {
            return Ino(node);
        }
        self.read_aliases().known.get(&node).map_or(Ino(node), |alias| alias.ino)
    }

    /// Returns the node that stands for an inode number at present.
    pub(super) fn current(&self, ino: Ino) -> NodeNumber {
        if !self.any_alias.load(Ordering::Acquire) {
            return ino.0;
        }
        self.read_aliases().current.get(&ino).copied().unwrap_or(ino.0)
    }

    /// Notes that the kernel is told about a node once more.
    pub(super) fn remember(&self, node: NodeNumber) {
        if node >= FIRST_ALIAS
            && let Some(alias) = self.write_aliases().known.get_mut(&node)
        {
            alias.references += 1;
        }
        if let Some(known) = self.known() {
            known.told(node);
        }
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

    /// Lets a further node stand for an inode number.
    pub(super) fn supersede(&self, ino: Ino) {
        let mut aliases = self.write_aliases();
        let number = aliases.next;
        aliases.next += 1;
        aliases.known.insert(number, Alias { ino, references: 0 });
        aliases.current.insert(ino, number);
        if let Some(known) = self.known() {
            known.set(number, ino.0, 0, 0);
        }
        self.any_alias.store(true, Ordering::Release);
    }

    /// Takes back the mark that a thread was told to look up again.
    pub(super) fn looked_up(&self, ino: Ino, thread: u32) {
        if !self.any_alias.load(Ordering::Acquire) {
            return;
        }
        self.with_known(ino.0, |node| node.superseded.as_mut().map(|marks| marks.remove(&thread)));
    }

    /// Returns whether the kernel may keep the attributes of a node.
    pub(super) fn attributes_stay(&self, node: NodeNumber) -> bool {
        node < FIRST_ALIAS && self.lock(node).get(&node).is_none_or(|state| !state.mapped && state.superseded.is_none())
    }

    /// Takes back `count` references of the kernel to a node.
    pub(super) fn forget(&self, node: NodeNumber, count: u64) {
        let removed = {
            let mut shard = self.lock(node);
            // The kernel also takes back single references to nodes that it keeps; those that are open it keeps.
            let removed =
                if shard.get(&node).is_some_and(|state| state.opens == 0) { shard.remove(&node) } else { None };
            if let Some(removed) = &removed {
                self.write(node, removed.written(), None);
            }
            removed
        };
        if let Some(known) = self.known() {
            known.forgot(node, count);
        }
        if removed.is_some_and(|node| node.backing.is_some()) {
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
        if !self.any_alias.load(Ordering::Acquire) {
            return;
        }
        // It stands for the number as long as somebody may hold the node that it superseded.
        let ino = self.ino(node);
        let held = node >= FIRST_ALIAS && self.lock(ino.0).contains_key(&ino.0);
        let mut aliases = self.write_aliases();
        let number = if node < FIRST_ALIAS { aliases.current.get(&ino).copied() } else { Some(node) };
        let Some(number) = number else { return };
        let Some(alias) = aliases.known.get_mut(&number) else { return };
        if node >= FIRST_ALIAS {
            alias.references = alias.references.saturating_sub(count);
        }
        let alias = *alias;
        if alias.references == 0 && !held {
            aliases.known.remove(&number);
            if let Some(known) = self.known() {
                known.set(number, 0, 0, 0);
            }
            if aliases.current.get(&alias.ino) == Some(&number) {
                aliases.current.remove(&alias.ino);
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
        let flags =
            [self.stale_cache, self.mapped, self.superseded.is_some(), self.suits.is_some(), self.suits == Some(true)];
        let state = flags.iter().fold(mode, |bits, flag| bits << 1 | u64::from(*flag));
        (self.opens, state, self.backing.as_ref().map_or(0, |backing| u64::from(backing.number()) + 1))
    }

    fn of_bits(state: u64) -> Node {
        let [stale_cache, mapped, superseded, known, suits] = std::array::from_fn(|place| state & (0x10 >> place) != 0);
        Node {
            mode: match state >> 5 {
                1 => Mode::Lower,
                2 => Mode::Upper,
                _ => Mode::Cached,
            },
            stale_cache,
            mapped,
            superseded: superseded.then(HashSet::new),
            suits: known.then_some(suits),
            ..Node::default()
        }
    }
}

impl Nodes {
    fn read_aliases(&self) -> RwLockReadGuard<'_, Aliases> {
        self.aliases.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken after a shard.
    fn write_aliases(&self) -> RwLockWriteGuard<'_, Aliases> {
        self.aliases.write().unwrap_or_else(PoisonError::into_inner)
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
/// Node numbers from here on supersede another node. Inode numbers stay below.
const FIRST_ALIAS: NodeNumber = 1 << 62;
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
        assert_eq!(nodes.current(Ino(7)), 7);
        nodes.supersede(Ino(7));
        let node = nodes.current(Ino(7));
        assert_ne!(node, 7);
        assert_eq!(nodes.ino(node), Ino(7));
        assert!(!nodes.attributes_stay(node));
        nodes.remember(node);
        nodes.remember(node);
        nodes.forget(node, 1);
        assert_eq!(nodes.current(Ino(7)), node);
        nodes.forget(node, 1);
        assert_eq!(nodes.current(Ino(7)), 7);
    }
}
