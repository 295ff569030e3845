//! Nodes that stand for the inode number of another, which readers hold open in a way that a writer cannot share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::nodes::NodeNumber;
use crate::node::Ino;

/// The superseding nodes. An inode number has one at most: it is never opened in a way that a writer could not share.
#[derive(Debug)]
pub(super) struct Superseded {
    nodes: RwLock<Table>,
    /// Whether there has been one.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
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

impl Superseded {
    /// Makes an empty table; the first number that it gives is `next`.
    pub(super) fn new(next: NodeNumber) -> Superseded {
        Superseded { nodes: RwLock::new(Table { next, ..Table::default() }), any: AtomicBool::new(false) }
    }

    /// Takes over a node of an earlier server.
    pub(super) fn restore(&self, node: NodeNumber, ino: Ino, references: u64) {
        let mut table = self.write();
        table.known.insert(node, Alias { ino, references });
        table.current.insert(ino, node);
        self.any.store(true, Ordering::Release);
    }

    /// Returns the inode number of a node.
    pub(super) fn ino(&self, node: NodeNumber) -> Ino {
        if node < FIRST_ALIAS {
            return Ino(node);
        }
        self.read().known.get(&node).map_or(Ino(node), |alias| alias.ino)
    }

    /// Returns the node that stands for an inode number at present.
    pub(super) fn current(&self, ino: Ino) -> NodeNumber {
        if !self.any.load(Ordering::Acquire) {
            return ino.0;
        }
        self.read().current.get(&ino).copied().unwrap_or(ino.0)
    }

    /// Returns the node that stands for an inode number at present, and counts that the kernel is told about it: at
    /// once, as it may be removed otherwise before the kernel has heard of it.
    pub(super) fn tell(&self, ino: Ino) -> NodeNumber {
        if self.current(ino) == ino.0 {
            return ino.0;
        }
        let mut table = self.write();
        let Some(node) = table.current.get(&ino).copied() else { return ino.0 };
        if let Some(alias) = table.known.get_mut(&node) {
            alias.references += 1;
        }
        node
    }

    /// Lets a further node stand for an inode number, and returns it if there was none.
    pub(super) fn add(&self, ino: Ino) -> Option<NodeNumber> {
        let mut table = self.write();
        if table.current.contains_key(&ino) {
            return None;
        }
        let node = table.next;
        table.next += 1;
        table.known.insert(node, Alias { ino, references: 0 });
        table.current.insert(ino, node);
        self.any.store(true, Ordering::Release);
        Some(node)
    }

    /// Takes back `count` references of the kernel, if the node is one of these.
    pub(super) fn forget(&self, node: NodeNumber, count: u64) {
        if node >= FIRST_ALIAS
            && let Some(alias) = self.write().known.get_mut(&node)
        {
            alias.references = alias.references.saturating_sub(count);
        }
    }

    /// Returns the inode number of a node if a superseding one stands for it that the kernel does not know.
    pub(super) fn unused(&self, node: NodeNumber) -> Option<Ino> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let table = self.read();
        let ino = table.known.get(&node).map_or(Ino(node), |alias| alias.ino);
        let current = table.current.get(&ino)?;
        table.known.get(current).is_none_or(|alias| alias.references == 0).then_some(ino)
    }

    /// Removes the superseding node of an inode number if the kernel does not know it, and returns which it was.
    pub(super) fn remove_unused(&self, ino: Ino) -> Option<NodeNumber> {
        let mut table = self.write();
        let node = *table.current.get(&ino)?;
        if table.known.get(&node).is_some_and(|alias| alias.references > 0) {
            return None;
        }
        table.known.remove(&node);
        table.current.remove(&ino);
        Some(node)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Node numbers from here on supersede another node. Inode numbers stay below.
pub(super) const FIRST_ALIAS: NodeNumber = 1 << 62;
