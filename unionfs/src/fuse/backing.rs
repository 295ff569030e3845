//! Backing files that the kernel knows by a number of this connection.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::BackingId;

/// A file that the kernel reads and writes on its own. Dropping it takes the number back.
#[derive(Debug)]
pub(crate) enum Backing {
    /// Registered by us.
    Numbered {
        /// The connection.
        device: Arc<OwnedFd>,
        /// The number.
        number: u32,
    },
    /// Registered through `fuser`, which wants its own type back.
    OfFuser(BackingId),
}

/// Where backing files are registered.
pub(crate) trait Register {
    /// Makes `file` known to the kernel.
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Backing>;
}

impl Backing {
    /// Takes over a number that an earlier process registered on the same connection.
    #[allow(dead_code, reason = "for who takes over a connection")]
    pub(crate) fn taken_over(device: &Arc<OwnedFd>, number: u32) -> Backing {
        Backing::Numbered { device: Arc::clone(device), number }
    }

    /// Returns the number by which the kernel knows it; `fuser` keeps it to itself.
    pub(crate) fn number(&self) -> u32 {
        match self {
            Backing::Numbered { number, .. } => *number,
            Backing::OfFuser(_) => 0,
        }
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Backing::Numbered { device, number } = self {
            // If the connection is gone, so is the number.
            let _ = strata_sys::fuse::close_backing(device.as_fd(), *number);
        }
    }
}
