//! Moving names.
//!
//! Files are copied up first. A directory that shows a lower one is moved with a note of where the lower one is
//! (`redirect`), in constant time. Where the old name is one of the lower's, a whiteout stays behind, in the same step.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::directory::{Directory, Found, Hold, Name};
use super::intent::{Intent, Join, Move, Removed};
use super::last_name::Search;
use super::object::Object;
use super::remove::Leaving;
use crate::Result;
use crate::lower::Place;
use crate::marks::Recorded;
use crate::node::{Ino, Kind};
use crate::survive;
use crate::upper::{self, UpperLayer};

/// What to do about the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what has it.
    Replace,
    /// Fail if it exists.
    NoReplace,
    /// Exchange both.
    Exchange,
    /// As `Replace`, and leave a whiteout at the old name, which is one of this union: nothing is seen there.
    Whiteout,
    /// As `NoReplace`, and leave a whiteout.
    WhiteoutNoReplace,
}

impl RenameMode {
    fn leaves_whiteout(self) -> bool {
        matches!(self, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace)
    }
}

impl Tree {
    /// Moves `name` in `dir` to `new_name` in `new_dir`.
    pub fn rename(&self, dir: Ino, name: &[u8], new_dir: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        let upper = self.writable_upper()?;
        upper.check_new_name(new_name)?;
        match Intent::of_the_past() {
            Some(Intent::Rename(moved)) => {
                let _names = self.write_names();
                if self.was_moved(&moved)? {
                    survive::was_executed();
                    return self.finish_past_move(&moved);
                }
            }
            Some(Intent::Join(join)) => {
                let _names = self.write_names();
                self.settle_join(&join)?;
            }
            _ => {}
        }
        let mut search = Search::Possible;
        let mut _way;
        loop {
            // What takes long is done first, without the lock on the names.
            let pending = {
                let _names = self.write_names();
                self.try_rename(upper, (dir, name), (new_dir, new_name), mode, search)?
            };
            match pending {
                None => return Ok(()),
                Some(Pending::Copy(ino, wanted)) => drop(self.copy_up(ino, wanted)?),
                Some(Pending::Names(ino)) => {
                    _way = self.search_names(ino);
                    search = Search::Over;
                }
            }
        }
    }

