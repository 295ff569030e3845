//! Finding what a stack of folders has under a name, by overlayfs's rules.
//!
//! From the top folder down: a whiteout ends the search, a file ends it unless it has only its attributes there
//! (`metacopy`), directories are joined until one is opaque. A `redirect` says under which name, or which path from the
//! root, the folders further down have the rest; it may be met on any directory of such a path. So each folder is walked
//! once, and what is looked for only changes from folder to folder: no redirects can lead in circles.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{FolderLower, Node, Source, join};
use crate::Result;
use crate::backing::{self, Identity, RawStat};
use crate::beneath::open_beneath;
use crate::by_name;
use crate::marks::Recorded;
use crate::node::{Ino, Kind, Stat};

/// What a search found, before anybody holds it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) stat: Stat,
    /// The file in the topmost folder that has it.
    pub(super) identity: Identity,
    /// Where it lies: a directory in each folder that takes part in it, topmost first. A file with its attributes, and
    /// with its data if that is elsewhere.
    pub(super) sources: Vec<Source>,
    /// The data of the file was found, if it is one.
    pub(super) complete: bool,
}

/// What is looked for in the folders still to come.
enum Goal {
    /// A name in the directory that is searched.
    Child(Vec<u8>),
    /// A path from the root of the folder.
    Path(Vec<Vec<u8>>),
}

struct Search<'a> {
    lower: &'a FolderLower,
    goal: Goal,
    over: bool,
    parts: Vec<Part>,
    complete: bool,
    /// It is a copy in this folder that is looked for.
    joining: bool,
}

/// What a name leads to in one folder.
struct There {
    file: OwnedFd,
    raw: RawStat,
    /// As it is shown.
    kind: Kind,
    /// A name says that nothing below belongs to it.
    ends: bool,
}

struct Part {
    raw: RawStat,
    kind: Kind,
    source: Source,
    number: Option<Recorded>,
    /// Its number may be that of what is further down.
    impure: bool,
}

impl FolderLower {
    /// Looks for `name` in the folders of the directory `dir`, of which those above `first` are known not to have it.
    pub(super) fn search(&self, dir: Ino, node: &Node, name: &[u8], first: u16) -> Result<Option<Found>> {
        let goal = Goal::Child(name.to_vec());
        let mut search = Search::new(self, goal);
        let mut next = 0;
        for source in node.sources.iter().filter(|source| source.layer >= first) {
            if search.over || matches!(search.goal, Goal::Path(_)) {
                break;
            }
            search.look_in(source, self.directory(dir, source)?.as_fd())?;
            next = source.layer + 1;
        }
        search.walk_from(next)?;
        search.finish()
    }

    /// Looks at the copy that the folder `layer` has of a file.
    fn search_copy(&self, layer: u16, path: &[u8]) -> Result<Option<Found>> {
        let mut search = Search { joining: true, ..Search::new(self, Goal::Path(components(path))) };
        search.walk_from(layer)?;
        search.finish()
    }
}

