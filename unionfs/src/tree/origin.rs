//! Where in the lowers something in the upper came from: its number, its data, what shows through it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::Tree;
use super::directory::{Directory, Found};
use super::object::Content;
use crate::Result;
use crate::backing::{self, Identity, RawStat};
use crate::lower::{LowerTree, Place};
use crate::marks::Marks;
use crate::node::{Ino, Kind};
use crate::upper;

/// A node of the lower, and where it was found.
type InLower = (Ino, Place);

impl Tree {
    /// Describes a directory that was found in the upper.
    pub(super) fn found_directory(
        &self,
        dir: &Directory,
        (fd, raw): (Arc<OwnedFd>, RawStat),
        marks: &Marks,
        covered: Option<(Ino, Kind)>,
    ) -> Result<Found> {
        let by_name = self.upper.as_ref().map_or(Ok(false), |upper| upper.is_opaque_by_name(fd.as_fd()))?;
        let opaque = marks.opaque || by_name;
        let mut below = None;
        if !opaque {
            below = match &marks.redirect {
                Some(target) => self.redirected(dir, target)?.map(|(ino, _)| ino),
                None => covered.filter(|(_, kind)| *kind == Kind::Directory).map(|(ino, _)| ino),
            };
        }
        // Two directories cannot show the same lower one; the one that came first keeps it.
        let taken = |ino: &Ino| self.belongs_to_another(*ino, &raw);
        let below =
            below.filter(|ino| *ino != Ino::ROOT && self.is_lower(*ino, Kind::Directory)).filter(|ino| !taken(ino));
        // One that has become opaque under a number of the lower keeps that.
        let noted = || marks.number.filter(|_| marks.opaque).and_then(|number| self.lower.known_number(number));
        let number = below.or_else(|| noted().filter(|ino| *ino != Ino::ROOT && !taken(ino)));
        Ok(Found {
            ino: number.unwrap_or_else(|| self.number(backing::identity(&raw))),
            kind: Kind::Directory,
            upper: Some((fd, raw)),
            merged: below.is_some(),
            opaque,
            impure: marks.impure,
            content: Content::Own,
            data_place: None,
        })
    }

    /// Describes anything else that was found in the upper as `name`.
    pub(super) fn found_file(
        &self,
        dir: &Directory,
        name: &[u8],
        (fd, mut raw, kind): (Arc<OwnedFd>, RawStat, Kind),
        marks: &Marks,
        covered: Option<(Ino, Kind)>,
    ) -> Result<Found> {
        let data = match &marks.redirect {
            _ if !marks.metacopy || kind != Kind::Regular => None,
            Some(target) => self.redirected(dir, target)?,
            None => covered.zip(dir.lower).map(|((ino, _), lower)| (ino, Place { parent: lower, name: name.to_vec() })),
        };
        let data = data.filter(|(ino, _)| self.is_lower(*ino, Kind::Regular));
        let content = match &data {
            Some((ino, _)) => Content::Lower(*ino),
            None if marks.metacopy && kind == Kind::Regular => Content::Missing,
            None => Content::Own,
        };
        let came_from = match (marks.number, content) {
            (Some(number), _) => self.lower.known_number(number),
            (None, Content::Lower(ino)) => Some(ino),
            // Copied up by the kernel: its only name tells where from, unless it was renamed.
            _ if marks.origin && raw.nlink == 1 => covered.filter(|(_, covered)| *covered == kind).map(|(ino, _)| ino),
            _ => None,
        };
        let came_from = came_from.filter(|ino| !self.belongs_to_another(*ino, &raw));
        let ino = came_from.unwrap_or_else(|| self.number(backing::identity(&raw)));
        // Nobody copies its data then.
        let unknown = content != Content::Own && self.objects.get(ino).is_none();
        if unknown && self.recover_capability(fd.as_fd(), marks) {
            raw = self.upper_stat(fd.as_fd())?;
        }
        Ok(Found {
            ino,
            kind,
            upper: Some((fd, raw)),
            merged: false,
            opaque: false,
            impure: false,
            content,
            data_place: data.map(|(_, place)| place),
        })
    }

    /// Makes sure that the lower node with a file's data stays known. Returns it if a reference was counted for that,
    /// which is not needed for the node of the same number.
    pub(super) fn hold_data(&self, found: &Found) -> Result<Option<Ino>> {
        let (Content::Lower(data), Some(place)) = (found.content, &found.data_place) else { return Ok(None) };
        if data == found.ino {
            if !self.lower.contains(data) && self.lower.lookup(place.parent, &place.name)? != Some(data) {
                return Err(Errno::STALE);
            }
            return Ok(None);
        }
        self.lower.remember(data, place.parent, &place.name)?;
        Ok(Some(data))
    }

    /// Finds what a redirect in the directory `dir` leads to.
    fn redirected(&self, dir: &Directory, target: &[u8]) -> Result<Option<InLower>> {
        let Some(path) = target.strip_prefix(b"/") else {
            return match dir.lower {
                Some(lower) => self.in_lower(lower, target),
                None => Ok(None),
            };
        };
        let mut found: Option<InLower> = None;
        for part in path.split(|byte| *byte == b'/') {
            let parent = found.map_or(Ino::ROOT, |(ino, _)| ino);
            found = self.in_lower(parent, part)?;
            if found.is_none() {
                break;
            }
        }
        Ok(found)
    }

    fn in_lower(&self, dir: Ino, name: &[u8]) -> Result<Option<InLower>> {
        match self.lower.lookup(dir, name) {
            Ok(found) => Ok(found.map(|ino| (ino, Place { parent: dir, name: name.to_vec() }))),
            Err(Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_lower(&self, ino: Ino, kind: Kind) -> bool {
        // One that is not known yet was just found as what it is said to be.
        self.lower.stat(ino).map_or(true, |stat| stat.kind == kind)
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
