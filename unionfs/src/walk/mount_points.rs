//! Mount points that were made for a container, which are no change of its own.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use rustix::io::Errno;

use crate::Result;
use crate::node::{Ino, Kind, Stat};
use crate::tree::Tree;

/// Where a runtime makes what it mounts on, if an image has nothing there.
///
/// What is there counts as a mount point as long as nobody has used it for anything else: an empty file, or a folder with
/// nothing but mount points in it. The folders on the way are mount points as well.
#[derive(Clone, Debug, Default)]
pub struct MountPoints {
    paths: BTreeSet<Vec<u8>>,
    /// The folders that one of them lies in.
    parents: BTreeSet<Vec<u8>>,
}

impl MountPoints {
    /// Takes paths of the tree, with or without a leading slash.
    pub fn new(paths: impl IntoIterator<Item = impl AsRef<str>>) -> MountPoints {
        let mut made = MountPoints::default();
        for path in paths {
            let path = path.as_ref().trim_matches('/').as_bytes();
            for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                made.paths.insert(path[..end].to_vec());
                made.parents.insert(path[..end].to_vec());
            }
            made.paths.insert(path.to_vec());
        }
        made
    }

    /// Whether one lies in the folder, whose time then says nothing. No slash comes first.
    pub(super) fn lie_in(&self, folder: &[u8]) -> bool {
        self.parents.contains(folder)
    }

    /// Whether what the tree has at a path, without a leading slash, is one of them and unused.
    pub(super) fn has(&self, tree: &Tree, path: &[u8], stat: &Stat) -> Result<bool> {
        if !self.paths.contains(path) {
            return Ok(false);
        }
        match stat.kind {
            Kind::Regular => Ok(stat.size == 0),
            Kind::Directory => self.are_all_of(tree, path, stat.ino),
            _ => Ok(false),
        }
    }

    fn are_all_of(&self, tree: &Tree, path: &[u8], folder: Ino) -> Result<bool> {
        let mut names = Vec::new();
        let mut known = true;
        let read = tree.read_dir(folder, 0, false, &mut |entry| {
            if entry.name == b"." || entry.name == b".." {
                return ControlFlow::Continue(());
            }
            let inner = [path, b"/", entry.name].concat();
            known = self.paths.contains(&inner);
            names.push((entry.name.to_vec(), inner));
            if known { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        present(read)?;
        if !known {
            return Ok(false);
        }
        for (name, inner) in names {
            let Some(stat) = present(tree.lookup(folder, &name))? else { continue };
            let is_one = self.has(tree, &inner, &stat);
            tree.forget(stat.ino, 1);
            if !is_one? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What is deleted while we look is not there.
fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Errno::NOENT | Errno::STALE) => Ok(None),
        result => result.map(Some),
    }
}
