//! The last name that a copy has in the upper.
//!
//! The copy of a lower file with several names lies in the upper under some of them. That the others lead to it as well is
//! noted beside the upper. When the upper becomes a lower, nothing is left beside it, and what keeps the names together is
//! that the copy has one of them (`lower/folders/linked.rs`). So a copy that is about to lose its last name in the upper
//! is linked to one of the others first, which to all who look shows the same as before.

use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Tree;
use super::directory::Found;
use super::object::Object;
use crate::Result;
use crate::backing;
use crate::lower::{LowerTree, Place};
use crate::node::{Ino, Kind};
use crate::survive;
use crate::upper::UpperLayer;

/// Whether another name may be searched for in all of the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    Possible,
    /// It was, or takes too much time.
    Over,
}

/// The last time that all directories were searched for names.
#[derive(Debug, Default)]
pub(super) struct Searches(Mutex<Option<Searched>>);

#[derive(Clone, Copy, Debug)]
struct Searched {
    ended: Instant,
    took: Duration,
}

impl Searches {
    /// Large trees are not searched again and again.
    fn may_begin(&self) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.took < SHORT || last.ended.elapsed() > last.took * PAUSE)
    }

    fn end(&self, began: Instant) {
        let searched = Searched { ended: Instant::now(), took: began.elapsed() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(searched);
    }
}

impl Tree {
    /// Gives the copy of a lower file another name in the upper, if it is about to lose its last one there, `name` in
    /// `dir`. Returns whether [`search_names`](Self::search_names) is to come first, as no other name is known. The caller
    /// holds `namespace` for writing.
    ///
    /// What goes wrong here is no reason not to remove the name.
    pub(super) fn keep_a_name(
        &self,
        upper: &UpperLayer,
        object: &Object,
        found: &Found,
        (dir, name): (Ino, &[u8]),
        search: Search,
    ) -> bool {
        let (link, places) = {
            let state = object.state();
            let Some(link) = state.link.filter(|link| link.copied && link.covered < link.all) else { return false };
            (link, state.places.clone())
        };
        // This one, and that beside the upper.
        let last = found.upper.as_ref().is_some_and(|(_, raw)| raw.nlink <= 2);
        if !last || !matches!(self.lower, LowerTree::Folders(_)) {
            return false;
        }
        for place in places.iter().filter(|place| place.parent != dir || place.name != name) {
            match self.join_at(upper, object.ino, place) {
                Ok(true) => return false,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, ?link, "a copy has no name in the upper, though it has others"),
            }
        }
        search == Search::Possible && self.searches.may_begin()
    }

    /// Links a copy to a name that leads to it from the lower; returns whether this is one.
    fn join_at(&self, upper: &UpperLayer, ino: Ino, place: &Place) -> Result<bool> {
        let leads_here = |found: &Found| found.ino == ino && found.upper.is_none();
        let seen = self.name(&self.directory(place.parent)?, &place.name)?;
        if !seen.found.as_ref().is_some_and(leads_here) {
            return Ok(false);
        }
        survive::outdates();
        let (parent, directory) = self.directory_for_change(place.parent)?;
        let Some(file) = &directory.upper else { return Ok(false) };
        let before = backing::stat(file.as_fd())?;
        let (_, pending) = self.ready_to_move(upper, &directory, &place.name, &seen)?;
        backing::restore_times(file.as_fd(), before.atime, before.mtime)?;
        self.account_directory(&parent);
        self.outdated.add(parent.ino);
        Ok(pending.is_none())
    }

    /// Looks through all directories until one more name of this node is known than before. Takes long in a large tree, but
    /// nothing waits for it. What was found can be used as long as the result is held.
    pub(super) fn search_names(&self, wanted: Ino) -> Way<'_> {
        let began = Instant::now();
        let mut way = Way { tree: self, held: Vec::new() };
        if let Some(object) = self.objects.get(wanted) {
            let known = object.state().places.len();
            let mut todo = vec![Step::Enter(Ino::ROOT)];
            while let Some(step) = todo.pop() {
                match step {
                    Step::Leave(dir) => self.forget(dir, 1),
                    Step::Enter(dir) => {
                        todo.push(Step::Leave(dir));
                        // A directory that cannot be read has no names for us.
                        let _ = self.search_names_in(dir, wanted, &mut todo);
                    }
                }
                if object.state().places.len() > known {
                    way.held.extend(todo.drain(..).map(|(Step::Enter(dir) | Step::Leave(dir))| dir));
                }
            }
        }
        self.searches.end(began);
        way
    }

    /// Looks through one directory. Those in it are held until they are left, as what is below is found through them.
    fn search_names_in(&self, dir: Ino, wanted: Ino, todo: &mut Vec<Step>) -> Result<()> {
        let mut names = Vec::new();
        self.read_dir(dir, 0, false, &mut |entry| {
            let below = entry.kind == Kind::Directory && !matches!(entry.name, b"." | b"..");
            if below || entry.ino == wanted {
                names.push((entry.name.to_vec(), entry.kind));
            }
            ControlFlow::Continue(())
        })?;
        for (name, kind) in names {
            // Gone meanwhile, perhaps.
            let Ok(found) = self.lookup(dir, &name) else { continue };
            if kind == Kind::Directory && found.kind == Kind::Directory {
                todo.push(Step::Enter(found.ino));
            } else {
                self.forget(found.ino, 1);
            }
        }
        Ok(())
    }
}

/// The directories that lead to what was found, which stay known until this is dropped.
#[must_use = "what was found is lost with it"]
pub(super) struct Way<'a> {
    tree: &'a Tree,
    held: Vec<Ino>,
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        for dir in &self.held {
            self.tree.forget(*dir, 1);
        }
    }
}

/// What is left to do of a search.
enum Step {
    Enter(Ino),
    Leave(Ino),
}

/// A search that takes no longer may come as often as it is wanted.
const SHORT: Duration = Duration::from_millis(100);
/// After another, so many times as long nothing is searched.
const PAUSE: u32 = 10;
