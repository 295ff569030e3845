//! Directories: their two sides, and finding names in them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::Tree;
use super::object::{Object, State};
use crate::Result;
use crate::backing::{self, Identity, RawStat};
use crate::lower::{LowerTree, Place};
use crate::marks;
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
    pub(super) upper: Option<(OwnedFd, RawStat)>,
    /// A directory through which a lower one shows, which then has the same number.
    pub(super) merged: bool,
    pub(super) opaque: bool,
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
            (Some(fd), Some(upper)) => upper.look(fd.as_fd(), name)?.map(|(fd, raw)| (upper, fd, raw)),
            _ => None,
        };
        let Some((upper, fd, raw)) = in_upper else {
            let found = match (covered, dir.lower) {
                (Some((ino, kind)), Some(_)) => {
                    Some(Found { ino, kind, upper: None, merged: kind == Kind::Directory, opaque: false })
                }
                _ => None,
            };
            return Ok(Name { found, covered, whiteout: false });
        };
        let Some(kind) = marks::shown_kind(fd.as_fd(), &raw)? else {
            return Ok(Name { found: None, covered, whiteout: true });
        };
        let found = if kind == Kind::Directory {
            self.found_directory(upper, dir, (fd, raw), covered)?
        } else {
            let ino = self.number_of_file(upper, (&fd, &raw), covered)?;
            Found { ino, kind, upper: Some((fd, raw)), merged: false, opaque: false }
        };
        Ok(Name { found: Some(found), covered, whiteout: false })
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
        let over_lower = self.lower.contains(found.ino);
        let link = if found.kind == Kind::Directory { None } else { self.link_of(found.ino) };
        let make = || {
            let state = State {
                upper: Some(backing::identity(raw)),
                merged: found.merged,
                opaque: found.opaque,
                link,
                ..State::default()
            };
            Object::new(found.ino, found.kind, over_lower, state)
        };
        let object =
            self.objects.get_or_insert_counted(found.ino, make, |object| self.count(object, dir, name, hold))?;
        object.state().upper.get_or_insert(backing::identity(raw));
        object.add_place(dir, name);
        if self.handles.get(object.ino).is_none() {
            self.handles.insert(object.ino, Arc::new(rustix::io::fcntl_dupfd_cloexec(fd, 0)?));
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
            let opened = rustix::fs::openat(&*fd, &*place.name, LOOK, Mode::empty())?;
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
        if let Some(pinned) = &object.state().pinned {
            return Some(Arc::clone(pinned));
        }
        self.handles.get(object.ino)
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
        let upper = match (&self.upper, link.copied) {
            (Some(upper), true) => {
                let fd = rustix::fs::openat(upper.links().dir(), Links::name(found.ino), LOOK, Mode::empty())?;
                Some(backing::identity(&backing::stat(fd.as_fd())?))
            }
            _ => None,
        };
        let make = || {
            let link = Some(link).filter(|link| link.all > 1);
            Object::new(found.ino, found.kind, true, State { upper, link, ..State::default() })
        };
        let object =
            self.objects.get_or_insert_counted(found.ino, make, |object| self.count(object, dir, name, hold))?;
        object.add_place(dir, name);
        Ok(Some(object))
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

    fn found_directory(
        &self,
        upper: &UpperLayer,
        dir: &Directory,
        (fd, raw): (OwnedFd, RawStat),
        covered: Option<(Ino, Kind)>,
    ) -> Result<Found> {
        let opaque = upper.mark(fd.as_fd(), b"opaque")?.is_some_and(|value| value == b"y");
        let mut below = None;
        if !opaque {
            below = match self.redirect_of(upper, &fd)? {
                Some(target) if target.starts_with(b"/") => self.lower_path(&target)?,
                Some(target) => match dir.lower {
                    Some(lower) => self.lower.lookup(lower, &target)?,
                    None => None,
                },
                None => covered.filter(|(_, kind)| *kind == Kind::Directory).map(|(ino, _)| ino),
            };
        }
        // Two directories cannot show the same lower one; the one that came first keeps it.
        let taken = |ino: &Ino| self.belongs_to_another(*ino, &raw);
        let below = below.filter(|ino| *ino != Ino::ROOT && self.is_lower_directory(*ino)).filter(|ino| !taken(ino));
        let ino = below.unwrap_or_else(|| self.number(backing::identity(&raw)));
        Ok(Found { ino, kind: Kind::Directory, upper: Some((fd, raw)), merged: below.is_some(), opaque })
    }

    fn redirect_of(&self, upper: &UpperLayer, fd: &OwnedFd) -> Result<Option<Vec<u8>>> {
        Ok(upper.mark(fd.as_fd(), b"redirect")?.filter(|target| marks::is_usable_redirect(target)))
    }

    fn is_lower_directory(&self, ino: Ino) -> bool {
        // A directory that is not known yet is one that was just found as such.
        self.lower.stat(ino).map_or(true, |stat| stat.kind == Kind::Directory)
    }

    /// Walks down the lowers.
    fn lower_path(&self, path: &[u8]) -> Result<Option<Ino>> {
        let mut ino = Ino::ROOT;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            if part == b"." || part == b".." {
                return Ok(None);
            }
            match self.lower.lookup(ino, part) {
                Ok(Some(next)) => ino = next,
                Ok(None) | Err(Errno::NOTDIR | Errno::NAMETOOLONG) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(ino))
    }

    /// Returns the number of a file in the upper: the one it had in the lower if it came from there.
    fn number_of_file(
        &self,
        upper: &UpperLayer,
        (fd, raw): (&OwnedFd, &RawStat),
        covered: Option<(Ino, Kind)>,
    ) -> Result<Ino> {
        let own = self.number(backing::identity(raw));
        let recorded = match upper.recorded_number(fd.as_fd())? {
            Some(ino) => Some(ino).filter(|ino| self.may_be_recorded(*ino)),
            // Copied up by the kernel: the name tells where from, unless it was renamed.
            None => match covered.filter(|(_, kind)| backing::kind(raw).is_ok_and(|own| own == *kind)) {
                Some((ino, _)) => upper.mark(fd.as_fd(), b"origin")?.map(|_| ino),
                None => None,
            },
        };
        Ok(recorded.filter(|ino| !self.belongs_to_another(*ino, raw)).unwrap_or(own))
    }

    /// Returns whether a recorded number can be right: an image's nodes have a known range.
    fn may_be_recorded(&self, ino: Ino) -> bool {
        match &self.lower {
            LowerTree::Image(lower) => {
                lower.contains(ino) && lower.stat(ino).is_ok_and(|stat| stat.kind != Kind::Directory)
            }
            LowerTree::Folders(_) => true,
        }
    }

    /// Returns whether the number is that of another file of the upper.
    fn belongs_to_another(&self, ino: Ino, raw: &RawStat) -> bool {
        let identity = self.objects.get(ino).and_then(|object| object.state().upper);
        identity.is_some_and(|identity| !upper::same(identity, raw))
    }

    /// Returns the number under which something born in the upper is shown.
    pub(super) fn number(&self, identity: Identity) -> Ino {
        match &self.lower {
            LowerTree::Image(lower) => Ino(lower.highest_ino().saturating_add(identity.ino.max(1))),
            LowerTree::Folders(lower) => lower.number(identity),
        }
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
