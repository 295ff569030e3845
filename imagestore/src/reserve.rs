//! Space put aside, so that images can be removed when the disk is full.
//!
//! Removing an image means writing a shorter catalog first. On a full disk that would fail, and with it the very
//! command that makes room. So a store keeps a file that is given up for this.

use std::fs;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

use crate::disk::create_new;
use crate::layout::Layout;

/// Puts the space aside if that has not been done. Where there is none, the store works without.
pub(crate) fn put_aside(layout: &Layout) {
    let path = path(layout);
    if path.exists() {
        return;
    }
    // Raced with another process that makes the same file: then there is nothing to do either.
    let Ok(file) = create_new(&path) else { return };
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE).is_err() {
        give_up(layout);
    }
}

/// Gives the space up. Returns whether there was any.
pub(crate) fn give_up(layout: &Layout) -> bool {
    fs::remove_file(path(layout)).is_ok()
}

fn path(layout: &Layout) -> PathBuf {
    layout.refs().join("reserve")
}

/// Enough for a catalog of some hundred images, a temporary folder and what file systems need beside.
const SIZE: u64 = 256 << 10;
