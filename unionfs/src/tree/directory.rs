//! Directories: their two sides, and finding names in them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Tree;
use super::object::{Content, Object, State};
use crate::Result;
use crate::backing::{self, Identity, RawStat};
use crate::beneath::{Crossing, open_beneath};
use crate::lower::Place;
use crate::marks::Marks;
use crate::node::{Ino, Kind};
use crate::upper::{self, LOOK, Link, Links, UpperLayer};

/// A directory as it is on both sides.
pub(super) struct Directory {
    pub(super) ino: Ino,
    /// `None` for one that is in the lower only.
    pub(super) object: Option<Arc<Object>>,
    pub(super) upper: Option<Arc<OwnedFd>>,
    /// The lower directory that shows through.
    pub(super) lower: Option<Ino>,
}

/// What a name leads to.
pub(super) struct Found {
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    /// The file in the upper under this very name.
    pub(super) upper: Option<(Arc<OwnedFd>, RawStat)>,
    /// A directory through which a lower one shows, which then has the same number.
    pub(super) merged: bool,
    pub(super) opaque: bool,
    pub(super) impure: bool,
    /// Where the data of a file in the upper is.
    pub(super) content: Content,
    /// Where in the lower that is, if there.
    pub(super) data_place: Option<Place>,
}

impl Found {
    /// What is in the lower only.
    fn lower(ino: Ino, kind: Kind) -> Found {
        let merged = kind == Kind::Directory;
        Found { ino, kind, upper: None, merged, opaque: false, impure: false, content: Content::Own, data_place: None }
    }
}

/// Whether the kernel is told about what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Yes,
    No,
}

/// The state of a name.
pub(super) struct Name {
    pub(super) found: Option<Found>,
    /// What the lower has under this name, be it hidden or not. It takes a whiteout to delete the name.
    pub(super) covered: Option<(Ino, Kind)>,
    /// The upper has a whiteout.
    pub(super) whiteout: bool,
}

impl Tree {
    /// Returns both sides of a directory. The caller holds `namespace`.
    pub(super) fn directory(&self, ino: Ino) -> Result<Directory> {
        let object = if self.upper.is_some() { self.objects.get(ino) } else { None };
        let Some(object) = object else {
            return Ok(Directory { ino, object: None, upper: None, lower: Some(ino) });
        };
        if object.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        if object.is_removed() {
            return Ok(Directory { ino, object: Some(object), upper: None, lower: None });
        }
        let (merged, in_upper) = {
            let state = object.state();
            (state.merged, state.upper.is_some())
        };
        let upper = if in_upper { Some(self.upper_file(&object)?) } else { None };
        Ok(Directory { ino, upper, lower: (merged || !in_upper).then_some(ino), object: Some(object) })
    }

