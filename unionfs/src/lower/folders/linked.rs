//! Copies of files with several names.
//!
//! An upper has such a file under those of its names that were changed or moved; the others still lead to a folder below.
//! When the upper becomes a lower, nothing in the others says so. Where its root has the mark `strata.shares`, its directories
//! are walked once, for what was copied from such files (`strata.ino`): when such a file is first met below it, or
//! before anything is looked up, by whoever has other threads for that.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use rustix::fs::{Dir, FileType, OFlags};

use super::{FolderLower, LOOK, Layer, NO_MODE, join};
use crate::Result;
use crate::backing;
use crate::beneath::open_beneath;
use crate::node::Ino;

/// A copy of a file with several names, in one folder.
#[derive(Debug)]
pub(super) struct Copied {
    /// One of its names, from the folder's root.
    pub(super) path: Box<[u8]>,
    /// How many it has there.
    names: u32,
    /// How many lead to it from folders below.
    left: u32,
}

impl Copied {
    /// Returns how many names lead to it.
    pub(super) fn links(&self) -> u32 {
        self.names.saturating_add(self.left)
    }
}

impl FolderLower {
    /// Returns whether all copies are known, so that looking for a name takes no longer than usual.
    pub(crate) fn knows_copies(&self) -> bool {
        self.layers.iter().all(|layer| !layer.shares || layer.copies.get().is_some())
    }

    /// Finds all copies.
    pub(crate) fn find_copies(&self) {
        for layer in self.layers.iter().filter(|layer| layer.shares) {
            self.copies(layer);
        }
    }

    /// Returns the topmost copy of the file with this number, in which folder it is, and looks no further down than `last`.
    pub(super) fn copied(&self, number: Ino, last: u16) -> Option<(u16, &Copied)> {
        let layers = (0..=last).zip(&self.layers);
        let mut copies = layers.filter(|(_, layer)| layer.shares);
        copies.find_map(|(place, layer)| self.copies(layer).get(&number).map(|copied| (place, copied)))
    }

    /// Returns whether a copy of a file with several names may be in a folder above.
    pub(super) fn may_be_copied(&self, layer: u16) -> bool {
        self.layers.iter().take(layer.into()).any(|layer| layer.shares)
    }

    /// Returns the copies in a layer. The first time all its directories are looked at.
    fn copies<'a>(&self, layer: &'a Layer) -> &'a HashMap<Ino, Copied> {
        layer.copies.get_or_init(|| {
            let mut copies = HashMap::new();
            let mut todo: Vec<Box<[u8]>> = vec![Box::default()];
            while let Some(path) = todo.pop() {
                if let Err(error) = self.find_copies_in(layer, &path, &mut copies, &mut todo) {
                    // Its names show the old file, each for itself.
                    tracing::warn!(path = %String::from_utf8_lossy(&path), %error, "not searched for hard links");
                }
            }
            copies
        })
    }

    /// Finds the copies in one directory, and the directories in it. Where nothing was copied from the lowers, which it
    /// says of itself, its files are not looked at.
    fn find_copies_in(
        &self,
        layer: &Layer,
        path: &[u8],
        copies: &mut HashMap<Ino, Copied>,
        todo: &mut Vec<Box<[u8]>>,
    ) -> Result<()> {
        let dir = open_beneath(layer.root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY, layer.crossing())?;
        let impure = self.marks.read(dir.as_fd())?.impure;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let type_known = entry.file_type() != FileType::Unknown;
            if matches!(name.to_bytes(), b"." | b"..") || type_known && !entry.file_type().is_dir() && !impure {
                continue;
            }
            let raw = backing::stat_name(dir.as_fd(), name.to_bytes())?;
            let below = join(path, name.to_bytes());
            if raw.mode & libc::S_IFMT == libc::S_IFDIR {
                todo.push(below);
                continue;
            }
            if !impure || backing::is_whiteout(&raw) {
                continue;
            }
            let file = rustix::fs::openat(&dir, name, LOOK, NO_MODE)?;
            let marks = self.marks.read(file.as_fd())?;
            if let Some(number) = marks.number.filter(|number| number.shared && self.has_layer(number.layer)) {
                let left = marks.left.unwrap_or(0);
                copies.entry(number.ino).or_insert(Copied { path: below, names: 0, left }).names += 1;
            }
        }
        Ok(())
    }
}