    /// Renames, or returns what has to be done before. The caller holds `namespace` for writing.
    fn try_rename(
        &self,
        upper: &UpperLayer,
        (dir, name): (Ino, &[u8]),
        (new_dir, new_name): (Ino, &[u8]),
        mode: RenameMode,
        search: Search,
    ) -> Result<Option<Pending>> {
        let (parent, from) = self.directory_for_change(dir)?;
        let (new_parent, to) = self.directory_for_change(new_dir)?;
        let source = self.name(&from, name)?;
        let target = self.name_to_make(&to, new_name)?;
        let moved = source.found.as_ref().ok_or(Errno::NOENT)?;
        match (mode, &target.found) {
            (RenameMode::NoReplace | RenameMode::WhiteoutNoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            // Two names of one file: nothing happens, as POSIX has it.
            (_, Some(other)) if other.ino == moved.ino => return Ok(None),
            _ => {}
        }
        let (moved_object, pending) = self.ready_to_move(upper, &from, name, &source)?;
        if let Some(wanted) = pending {
            return Ok(Some(Pending::Copy(moved.ino, wanted)));
        }
        if let (RenameMode::Exchange, Some(other)) = (mode, &target.found) {
            let (other_object, pending) = self.ready_to_move(upper, &to, new_name, &target)?;
            if let Some(wanted) = pending {
                return Ok(Some(Pending::Copy(other.ino, wanted)));
            }
            self.mark_impure_for(upper, &new_parent, &moved_object)?;
            self.mark_impure_for(upper, &parent, &other_object)?;
            intend(&moved_object, (&from, name), (&to, new_name), Aim::Exchange(&other_object))?;
            self.exchange(upper, (&from, name, &moved_object), (&to, new_name, &other_object))?;
            return Ok(None);
        }
        let (replaced, whiteouts_inside) = self.ready_to_replace(&to, new_name, moved, &target)?;
        if let (Some(replaced), Some(other)) = (&replaced, &target.found)
            && self.keep_a_name(upper, replaced, other, (new_dir, new_name), search)
        {
            return Ok(Some(Pending::Names(replaced.ino)));
        }
        let directory = moved.kind == Kind::Directory;
        if directory {
            self.keep_lower(upper, &moved_object, &to)?;
            self.account_directory(&moved_object);
        }
        self.mark_impure_for(upper, &new_parent, &moved_object)?;
        let (from_fd, to_fd) = (fd(&from)?, fd(&to)?);
        let blocked = target.whiteout && directory;
        let whiteout = source.covered.is_some() || mode.leaves_whiteout();
        let only_in_lower = target.found.as_ref().is_some_and(|found| found.upper.is_none());
        let gone =
            replaced.as_ref().map(|object| Removed { ino: object.ino, only_in_lower, link: object.state().link });
        intend(&moved_object, (&from, name), (&to, new_name), Aim::Replace { gone, whiteout })?;
        survive::step();
        if let Some(replaced) = replaced.as_ref().filter(|_| whiteouts_inside) {
            self.clear_whiteouts(upper, replaced)?;
        }
        move_name(upper, (from_fd, name), (to_fd, new_name), whiteout, blocked)?;
        survive::step();
        if let Some(replaced) = &replaced {
            self.finish_removal(upper, new_dir, new_name, only_in_lower, replaced)?;
        }
        survive::step();
        moved_object.remove_place(dir, name);
        moved_object.add_place(new_dir, new_name);
        self.account_directory(&parent);
        self.account_directory(&new_parent);
        parent.unlist(name);
        new_parent.list(new_name);
        Ok(None)
    }

    /// Returns the object of what is to be moved, which must lie in the upper under its name and say where its data is, and
    /// what has to be copied up for that.
    pub(super) fn ready_to_move(
        &self,
        upper: &UpperLayer,
        dir: &Directory,
        name: &[u8],
        looked: &Name,
    ) -> Result<(Arc<Object>, Option<Wanted>)> {
        let found = looked.found.as_ref().ok_or(Errno::NOENT)?;
        let known = self.adopt(dir.ino, name, found, Hold::No)?;
        if found.upper.is_some() {
            let object = known.ok_or(Errno::STALE)?;
            let copied = self.keep_data(upper, &object)?;
            return Ok((object, copied.then_some(Wanted::Everything)));
        }
        if found.kind == Kind::Directory {
            self.lower.lookup(dir.ino, name)?;
            let object = self.objects.get_or_insert(found.ino, || {
                let state = super::object::State { merged: true, ..Default::default() };
                Object::new(found.ino, found.kind, true, state)
            });
            object.add_place(dir.ino, name);
            self.copy_up_directory(found.ino)?;
            return Ok((object, None));
        }
        let object = match known {
            Some(object) => object,
            None => {
                self.lower.lookup(dir.ino, name)?;
                let object = self
                    .objects
                    .get_or_insert(found.ino, || Object::new(found.ino, found.kind, true, Default::default()));
                object.add_place(dir.ino, name);
                object
            }
        };
        if !object.is_in_upper() {
            return Ok((object, Some(Wanted::Attributes)));
        }
        if self.keep_data(upper, &object)? {
            return Ok((object, Some(Wanted::Everything)));
        }
        // Another name of it was copied up; this one joins it, and stays if the move fails.
        let parent = self.objects.get(dir.ino).ok_or(Errno::STALE)?;
        self.mark_impure_for(upper, &parent, &object)?;
        let before = object.state().link;
        if let Some(link) = before {
            Intent::Join(Box::new(Join { dir: dir.ino, name: name.to_vec(), ino: object.ino, link })).note();
        }
        self.link_in_upper(upper, &object, fd(dir)?, name, false)?;
        survive::step();
        let link = object.state().link;
        if let Some(mut link) = link {
            link.covered = (link.covered + 1).min(link.all);
            object.state().link = Some(link);
            upper.set_link(object.ino, link)?;
        }
        Ok((object, None))
    }

    /// Checks that the target may be replaced. Returns its object, and whether it is a directory with whiteouts in it,
    /// over which the filesystem lets nothing be moved. Changes nothing yet, as the move may still fail.
    fn ready_to_replace(
        &self,
        dir: &Directory,
        name: &[u8],
        moved: &Found,
        target: &Name,
    ) -> Result<(Option<Leaving<'_>>, bool)> {
        let Some(other) = &target.found else { return Ok((None, false)) };
        match (moved.kind == Kind::Directory, other.kind == Kind::Directory) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            _ => {}
        }
        let object = self.prepare_removal(dir.ino, name, other)?;
        let mut whiteouts = false;
        if let (Kind::Directory, Some((file, _))) = (other.kind, &other.upper) {
            upper::for_each_name(file.as_fd(), &mut |_, _| {
                whiteouts = true;
                Ok(())
            })?;
        }
        Ok((Some(object), whiteouts))
    }

