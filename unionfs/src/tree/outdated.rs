//! Nodes that a request has changed although it was not about them.
//!
//! After a copy-up attributes are those of another file than before, with another time of the last change. Who keeps them
//! must hear of it: one that saw an old time, then a new one, believes that the file has changed meanwhile (`tar` says so).
//!
//! If a server dies between a change and the telling, the next one tells of everything in the upper.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Tree;
use crate::node::Ino;
use crate::survive as journal;

/// What [`Tree::take_outdated`] will return.
#[derive(Debug, Default)]
pub(super) struct Outdated {
    any: AtomicBool,
    nodes: Mutex<Vec<Ino>>,
}

impl Outdated {
    pub(super) fn add(&self, ino: Ino) {
        journal::outdates();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody may ever ask.
        if nodes.len() < MOST && nodes.last() != Some(&ino) {
            nodes.push(ino);
        }
        self.any.store(true, Ordering::Release);
    }
}

impl Tree {
    /// Returns the nodes whose attributes have changed beside those that were asked for, since the last call.
    pub(crate) fn take_outdated(&self) -> Vec<Ino> {
        if !self.outdated.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        // Those of another request are among them, perhaps, which may be answered before these are told of.
        journal::outdates();
        let mut nodes = self.outdated.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        self.outdated.any.store(false, Ordering::Release);
        std::mem::take(&mut *nodes)
    }

    /// Returns all nodes in the upper that are known of.
    pub(crate) fn in_upper(&self) -> Vec<Ino> {
        self.objects.all().into_iter().filter(|object| object.is_in_upper()).map(|object| object.ino).collect()
    }
}

/// Most nodes that wait to be asked for.
const MOST: usize = 4096;
