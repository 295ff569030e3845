//! Finding nodes again by number that the kernel has forgotten, as who comes with a file handle wants it.
//!
//! Of a forgotten node only the directory is noted that it was in, in a table of bounded size; its name is found by
//! listing that. So what was moved to another directory meanwhile is found there, as for that it had to be known again.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::Tree;
use crate::Result;
use crate::node::{Ino, Stat};

/// The directories of nodes that were forgotten, of the last ones at least.
#[derive(Debug, Default)]
pub(super) struct Forgotten(Mutex<Generations>);

/// When the young ones are many, they become the old ones, and those that were are dropped.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Ino, Ino>,
    old: HashMap<Ino, Ino>,
}

impl Forgotten {
    pub(super) fn note(&self, ino: Ino, parent: Ino) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.young.len() >= GENERATION {
            nodes.old = std::mem::take(&mut nodes.young);
        }
        nodes.young.insert(ino, parent);
    }

    fn parent(&self, ino: Ino) -> Option<Ino> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.young.get(&ino).or_else(|| nodes.old.get(&ino)).copied()
    }
}

impl Tree {
    /// Finds a forgotten node and those above it, and counts a reference to it. The caller holds `namespace`.
    pub(super) fn find_again(&self, ino: Ino) -> Result<Stat> {
        let mut way = vec![ino];
        // Up to the first directory that is known with both its sides.
        let top = loop {
            let current = *way.last().ok_or(Errno::STALE)?;
            let noted = self.forgotten.parent(current);
            let parent = noted.or_else(|| self.lower.place(current).map(|place| place.parent)).ok_or(Errno::STALE)?;
            if parent == Ino::ROOT || self.object(parent).is_some() {
                break parent;
            }
            if way.len() > DEEPEST {
                return Err(Errno::STALE);
            }
            way.push(parent);
        };
        let mut parent = top;
        let mut found = Err(Errno::STALE);
        let mut passed = Vec::new();
        while let Some(wanted) = way.pop() {
            found = self.find_in(parent, wanted);
            if found.is_err() {
                break;
            }
            parent = wanted;
            passed.push(wanted);
        }
        // Those on the way are not asked for.
        passed.pop_if(|_| found.is_ok());
        for ino in passed {
            self.forget(ino, 1);
        }
        found
    }

    /// Finds the name of a node in a directory and counts a reference to it.
    fn find_in(&self, parent: Ino, wanted: Ino) -> Result<Stat> {
        if let Some(place) = self.lower.place(wanted).filter(|place| place.parent == parent)
            && let Ok(stat) = self.lookup_in(&self.directory(parent)?, &place.name)
        {
            if stat.ino == wanted {
                return Ok(stat);
            }
            self.forget(stat.ino, 1);
        }
        let mut name = None;
        self.read_dir_locked(parent, 0, false, &mut |entry| {
            if entry.ino == wanted && entry.name != b"." && entry.name != b".." {
                name = Some(entry.name.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let name = name.ok_or(Errno::STALE)?;
        let stat = self.lookup_in(&self.directory(parent)?, &name)?;
        if stat.ino == wanted {
            return Ok(stat);
        }
        self.forget(stat.ino, 1);
        Err(Errno::STALE)
    }
}

/// Paths of more directories than this no system call can make; only a damaged record has them.
const DEEPEST: usize = 1 << 16;
/// About 20 bytes each, in two generations.
const GENERATION: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_and_the_table_stays_bounded() {
        let forgotten = Forgotten::default();
        let last = 5 * GENERATION as u64;
        for number in 2..=last {
            forgotten.note(Ino(number), Ino(number / 2));
        }
        assert_eq!(forgotten.parent(Ino(last)), Some(Ino(last / 2)));
        let early = last - GENERATION as u64 + 2;
        assert_eq!(forgotten.parent(Ino(early)), Some(Ino(early / 2)));
        assert_eq!(forgotten.parent(Ino(2)), None);
        let nodes = forgotten.0.lock().unwrap();
        assert!(nodes.young.len() + nodes.old.len() <= 2 * GENERATION);
    }
}
