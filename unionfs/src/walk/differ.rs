//! Comparing the union with its lowers.
//!
//! Only what the upper has a part in is looked at, so the work is proportional to the changes. Directories are compared
//! name by name with what the lowers have under the same path, as `docker diff` does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rustix::io::Errno;

use super::mount_points::MountPoints;
use crate::Result;
use crate::node::{Ino, Kind, Stat, Timestamp};
use crate::spec::MountSpec;
use crate::tree::{OpenError, Tree};

/// One difference between a container and its image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path, with a leading slash.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It differs, or something in it does.
    Modified,
    /// It is new.
    Added,
    /// It is gone, with everything in it.
    Deleted,
}

/// Lists what a container changed, as `docker diff` does: sorted, directories before what is in them. Unused mount points
/// that were made for it are no changes.
pub fn changes(spec: &MountSpec, mount_points: &MountPoints) -> Result<Vec<Change>, super::WalkError> {
    let tree = Tree::observe(spec).map_err(Box::new).map_err(|error: Box<OpenError>| super::WalkError::Open(error))?;
    let mut found = Vec::new();
    Differ { tree: &tree, layered: false, mount_points }
        .run(&mut |difference| {
            let kind = match difference {
                Difference::Added { .. } => ChangeKind::Added,
                Difference::Modified { .. } | Difference::Containing { .. } => ChangeKind::Modified,
                Difference::Deleted { .. } => ChangeKind::Deleted,
                Difference::Opaque { .. } | Difference::Linked { .. } => return Ok(()),
            };
            let path = difference.path();
            // Docker does not list the root.
            if !path.is_empty() {
                found.push(Change { path: [b"/", path].concat(), kind });
            }
            Ok(())
        })
        .map_err(|error: Errno| super::WalkError::Read(error.into()))?;
    Ok(found)
}

/// A difference, told in an order in which it can be written to a layer.
#[derive(Debug)]
pub(super) enum Difference<'a> {
    /// A new node.
    Added { path: &'a [u8], stat: &'a Stat },
    /// A node with other attributes or content.
    Modified { path: &'a [u8], stat: &'a Stat },
    /// A directory that differs only in what it contains.
    Containing { path: &'a [u8], stat: &'a Stat },
    /// The directory just told hides what the lowers have there. Only where layers are compared.
    Opaque { path: &'a [u8] },
    /// A file that is the same, but has names in the upper. Only where layers are compared.
    Linked { path: &'a [u8], stat: &'a Stat },
    /// Nothing of this name any more.
    Deleted { path: &'a [u8] },
}

impl Difference<'_> {
    pub(super) fn path(&self) -> &[u8] {
        match self {
            Difference::Added { path, .. }
            | Difference::Modified { path, .. }
            | Difference::Containing { path, .. }
            | Difference::Opaque { path }
            | Difference::Linked { path, .. }
            | Difference::Deleted { path } => path,
        }
    }
}

/// Compares a tree with its lowers.
pub(super) struct Differ<'a> {
    pub(super) tree: &'a Tree,
    /// Tell it in terms of layers: a directory that took another one's place hides that whole, rather than being
    /// compared with it.
    pub(super) layered: bool,
    /// What was made for the container.
    pub(super) mount_points: &'a MountPoints,
}

/// A directory on the way. They are kept in a list, so that depth costs no stack.
struct Frame {
    stat: Stat,
    path_length: usize,
    /// Whether it has been told.
    told: bool,
    names: std::collections::btree_map::IntoIter<Vec<u8>, Sides>,
}

/// Who has a name.
#[derive(Clone, Copy, Default)]
struct Sides {
    now: bool,
    before: Option<Ino>,
}

