//! Taking names away.

use std::ops::{ControlFlow, Deref};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::Tree;
use super::directory::{Found, Hold};
use super::intent::{Intent, Removed};
use super::last_name::Search;
use super::object::{Object, State};
use crate::Result;
use crate::backing;
use crate::node::{Ino, Kind};
use crate::survive;
use crate::upper::{Replaced, UpperLayer, for_each_name};

impl Tree {
    /// Removes the name of anything but a directory.
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<()> {
        if let Removal::AfterSearch(ino) = self.remove(dir, name, false, Search::Possible)? {
            let _way = self.search_names(ino);
            self.remove(dir, name, false, Search::Over)?;
        }
        Ok(())
    }

    /// The same, unless that may take long: then nothing is done, and false returned.
    pub(crate) fn unlink_at_once(&self, dir: Ino, name: &[u8]) -> Result<bool> {
        Ok(matches!(self.remove(dir, name, false, Search::Possible)?, Removal::Done))
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<()> {
        self.remove(dir, name, true, Search::Over).map(drop)
    }

    fn remove(&self, dir: Ino, name: &[u8], directory: bool, search: Search) -> Result<Removal> {
        let upper = self.writable_upper()?;
        let past = Intent::of_the_past();
        let _names = self.write_names();
        if let Some(Intent::Join(join)) = &past {
            self.settle_join(join)?;
        }
        let looked = self.name(&self.directory(dir)?, name)?;
        if let (Some(Intent::Remove(removed)), None) = (past, &looked.found) {
            survive::was_executed();
            self.finish_past_removal(dir, name, &removed)?;
            return Ok(Removal::Done);
        }
        let found = looked.found.as_ref().ok_or(Errno::NOENT)?;
        match (directory, found.kind == Kind::Directory) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            _ => {}
        }
        let removed = self.object_to_remove(dir, name, found)?;
        // Where nothing can show through, the filesystem says whether a directory is empty, unless its names are known.
        let unseen = directory
            && found.upper.is_some()
            && !found.merged
            && looked.covered.is_none()
            && removed.listing().is_none();
        if directory && !unseen && !self.is_empty(&removed, found)? {
            return Err(Errno::NOTEMPTY);
        }
        let removed = self.leaving(removed)?;
        if self.keep_a_name(upper, &removed, found, (dir, name), search) {
            return Ok(Removal::AfterSearch(removed.ino));
        }
        let (parent, view) = self.directory_for_change(dir)?;
        let parent_fd = view.upper.as_ref().ok_or(Errno::STALE)?.as_fd();
        let replaced = match (&found.upper, directory) {
            (None, _) => Replaced::Nothing,
            (Some(_), false) => Replaced::File,
            (Some(_), true) => Replaced::Directory,
        };
        let intent = Removed { ino: removed.ino, only_in_lower: found.upper.is_none(), link: removed.state().link };
        Intent::Remove(intent).note();
        survive::step();
        if looked.covered.is_some() {
            upper.put_whiteout(parent_fd, name, replaced)?;
        } else if directory {
            let shows_nothing = || if unseen { self.is_empty(&removed, found) } else { Ok(true) };
            remove_directory(upper, parent_fd, name, shows_nothing)?;
        } else {
            rustix::fs::unlinkat(parent_fd, name, AtFlags::empty())?;
        }
        survive::step();
        self.finish_removal(upper, dir, name, intent.only_in_lower, &removed)?;
        self.account_directory(&parent);
        parent.unlist(name);
        Ok(Removal::Done)
    }