    /// Takes the whiteouts out of a directory that shows nothing, over which the filesystem would let nothing be moved.
    ///
    /// First it is made opaque, so that it shows nothing all the while. Should the move fail then, or all end here, it is
    /// as empty as before, and its number is noted, which the lower's directory does not tell any more.
    fn clear_whiteouts(&self, upper: &UpperLayer, directory: &Object) -> Result<()> {
        let file = self.upper_file(directory)?;
        self.account_before(directory, file.as_fd())?;
        if !directory.state().opaque {
            if let Some(layer) = self.lower.layer_of(directory.ino) {
                upper.record_number(file.as_fd(), Recorded { ino: directory.ino, layer, shared: false })?;
            }
            upper.set_opaque(file.as_fd())?;
            survive::step();
            let mut state = directory.state();
            (state.opaque, state.merged) = (true, false);
        }
        survive::step();
        upper::empty_directory(file.as_fd())?;
        self.account_directory(directory);
        Ok(())
    }

    /// Marks a directory so that it shows at its new place what it shows now.
    fn keep_lower(&self, upper: &UpperLayer, object: &Object, to: &Directory) -> Result<()> {
        let (merged, opaque) = {
            let state = object.state();
            (state.merged, state.opaque)
        };
        let file = self.upper_file(object)?;
        object.attributes_change();
        self.account_before(object, file.as_fd())?;
        if merged {
            if self.habits.noredirect {
                return Err(Errno::XDEV);
            }
            let path = self.lower.path(object.ino).ok_or(Errno::XDEV)?;
            return match upper.set_mark(file.as_fd(), b"redirect", &path) {
                Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP) => Err(Errno::XDEV),
                result => result,
            };
        }
        if to.lower.is_some() && !opaque {
            upper.set_opaque(file.as_fd())?;
            object.state().opaque = true;
        }
        Ok(())
    }

    fn exchange(
        &self,
        upper: &UpperLayer,
        (from, name, moved): (&Directory, &[u8], &Arc<Object>),
        (to, new_name, other): (&Directory, &[u8], &Arc<Object>),
    ) -> Result<()> {
        for (object, place) in [(moved, to), (other, from)] {
            if object.kind == Kind::Directory {
                self.keep_lower(upper, object, place)?;
                self.account_directory(object);
            }
        }
        survive::step();
        rustix::fs::renameat_with(fd(from)?, name, fd(to)?, new_name, RenameFlags::EXCHANGE)?;
        survive::step();
        let (old, new) =
            (Place { parent: from.ino, name: name.to_vec() }, Place { parent: to.ino, name: new_name.to_vec() });
        for (object, was, is) in [(moved, &old, &new), (other, &new, &old)] {
            object.remove_place(was.parent, &was.name);
            survive::step();
            object.add_place(is.parent, &is.name);
        }
        Ok(())
    }
}

/// What has to be done first.
enum Pending {
    /// This is to be copied up.
    Copy(Ino, Wanted),
    /// Names of this are to be searched for.
    Names(Ino),
}

/// What a move does to what has the new name.
enum Aim<'a> {
    Exchange(&'a Object),
    Replace { gone: Option<Removed>, whiteout: bool },
}

/// Notes what the names are like before a move.
fn intend(moved: &Object, from: (&Directory, &[u8]), to: (&Directory, &[u8]), aim: Aim<'_>) -> Result<()> {
    let identity = |object: &Object| Ok((object.ino, object.state().upper.ok_or(Errno::STALE)?));
    let (replaced, exchanged, whiteout) = match aim {
        Aim::Exchange(other) => (None, Some(identity(other)?), false),
        Aim::Replace { gone, whiteout } => (gone, None, whiteout),
    };
    let [from, to] = [from, to].map(|(dir, name)| (dir.ino, name.to_vec()));
    Intent::Rename(Box::new(Move { from, to, moved: identity(moved)?, replaced, exchanged, whiteout })).note();
    Ok(())
}

/// Moves a name in the upper, leaving a whiteout if asked; `blocked` says that a whiteout is in a directory's way.
fn move_name(
    upper: &UpperLayer,
    (from, name): (BorrowedFd<'_>, &[u8]),
    (to, new_name): (BorrowedFd<'_>, &[u8]),
    whiteout: bool,
    blocked: bool,
) -> Result<()> {
    if blocked {
        rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::EXCHANGE)?;
        survive::step();
        // The whiteout is at the old name now, right where one may be wanted.
        return if whiteout { Ok(()) } else { rustix::fs::unlinkat(from, name, rustix::fs::AtFlags::empty()) };
    }
    if !whiteout {
        return rustix::fs::renameat(from, name, to, new_name);
    }
    match rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::WHITEOUT) {
        Err(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {
            let staged = upper.stage_whiteout()?;
            rustix::fs::renameat(from, name, to, new_name).inspect_err(|_| upper.discard(&staged))?;
            survive::step();
            upper.put_in_place(&staged, from, name)
        }
        result => result,
    }
}

fn fd(dir: &Directory) -> Result<BorrowedFd<'_>> {
    dir.upper.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::STALE)
}
