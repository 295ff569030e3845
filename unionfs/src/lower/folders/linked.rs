//! Copies of files with several names.
//!
//! An upper has such a file under those of its names that were changed or moved; the others still lead to a folder below.
//! When the upper becomes a lower, nothing in the others says so. Where its root has the mark `strata.shares`, its directories
//! are walked once, for what was copied from such files (`strata.ino`): when such a file is first met below it, or
//! before anything is looked up, by whoever has other threads for that. What was found is left to the next server.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use rustix::fs::{Dir, FileType, OFlags};

use super::{FolderLower, LOOK, Layer, NO_MODE, join};
use crate::Result;
use crate::backing;
use crate::beneath::open_beneath;
use crate::node::Ino;

/// The copies in one folder, by the number of the file.
pub(super) type Copies = HashMap<Ino, Copied>;

/// A copy of a file with several names, in one folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// One of its names, from the folder's root.
    pub(super) path: Box<[u8]>,
    /// How many it has there.
    pub(super) names: u32,
    /// How many lead to it from folders below.
    pub(super) left: u32,
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
        for (place, layer) in (0..).zip(&self.layers).filter(|(_, layer)| layer.shares) {
            self.copies(place, layer);
        }
    }

    /// Returns the topmost copy of the file with this number, in which folder it is, and looks no further down than `last`.
    pub(super) fn copied(&self, number: Ino, last: u16) -> Option<(u16, &Copied)> {
        let layers = (0..=last).zip(&self.layers);
        let mut copies = layers.filter(|(_, layer)| layer.shares);
        copies.find_map(|(place, layer)| self.copies(place, layer).get(&number).map(|copied| (place, copied)))
    }

    /// Returns whether a copy of a file with several names may be in a folder above.
    pub(super) fn may_be_copied(&self, layer: u16) -> bool {
        self.layers.iter().take(layer.into()).any(|layer| layer.shares)
    }

    /// Returns the copies in a layer. The first time all its directories are looked at.
    fn copies<'a>(&self, place: u16, layer: &'a Layer) -> &'a Copies {
        layer.copies.get_or_init(|| {
            let mut copies = Copies::new();
            let mut todo: Vec<Box<[u8]>> = vec![Box::default()];
            while let Some(path) = todo.pop() {
                if let Err(error) = self.find_copies_in(layer, &path, &mut copies, &mut todo) {
                    // Its names show the old file, each for itself.
                    tracing::warn!(path = %String::from_utf8_lossy(&path), %error, "not searched for hard links");
                }
            }
            self.kept.write_copies(place, &copies);
            copies
        })
    }

    /// Finds the copies in one directory, and the directories in it. Where nothing was copied from the lowers, which it
    /// says of itself, its files are not looked at.
    fn find_copies_in(&self, layer: &Layer, path: &[u8], copies: &mut Copies, todo: &mut Vec<Box<[u8]>>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use super::*;
    use crate::spec::{Lower, MountSpec, Options, Upper};
    use crate::survive::{Header, Keep};
    use crate::tree::{SetAttributes, Tree};

    #[test]
    fn the_next_server_need_not_search() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["lower", "old", "upper", "work"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        std::fs::write(at("lower/a"), "content").unwrap();
        std::fs::hard_link(at("lower/a"), at("lower/b")).unwrap();
        let spec = |lowers: &[&str], upper: &str| MountSpec {
            lower: Lower::Folders(lowers.iter().map(|name| at(name)).collect()),
            upper: Some(Upper { dir: at(upper), work: at("work") }),
            options: Options::default(),
        };
        let tree = Tree::open(&spec(&["lower"], "old")).unwrap();
        let found = tree.lookup(Ino::ROOT, b"a").unwrap();
        let change = SetAttributes { size: Some(1), ..SetAttributes::default() };
        tree.set_attributes(found.ino, &change).unwrap();
        drop(tree);

        let keep = Arc::new(Keep::new().unwrap());
        let serve = || {
            keep.memory().count(Header::Generation);
            Tree::open_kept(&spec(&["old", "lower"], "upper"), &keep, None).unwrap()
        };
        let first = serve();
        assert!(!first.finds_names_at_once());
        first.search_layers();
        drop(first);
        let second = serve();
        assert!(second.finds_names_at_once());
        let mut sizes = Vec::new();
        second
            .read_dir(Ino::ROOT, 0, true, &mut |entry| {
                sizes.extend(entry.stat.filter(|stat| stat.size == 1).map(|stat| (stat.ino, stat.nlink)));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(sizes, [(found.ino, 2); 2]);
    }
}