    /// Gets hold of what is about to lose a name, so that it can still be served; fails if it is a directory that shows
    /// names. The caller holds `namespace` for writing.
    pub(super) fn prepare_removal(&self, dir: Ino, name: &[u8], found: &Found) -> Result<Leaving<'_>> {
        let object = self.object_to_remove(dir, name, found)?;
        if found.kind == Kind::Directory && !self.is_empty(&object, found)? {
            return Err(Errno::NOTEMPTY);
        }
        self.leaving(object)
    }

    fn object_to_remove(&self, dir: Ino, name: &[u8], found: &Found) -> Result<Arc<Object>> {
        if let Some(object) = self.adopt(dir, name, found, Hold::No)?.or_else(|| self.objects.get(found.ino)) {
            return Ok(object);
        }
        self.lower.lookup(dir, name)?;
        let state = State { merged: found.merged, ..State::default() };
        let object = self.objects.get_or_insert(found.ino, || Object::new(found.ino, found.kind, true, state));
        object.add_place(dir, name);
        Ok(object)
    }

    /// Keeps the file of what has one name at most, so that it can be served without.
    fn leaving(&self, object: Arc<Object>) -> Result<Leaving<'_>> {
        let (last, open) = {
            let state = object.state();
            (state.places.len() <= 1 && state.pinned.is_none(), state.data.is_some())
        };
        let pinned = last && object.is_in_upper();
        if pinned {
            let file = self.upper_file(&object)?;
            // What is open for writing must not stay so for longer than somebody has it open.
            let path = if open { Arc::new(backing::reopen(file.as_fd(), OFlags::PATH)?) } else { file };
            object.state().pinned = Some(path);
        }
        Ok(Leaving { tree: self, object, pinned })
    }

    /// Notes that a name is gone, under which the upper had a file unless it was `only_in_lower`.
    pub(super) fn finish_removal(
        &self,
        upper: &UpperLayer,
        dir: Ino,
        name: &[u8],
        only_in_lower: bool,
        object: &Arc<Object>,
    ) -> Result<()> {
        object.remove_place(dir, name);
        let link = object.state().link;
        if let Some(mut link) = link {
            if only_in_lower {
                link.covered = (link.covered + 1).min(link.all);
                object.state().link = Some(link);
                upper.set_link(object.ino, link)?;
            }
            if self.stat_of(object.ino)?.nlink == 0 {
                object.state().link = Some(crate::upper::Link { copied: false, ..link });
                upper.links().remove(object.ino);
            }
        }
        if object.is_removed() {
            self.handles.remove(object.ino);
            self.account_leaving(object);
            if object.kind == Kind::Directory {
                object.state().merged = false;
                if let Some(listing) = object.listing().as_mut() {
                    listing.clear();
                }
            }
            // Whoever asked without holding it, as a test may, leaves nothing behind.
            self.forget(object.ino, 0);
        }
        Ok(())
    }

    /// Returns whether a directory shows no names.
    pub(super) fn is_empty(&self, object: &Object, found: &Found) -> Result<bool> {
        if let Some(listing) = object.listing().as_ref() {
            return Ok(listing.is_empty());
        }
        let view = self.directory(object.ino)?;
        let mut empty = true;
        if let (Some((fd, _)), Some(upper)) = (&found.upper, &self.upper) {
            for_each_name(fd.as_fd(), &mut |name, _| {
                if empty && let Some((entry, raw)) = upper.look(fd.as_fd(), name)? {
                    empty = self.marks.shown_kind(entry.as_fd(), &raw)?.is_none();
                }
                Ok(())
            })?;
        }
        let Some(lower) = view.lower.filter(|_| empty) else { return Ok(empty) };
        let mut names = Vec::new();
        self.lower.for_each_child(lower, 0, &mut |child| {
            names.push(child.name.to_vec());
            if view.upper.is_none() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        for name in names {
            if self.name(&view, &name)?.found.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What is about to lose a name. Its file is kept open, if that is its last one; no longer than until this is dropped, if
/// it has one then.
pub(super) struct Leaving<'a> {
    tree: &'a Tree,
    object: Arc<Object>,
    pinned: bool,
}

impl Deref for Leaving<'_> {
    type Target = Arc<Object>;

    fn deref(&self) -> &Arc<Object> {
        &self.object
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.pinned && !self.object.is_removed() {
            self.tree.unpin_named(&self.object);
        }
    }
}

/// What became of a removal.
enum Removal {
    Done,
    /// Nothing yet: other names of this node are to be searched for first.
    AfterSearch(Ino),
}

/// Removes a directory of the upper that may hold whiteouts. What else may be in it is asked only if there is something.
fn remove_directory(
    upper: &UpperLayer,
    parent: BorrowedFd<'_>,
    name: &[u8],
    shows_nothing: impl FnOnce() -> Result<bool>,
) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            if !shows_nothing()? {
                return Err(Errno::NOTEMPTY);
            }
            let staged = upper.staging_name();
            rustix::fs::renameat(parent, name, upper.staging(), &staged)?;
            upper.discard_directory(&staged)
        }
        result => result,
    }
}