    /// Finds out what is under a name. The caller holds `namespace`.
    pub(super) fn name(&self, dir: &Directory, name: &[u8]) -> Result<Name> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if !is_plain_name(name) {
            // Nothing asks for one; a damaged index may list one. It must never reach a system call.
            return Err(Errno::INVAL);
        }
        let covered = match dir.lower {
            Some(lower) => self.lower.find(lower, name)?,
            None => None,
        };
        let in_upper = match (&dir.upper, &self.upper) {
            (Some(fd), Some(upper)) => upper.look(fd.as_fd(), name)?,
            _ => None,
        };
        let Some((fd, raw)) = in_upper else {
            let found = match (covered, dir.lower) {
                (Some((ino, kind)), Some(_)) => Some(Found::lower(ino, kind)),
                _ => None,
            };
            return Ok(Name { found, covered, whiteout: false });
        };
        let fd = Arc::new(fd);
        if let Some(ino) = self.plain_file(dir.ino, name, &raw) {
            let found = Found { upper: Some((fd, raw)), ..Found::lower(ino, Kind::Regular) };
            return Ok(Name { found: Some(found), covered, whiteout: false });
        }
        let marks = if backing::is_whiteout(&raw) { Marks::default() } else { self.marks.read(fd.as_fd())? };
        let found = match marks.shown_kind(&raw)? {
            None => return Ok(Name { found: None, covered, whiteout: true }),
            Some(Kind::Directory) => self.found_directory(dir, (fd, raw), &marks, covered)?,
            Some(kind) => self.found_file(dir, name, (fd, raw, kind), &marks, covered)?,
        };
        Ok(Name { found: Some(found), covered, whiteout: false })
    }

    /// As [`name`](Self::name), for a name that is about to be made. The kernel has looked it up just before, so that
    /// mostly there is nothing to look for. The caller holds `namespace` for writing.
    pub(super) fn name_to_make(&self, dir: &Directory, name: &[u8]) -> Result<Name> {
        let absent = dir.object.as_ref().and_then(|object| object.absent().take());
        // Only this change has begun since.
        let unchanged = |state: u64| state + 1 == self.changes.load(Ordering::Relaxed);
        match absent {
            Some((state, absent)) if unchanged(state) && absent == name => {
                Ok(Name { found: None, covered: None, whiteout: false })
            }
            _ => self.name(dir, name),
        }
    }

    /// Returns the number of a regular file that was made in the upper, if it is known by this name: such a file has no
    /// marks that would have to be read.
    fn plain_file(&self, dir: Ino, name: &[u8], raw: &RawStat) -> Option<Ino> {
        if raw.mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let identity = backing::identity(raw);
        let object = self.objects.get(self.number(identity))?;
        let state = object.state();
        let made_there = object.kind == Kind::Regular
            && !object.over_lower
            && state.upper == Some(identity)
            && state.content == Content::Own
            && state.link.is_none();
        let known = || state.places.iter().any(|place| place.parent == dir && place.name == name);
        (made_there && known()).then_some(object.ino)
    }

    /// Makes the object of something found, if it needs one, and notes the name. With `hold`, a reference to the object
    /// is counted.
    pub(super) fn adopt(&self, dir: Ino, name: &[u8], found: &Found, hold: Hold) -> Result<Option<Arc<Object>>> {
        let Some((fd, raw)) = &found.upper else {
            return self.adopt_lower(dir, name, found, hold);
        };
        if found.merged {
            // The lower's side must be known before anybody asks for it through the number.
            self.know_lower(dir, name, found)?;
        }
        let held = self.hold_data(found)?;
        let link = if found.kind == Kind::Directory { None } else { self.link_of(found.ino) };
        let make = || {
            let state =
                State { merged: found.merged, opaque: found.opaque, impure: found.impure, link, ..State::default() };
            Object::new(found.ino, found.kind, self.lower.contains(found.ino), state)
        };
        let counted = self.objects.get_or_insert_counted(found.ino, make, |object| {
            self.count(object, dir, name, hold)?;
            let mut state = object.state();
            let new = state.upper.is_none();
            if new {
                state.copy_is_found(backing::identity(raw), found.content, link);
                state.held = held;
            }
            Ok(new)
        });
        if let Some(held) = held.filter(|_| !matches!(counted, Ok((_, true)))) {
            self.lower.forget(held, 1);
        }
        let (object, _) = counted?;
        object.add_place(dir, name);
        if self.handles.get(object.ino).is_none() {
            self.handles.insert(object.ino, Arc::clone(fd));
        }
        Ok(Some(object))
    }

    /// Returns a descriptor of the object's file in the upper. The caller holds `namespace`.
    pub(super) fn upper_file(&self, object: &Object) -> Result<Arc<OwnedFd>> {
        let upper = self.upper.as_ref().ok_or(Errno::STALE)?;
        if let Some(fd) = self.open_already(object) {
            return Ok(fd);
        }
        // Up to the nearest directory that is open, then down again: depth must not cost stack.
        let mut way: Vec<(Arc<Object>, Place)> = Vec::new();
        let mut current = Step::Object(object);
        let mut fd = loop {
            let next = match &current {
                Step::Object(object) => self.first_place(object)?,
                Step::Shared(object) => self.first_place(object)?,
            };
            if next.parent == LINKS {
                // Not below the root at all.
                return self.open_link(upper, object, &next);
            }
            let parent = self.objects.get(next.parent).ok_or(Errno::STALE)?;
            way.push((Arc::clone(&parent), next));
            if let Some(fd) = self.open_already(&parent) {
                break fd;
            }
            current = Step::Shared(parent);
        };
        while let Some((_, place)) = way.pop() {
            let target = way.last().map_or(object, |(parent, _)| &**parent);
            let opened = open_beneath(fd.as_fd(), &place.name, OFlags::PATH, Crossing::Refused)?;
            fd = self.checked(target, opened)?;
        }
        Ok(fd)
    }

    fn open_link(&self, upper: &UpperLayer, object: &Object, place: &Place) -> Result<Arc<OwnedFd>> {
        let opened = rustix::fs::openat(upper.links().dir(), &*place.name, LOOK, Mode::empty())?;
        self.checked(object, opened)
    }

    /// Makes sure that it is still the object's file, and keeps it open.
    fn checked(&self, object: &Object, fd: OwnedFd) -> Result<Arc<OwnedFd>> {
        let raw = backing::stat(fd.as_fd())?;
        if !object.state().upper.is_some_and(|identity| upper::same(identity, &raw)) {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(fd);
        self.handles.insert(object.ino, Arc::clone(&fd));
        Ok(fd)
    }

    fn open_already(&self, object: &Object) -> Option<Arc<OwnedFd>> {
        if object.ino == Ino::ROOT {
            return self.root_file.clone();
        }
        let open = {
            let state = object.state();
            // What is really open is asked for less.
            state.data.as_ref().map(|data| &data.file).or(state.pinned.as_ref()).map(Arc::clone)
        };
        open.or_else(|| self.handles.get(object.ino))
    }

    /// Returns a name of the object under which its file lies in the upper.
    fn first_place(&self, object: &Object) -> Result<Place> {
        let state = object.state();
        let Some(link) = state.link.filter(|link| link.copied) else {
            return state.places.first().cloned().ok_or(Errno::STALE);
        };
        debug_assert!(link.all > 1);
        Ok(Place { parent: LINKS, name: Links::name(object.ino).into_bytes() })
    }

    fn adopt_lower(&self, dir: Ino, name: &[u8], found: &Found, hold: Hold) -> Result<Option<Arc<Object>>> {
        if found.kind == Kind::Directory || self.upper.is_none() {
            return Ok(None);
        }
        self.know_lower(dir, name, found)?;
        let known = self.objects.get(found.ino);
        let link = match (&known, self.link_of(found.ino)) {
            (_, Some(link)) => link,
            // Copied up or removed under its only name; a damaged index has it here as well.
            (Some(_), None) => Link { all: 1, covered: 0, copied: false },
            (None, None) => return Ok(None),
        };
        let copy = match &self.upper {
            Some(upper) if link.copied => self.shared_copy(upper, found.ino)?,
            _ => None,
        };
        let make = || {
            let link = Some(Link { copied: copy.is_some(), ..link }).filter(|link| link.all > 1);
            let (upper, content) = copy.map_or((None, Content::Own), |(upper, content)| (Some(upper), content));
            Object::new(found.ino, found.kind, true, State { upper, content, link, ..State::default() })
        };
        let (object, ()) =
            self.objects.get_or_insert_counted(found.ino, make, |object| self.count(object, dir, name, hold))?;
        object.add_place(dir, name);
        Ok(Some(object))
    }

    /// Looks at the copy of a lower file with several names that another name led to.
    fn shared_copy(&self, upper: &UpperLayer, ino: Ino) -> Result<Option<(Identity, Content)>> {
        let fd = match rustix::fs::openat(upper.links().dir(), Links::name(ino), LOOK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let marks = self.marks.read(fd.as_fd())?;
        if marks.number.and_then(|number| self.lower.known_number(number)).is_some_and(|number| number != ino) {
            return Ok(None);
        }
        let content = if marks.metacopy { Content::Lower(ino) } else { Content::Own };
        Ok(Some((backing::identity(&backing::stat(fd.as_fd())?), content)))
    }

    /// Counts a reference to an object, if asked. Called under the lock of its shard.
    fn count(&self, object: &Object, dir: Ino, name: &[u8], hold: Hold) -> Result<()> {
        match hold {
            Hold::No => Ok(()),
            Hold::Yes if object.over_lower => self.lower.remember(object.ino, dir, name),
            Hold::Yes => {
                object.references.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Makes sure that the lower can be asked about a node by its number.
    fn know_lower(&self, dir: Ino, name: &[u8], found: &Found) -> Result<()> {
        if self.lower.contains(found.ino) {
            return Ok(());
        }
        match self.lower.lookup(dir, name)? {
            Some(ino) if ino == found.ino => Ok(()),
            _ => Err(Errno::STALE),
        }
    }

    /// Returns what is known of the links of a lower file with several names.
    fn link_of(&self, ino: Ino) -> Option<Link> {
        let known = self.upper.as_ref().and_then(|upper| upper.links().get(ino));
        known.or_else(|| {
            let all = self.lower.stat(ino).ok()?.nlink;
            (all > 1).then_some(Link { all, covered: 0, copied: false })
        })
    }
}

enum Step<'a> {
    Object(&'a Object),
    Shared(Arc<Object>),
}

/// Returns whether a name leads to something in its directory and nowhere else.
pub(super) fn is_plain_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Stands for the folder of hard links where a place has its parent.
const LINKS: Ino = Ino(0);
/// Longest name.
const NAME_MAX: usize = 255;