impl Search<'_> {
    fn new(lower: &FolderLower, goal: Goal) -> Search<'_> {
        Search { lower, goal, over: false, parts: Vec::new(), complete: false, joining: false }
    }

    /// Walks down a path in each of the folders that are left.
    fn walk_from(&mut self, first: u16) -> Result<()> {
        for layer in first..self.lower.layer_count() {
            if self.over || matches!(self.goal, Goal::Child(_)) {
                break;
            }
            self.walk(layer)?;
        }
        Ok(())
    }

    /// Looks at a name in one folder of the searched directory.
    fn look_in(&mut self, parent: &Source, dir: BorrowedFd<'_>) -> Result<()> {
        let Goal::Child(name) = &mut self.goal else { return Ok(()) };
        let name = std::mem::take(name);
        let mut redirect = None;
        if let Some(there) = self.look(parent.layer, dir, &name)? {
            redirect = self.arrive(parent, &join(&parent.path, &name), &there)?;
        }
        self.goal = match redirect {
            Some(target) if target.starts_with(b"/") => Goal::Path(components(&target)),
            Some(target) => Goal::Child(target),
            None => Goal::Child(name),
        };
        Ok(())
    }

    /// Walks down the path in one folder, and rewrites it for those below as redirects on the way say.
    fn walk(&mut self, layer: u16) -> Result<()> {
        let Goal::Path(path) = &self.goal else { return Ok(()) };
        let path = path.clone();
        let mut next: Vec<Vec<u8>> = Vec::new();
        let mut hidden_below = false;
        let mut held: Option<OwnedFd> = None;
        let mut parent = Source { layer, path: Box::default(), impure: self.lower.layer(layer)?.impure };
        for (place, name) in path.iter().enumerate() {
            let rest = &path[place..];
            let root = self.lower.layer(layer)?.root.as_fd();
            let at = held.as_ref().map_or(root, |fd| fd.as_fd());
            let Some(there) = self.look(layer, at, name)? else {
                next.extend_from_slice(rest);
                break;
            };
            let walked = join(&parent.path, name);
            let redirect = if rest.len() == 1 {
                self.arrive(&parent, &walked, &there)?
            } else {
                if there.kind != Kind::Directory {
                    self.over = true;
                    return Ok(());
                }
                let marks = self.lower.marks.read(there.file.as_fd())?;
                hidden_below |= marks.opaque || there.ends;
                parent = Source { layer, path: walked, impure: marks.impure };
                marks.redirect
            };
            match redirect {
                Some(target) if target.starts_with(b"/") => {
                    next = components(&target);
                    hidden_below = false;
                }
                Some(target) => next.push(target),
                None => next.push(name.clone()),
            }
            held = Some(there.file);
        }
        self.over |= hidden_below;
        self.goal = Goal::Path(next);
        Ok(())
    }

    /// Opens a name. A whiteout ends the search.
    fn look(&mut self, layer: u16, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<There>> {
        let by_name = self.lower.by_name && layer + 1 < self.lower.layer_count();
        if self.lower.by_name && by_name::special(name).is_some() {
            return Ok(None);
        }
        let layer = self.lower.layer(layer)?;
        let file = match open_beneath(dir, name, OFlags::PATH, layer.crossing()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {
                self.over |= by_name && by_name::hides(dir, name)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let raw = layer.stat(file.as_fd())?;
        let kind = self.lower.marks.shown_kind(file.as_fd(), &raw)?;
        self.over |= kind.is_none();
        let directory = by_name && kind == Some(Kind::Directory);
        let ends = directory && (by_name::hides(dir, name)? || by_name::is_opaque(file.as_fd())?);
        Ok(kind.map(|kind| There { file, raw, kind, ends }))
    }

    /// Takes what the searched name leads to in one folder; returns the redirect for those below.
    fn arrive(&mut self, parent: &Source, path: &[u8], there: &There) -> Result<Option<Vec<u8>>> {
        let (layer, raw, kind) = (parent.layer, there.raw, there.kind);
        // Directories are joined with directories only, and a file without data goes on with a file only.
        if self.parts.first().is_some_and(|first| first.kind != kind) {
            self.over = true;
            return Ok(None);
        }
        // Below the last folder there is nothing that marks could speak of.
        let last = layer + 1 == self.lower.layer_count();
        let marks = if last { Default::default() } else { self.lower.marks.read(there.file.as_fd())? };
        let source = Source { layer, path: path.into(), impure: marks.impure };
        if kind == Kind::Directory {
            self.parts.push(Part { raw, kind, source, number: None, impure: true });
            self.over = marks.opaque || there.ends;
            return Ok(marks.redirect.filter(|_| !self.over));
        }
        let metacopy = kind == Kind::Regular && marks.metacopy;
        if !metacopy || self.parts.is_empty() {
            // As listings have it, which look at nothing else in a directory that is not impure.
            let joins = self.lower.layer(layer)?.shares;
            let believed = |number: &Recorded| !number.shared || joins;
            let known = |number: &Recorded| parent.impure && believed(number) && self.lower.has_layer(number.layer);
            let number = marks.number.filter(known);
            self.parts.push(Part { raw, kind, source, number, impure: parent.impure });
        }
        self.complete = !metacopy;
        self.over = !metacopy;
        Ok(marks.redirect.filter(|_| metacopy))
    }

    fn finish(self) -> Result<Option<Found>> {
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else { return Ok(None) };
        let identity = backing::identity(&first.raw);
        // A directory keeps its number when it is copied into a folder above, and so does a file where that was noted.
        let number = match self.parts.iter().find_map(|part| part.number) {
            Some(recorded) => recorded.ino,
            None if first.impure => self.lower.number(backing::identity(&last.raw)),
            None => self.lower.number(identity),
        };
        let shared = first.raw.nlink > 1 || first.number.is_some_and(|number| number.shared);
        let copy = (shared && first.kind != Kind::Directory).then(|| self.lower.copied(number, first.source.layer));
        if let Some((layer, copied)) = copy.flatten().filter(|(layer, _)| *layer < first.source.layer && !self.joining)
            && let Some(found) = self.lower.search_copy(layer, &copied.path)?
        {
            return Ok(Some(found));
        }
        let mut stat = backing::to_stat(&first.raw, self.lower.free_number(number, identity))?;
        if let Some((layer, copied)) = copy.flatten()
            && layer == first.source.layer
        {
            // Its names and those further down.
            stat.nlink = copied.links();
        }
        stat.kind = first.kind;
        if first.kind == Kind::Directory && self.parts.len() > 1 {
            // A directory that several layers have has no true link count.
            stat.nlink = 1;
        }
        stat.blocks = last.raw.blocks;
        let complete = self.complete;
        Ok(Some(Found { stat, identity, sources: self.parts.into_iter().map(|part| part.source).collect(), complete }))
    }
}

/// Splits a path that was found usable when it was read.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}
