//! Nodes that stores through a mapping may change without the kernel telling us.
//!
//! Apart from the rest of what is known of nodes, because it is asked for under the tree's lock of names, where nobody
//! may wait for a shard of theirs.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::nodes::NodeNumber;

/// The set of such nodes. Its locks are held for no longer than one look.
#[derive(Debug)]
pub(super) struct Mapped {
    nodes: [Mutex<HashSet<NodeNumber>>; SHARDS],
    /// Whether there has been one.
    any: AtomicBool,
}

impl Default for Mapped {
    fn default() -> Mapped {
        Mapped { nodes: std::array::from_fn(|_| Mutex::default()), any: AtomicBool::new(false) }
    }
}

impl Mapped {
    pub(super) fn contains(&self, node: NodeNumber) -> bool {
        self.any.load(Ordering::Acquire) && self.lock(node).contains(&node)
    }

    pub(super) fn add(&self, node: NodeNumber) {
        self.lock(node).insert(node);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn remove(&self, node: NodeNumber) {
        self.lock(node).remove(&node);
    }

    fn lock(&self, node: NodeNumber) -> MutexGuard<'_, HashSet<NodeNumber>> {
        let shard = usize::try_from(node % SHARDS as u64).unwrap_or(0);
        self.nodes[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SHARDS: usize = 16;
