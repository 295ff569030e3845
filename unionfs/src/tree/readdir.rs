//! Listing directories.
//!
//! A cookie is the place after an entry. Cookies are stable: whatever is created or deleted while somebody reads, each
//! name that stays is listed exactly once. In a directory that is only in the lowers an entry's cookie is its position
//! there, which never changes, so that no state is kept per reader.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Tree;
use super::directory::Directory;
use super::listing::Listing;
use super::object::Object;
use crate::Result;
use crate::node::{Ino, Kind, Stat};
use crate::upper::for_each_name;

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Continues the listing behind this entry.
    pub cookie: u64,
    /// The name.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: Kind,
    /// The attributes, if asked for.
    pub stat: Option<Stat>,
}

impl Tree {
    /// Calls `emit` with the entries of `dir` behind `cookie` (0 is the start), `.` and `..` included, until it breaks:
    /// then the entry it was called with has not been taken.
    ///
    /// With `attributes`, each entry comes with its attributes and each taken one but `.` and `..` counts as a lookup.
    pub fn read_dir(
        &self,
        dir: Ino,
        cookie: u64,
        attributes: bool,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let _names = self.read_names();
        self.read_dir_locked(dir, cookie, attributes, emit)
    }

    /// The same. The caller holds `namespace`.
    pub(super) fn read_dir_locked(
        &self,
        dir: Ino,
        cookie: u64,
        attributes: bool,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let directory = self.directory(dir)?;
        for (name, cookie) in [(b".".as_slice(), DOT), (b"..", DOT_DOT)].into_iter().skip(cookie.min(DOT_DOT) as usize)
        {
            let ino = if cookie == DOT { dir } else { self.parent_of(dir)? };
            let stat = if attributes { Some(self.stat_of(ino)?) } else { None };
            if emit(&DirEntry { cookie, name, ino, kind: Kind::Directory, stat }).is_break() {
                return Ok(());
            }
        }
        let place = cookie.saturating_sub(DOT_DOT);
        match (&directory.object, directory.lower) {
            (Some(object), _) => self.read_changed(&directory, object, place, attributes, emit),
            (None, Some(lower)) => self.read_lower(&directory, lower, place, attributes, emit),
            (None, None) => Ok(()),
        }
    }

    /// Lists a directory that the upper has no part in.
    fn read_lower(
        &self,
        directory: &Directory,
        lower: Ino,
        place: u64,
        attributes: bool,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        self.lower.for_each_child(lower, place, &mut |child| {
            let mut stat = None;
            if attributes {
                // A file with several names may be in the upper under another one.
                let found = match self.upper {
                    None => self.hold(child.ino, directory.ino, child.name),
                    Some(_) => self.lookup_in(directory, child.name),
                };
                match found {
                    Ok(found) => stat = Some(found),
                    Err(error) => {
                        result = Err(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            let cookie = child.position + DOT_DOT + 1;
            let flow = emit(&DirEntry { cookie, name: child.name, ino: child.ino, kind: child.kind, stat });
            if flow.is_break() && attributes {
                self.forget(child.ino, 1);
            }
            flow
        })?;
        result
    }

    /// Lists a directory with a side in the upper, or one that has been removed.
    fn read_changed(
        &self,
        directory: &Directory,
        object: &Object,
        place: u64,
        attributes: bool,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut listing = object.listing();
        if listing.is_none() {
            *listing = Some(self.make_listing(directory)?);
        }
        let Some(listing) = listing.as_ref() else { return Ok(()) };
        for (place, name) in listing.from(place) {
            let cookie = place + DOT_DOT + 1;
            let (ino, kind, stat) = if attributes {
                match self.lookup_in(directory, name) {
                    Ok(stat) => (stat.ino, stat.kind, Some(stat)),
                    // Only if the upper was changed behind our back.
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                }
            } else {
                let Some(found) = self.name(directory, name)?.found else { continue };
                (found.ino, found.kind, None)
            };
            if emit(&DirEntry { cookie, name, ino, kind, stat }).is_break() {
                if attributes {
                    self.forget(ino, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// Puts the names of both sides in order: those of the lower at their positions, the others behind.
    fn make_listing(&self, directory: &Directory) -> Result<Listing> {
        let mut in_upper = Vec::new();
        if let (Some(fd), Some(upper)) = (&directory.upper, &self.upper) {
            for_each_name(fd.as_fd(), &mut |name, kind| {
                let hidden = match kind {
                    FileType::CharacterDevice | FileType::RegularFile | FileType::Unknown => {
                        match upper.look(fd.as_fd(), name)? {
                            Some((file, raw)) => self.marks.shown_kind(file.as_fd(), &raw)?.is_none(),
                            None => true,
                        }
                    }
                    _ => false,
                };
                in_upper.push((name.to_vec(), hidden));
                Ok(())
            })?;
        }
        let mut from_upper: HashMap<Vec<u8>, bool> = in_upper.iter().cloned().collect();
        let first_new = match directory.lower {
            Some(lower) => self.lower.child_count(lower)?,
            None => 0,
        };
        let mut listing = Listing::new(first_new);
        if let Some(lower) = directory.lower {
            self.lower.for_each_child(lower, 0, &mut |child| {
                match from_upper.remove(child.name) {
                    Some(true) => listing.reserve(child.position, child.name),
                    _ => listing.insert_at(child.position, child.name),
                }
                ControlFlow::Continue(())
            })?;
        }
        for (name, hidden) in in_upper {
            if !hidden {
                listing.insert(&name);
            }
        }
        Ok(listing)
    }
}

/// Cookie of `.`.
const DOT: u64 = 1;
/// Cookie of `..`; the entries proper follow.
const DOT_DOT: u64 = 2;