type Tell<'a, E> = &'a mut dyn FnMut(&Difference<'_>) -> Result<(), E>;

impl Differ<'_> {
    /// Tells every difference.
    pub(super) fn run<E: From<Errno>>(&self, tell: Tell<'_, E>) -> Result<(), E> {
        let tree = self.tree;
        let Some(before) = tree.lower_root() else { return Ok(()) };
        let stat = tree.stat(Ino::ROOT)?;
        let mut path = Vec::new();
        if self.differs(&path, &tree.lower_stat(before)?, &stat)? {
            tell(&Difference::Modified { path: &path, stat: &stat })?;
        }
        // The root is told only if it was changed itself.
        let told = true;
        let before = tree.shows_lower(Ino::ROOT).then_some(before);
        let mut frames = vec![Frame { stat, path_length: 0, told, names: self.names(Ino::ROOT, before)? }];
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.path_length);
            let Some((name, sides)) = frame.names.next() else {
                let done = frame.stat.ino;
                frames.pop();
                tree.forget(done, 1);
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let dir = frame.stat.ino;
            let stat = match sides.now.then(|| tree.lookup(dir, &name)).transpose() {
                Ok(stat) => stat,
                // Deleted while we look.
                Err(Errno::NOENT | Errno::STALE) => None,
                Err(error) => return Err(error.into()),
            };
            let Some(stat) = stat else {
                if sides.before.is_some() {
                    tell_parents(&mut frames, &path, tell)?;
                    tell(&Difference::Deleted { path: &path })?;
                }
                continue;
            };
            if let Some(frame) = self.compare(&mut frames, &path, &stat, sides.before, tell)? {
                frames.push(frame);
            } else {
                tree.forget(stat.ino, 1);
            }
        }
        Ok(())
    }

    /// Tells about one node and returns the frame for what is in it, if that has to be looked at.
    fn compare<E: From<Errno>>(
        &self,
        frames: &mut [Frame],
        path: &[u8],
        stat: &Stat,
        before: Option<Ino>,
        tell: Tell<'_, E>,
    ) -> Result<Option<Frame>, E> {
        let tree = self.tree;
        let directory = stat.kind == Kind::Directory;
        let mut told = true;
        let mut below = before;
        match before {
            None if self.mount_points.has(tree, path, stat)? => return Ok(None),
            None => {
                tell_parents(frames, path, tell)?;
                tell(&Difference::Added { path, stat })?;
            }
            Some(before) => {
                let old = tree.lower_stat(before)?;
                let hides =
                    directory && old.kind == Kind::Directory && !(stat.ino == before && tree.shows_lower(before));
                if self.differs(path, &old, stat)? || self.layered && hides {
                    tell_parents(frames, path, tell)?;
                    tell(&Difference::Modified { path, stat })?;
                } else {
                    told = false;
                }
                if hides && self.layered {
                    tell(&Difference::Opaque { path })?;
                }
                if old.kind != Kind::Directory || hides && self.layered {
                    below = None;
                }
                if !directory && !told && self.layered && stat.nlink > 1 && tree.is_in_upper(stat.ino) {
                    tell_parents(frames, path, tell)?;
                    tell(&Difference::Linked { path, stat })?;
                }
            }
        }
        let untouched = before == Some(stat.ino) && !tree.may_differ_below(stat.ino);
        if !directory || untouched {
            return Ok(None);
        }
        let names = self.names(stat.ino, below)?;
        Ok(Some(Frame { stat: *stat, path_length: path.len(), told, names }))
    }

    /// Returns whether a node was changed.
    ///
    /// Without layers this is what Docker says: directories that only got other contents were not, and it looks at file
    /// capabilities alone among the attributes and trusts size and time. A layer must not miss anything, so there a
    /// directory counts whose time moved, be it that an entry came and went. The root does not: its time is that of the
    /// upper folder, whoever made that. Nor does one in which a mount point may have been made.
    fn differs(&self, path: &[u8], before: &Stat, now: &Stat) -> Result<bool> {
        if before.kind != now.kind
            || before.permissions != now.permissions
            || (before.uid, before.gid) != (now.uid, now.gid)
            || before.device != now.device
        {
            return Ok(true);
        }
        let directory = now.kind == Kind::Directory;
        let time_counts = !directory || self.layered && !path.is_empty() && !self.mount_points.lie_in(path);
        if !directory && before.size != now.size {
            return Ok(true);
        }
        if time_counts && !same_time(before.mtime, now.mtime) {
            return Ok(true);
        }
        if !self.tree.is_in_upper(now.ino) {
            return Ok(false);
        }
        let counts = |name: &[u8]| self.layered || name == b"security.capability";
        Ok(!self.tree.same_xattrs(before.ino, now.ino, &counts)?
            || self.layered && !self.tree.same_data(before, now)?)
    }

    /// Returns all names of a directory, now and before.
    fn names<E: From<Errno>>(
        &self,
        now: Ino,
        before: Option<Ino>,
    ) -> Result<std::collections::btree_map::IntoIter<Vec<u8>, Sides>, E> {
        let mut names: BTreeMap<Vec<u8>, Sides> = BTreeMap::new();
        self.tree.read_dir(now, 0, false, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.entry(entry.name.to_vec()).or_default().now = true;
            }
            ControlFlow::Continue(())
        })?;
        if let Some(before) = before {
            self.tree.lower_names(before, &mut |name, ino| {
                names.entry(name.to_vec()).or_default().before = Some(ino);
            })?;
        }
        Ok(names.into_iter())
    }
}

/// Tells the directories above a difference that have not been told yet.
fn tell_parents<E>(frames: &mut [Frame], path: &[u8], tell: Tell<'_, E>) -> Result<(), E> {
    for frame in frames {
        if !frame.told {
            frame.told = true;
            tell(&Difference::Containing { path: &path[..frame.path_length], stat: &frame.stat })?;
        }
    }
    Ok(())
}

/// Some filesystems and archives keep no fractions of a second.
fn same_time(a: Timestamp, b: Timestamp) -> bool {
    a.seconds == b.seconds && (a.nanoseconds == b.nanoseconds || a.nanoseconds == 0 || b.nanoseconds == 0)
}
