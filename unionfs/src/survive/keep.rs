//! All that a worker leaves to the next one.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use super::known::Known;
use super::memory::{Header, Memory};
use super::pins::Pins;
use crate::node::Ino;

/// The memory and the files that outlive a worker.
#[derive(Debug)]
pub(crate) struct Keep {
    memory: Arc<Memory>,
    pins: Pins,
    known: OnceLock<Known>,
}

impl Keep {
    /// Makes everything, for a process that will fork.
    pub(crate) fn new() -> std::io::Result<Keep> {
        Ok(Keep { memory: Arc::new(Memory::new()?), pins: Pins::new()?, known: OnceLock::new() })
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Keeps the file of a node without a name; tells whether that worked.
    pub(crate) fn pin(&self, ino: Ino, file: &Arc<OwnedFd>) -> bool {
        let pinned = self.pins.pin(ino.0, file);
        if !pinned {
            self.memory.count(Header::Unpinned);
        }
        pinned
    }

    /// Returns what the kernel knows, opened the first time with the number of nodes that are numbered without gaps.
    pub(crate) fn known(&self, direct: u64) -> &Known {
        self.known.get_or_init(|| Known::open(Arc::clone(&self.memory), direct))
    }

    /// Returns whether an earlier worker has left something.
    pub(crate) fn is_left(&self) -> bool {
        self.memory.read_header(Header::Generation) > 1
    }
}
