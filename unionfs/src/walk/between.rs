//! Comparing two trees: images, or what containers have made of them.
//!
//! Everything is compared but data that is known to be the same: bytes at one place of one layer, told by the layer's
//! digest and the offset in its tar, are not read.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rustix::io::Errno;

use super::WalkError;
use super::differ::ChangeKind;
use super::mount_points::MountPoints;
use crate::Result;
use crate::node::{Ino, Kind, Stat};
use crate::spec::MountSpec;
use crate::tree::{OpenError, Tree};

/// What one path is in two trees that differ there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path, with a leading slash.
    pub path: Vec<u8>,
    /// What it was; `None` if it is new.
    pub before: Option<Side>,
    /// What it is; `None` if it is gone.
    pub after: Option<Side>,
    /// What differs, where both have it.
    pub aspects: Vec<Aspect>,
}

/// A path in one of the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The type.
    pub kind: Kind,
    /// Bytes of a regular file, else 0.
    pub size: u64,
}

/// In what two nodes of one path can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// The type.
    Kind,
    /// The permissions.
    Mode,
    /// User or group.
    Owner,
    /// The time of the last change; not looked at for directories, where it follows from their entries.
    Time,
    /// The bytes of a file, the target of a symbolic link, the number of a device.
    Content,
    /// The extended attributes.
    Attributes,
}

impl Difference {
    /// Returns what happened to the path.
    pub fn change(&self) -> ChangeKind {
        match (&self.before, &self.after) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Deleted,
            _ => ChangeKind::Modified,
        }
    }
}

/// Tells every path in which two trees differ: sorted, directories before what is in them. Of what is in one tree only,
/// everything is told, but unused mount points that were made for it.
pub fn compare(
    [before, after]: [(&MountSpec, &MountPoints); 2],
    tell: &mut dyn FnMut(Difference) -> std::io::Result<()>,
) -> Result<(), WalkError> {
    let open = |spec| Tree::observe(spec).map_err(Box::new).map_err(|error: Box<OpenError>| WalkError::Open(error));
    let made = [before.1, after.1];
    let (before, after) = (open(before.0)?, open(after.0)?);
    let buffers = [vec![0; COMPARED], vec![0; COMPARED]];
    Comparison { before: &before, after: &after, made, buffers }.run(tell)
}

struct Comparison<'a> {
    before: &'a Tree,
    after: &'a Tree,
    /// What was made for each of them to mount on.
    made: [&'a MountPoints; 2],
    /// For the bytes of two files, one file after the other.
    buffers: [Vec<u8>; 2],
}

/// A directory on the way. They are kept in a list, so that depth costs no stack.
struct Frame {
    before: Option<Ino>,
    after: Option<Ino>,
    path_length: usize,
    names: std::collections::btree_map::IntoIter<Vec<u8>, Sides>,
}

/// Which trees have a name.
#[derive(Clone, Copy, Default)]
struct Sides {
    before: bool,
    after: bool,
}

impl Comparison<'_> {
    fn run(&mut self, tell: &mut dyn FnMut(Difference) -> std::io::Result<()>) -> Result<(), WalkError> {
        let root = (self.before.stat(Ino::ROOT)?, self.after.stat(Ino::ROOT)?);
        let aspects = self.aspects(&root.0, &root.1)?;
        if !aspects.is_empty() {
            let path = b"/".to_vec();
            let difference = Difference { path, before: Some(side(&root.0)), after: Some(side(&root.1)), aspects };
            tell(difference).map_err(WalkError::Read)?;
        }
        let mut path = Vec::new();
        let mut frames = vec![self.frame(Some(Ino::ROOT), Some(Ino::ROOT), 0)?];
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.path_length);
            let Some((name, sides)) = frame.names.next() else {
                for (tree, ino) in [(self.before, frame.before), (self.after, frame.after)] {
                    if let Some(ino) = ino {
                        tree.forget(ino, 1);
                    }
                }
                frames.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&name);
            let before = look(self.before, frame.before.filter(|_| sides.before), &name)?;
            let after = look(self.after, frame.after.filter(|_| sides.after), &name)?;
            let only = match (&before, &after) {
                (Some(only), None) => Some((self.before, only, self.made[0])),
                (None, Some(only)) => Some((self.after, only, self.made[1])),
                _ => None,
            };
            if let Some((tree, stat, made)) = only
                && made.has(tree, &path[1..], stat)?
            {
                tree.forget(stat.ino, 1);
                continue;
            }
            let aspects = match (&before, &after) {
                (Some(before), Some(after)) => self.aspects(before, after)?,
                _ => Vec::new(),
            };
            if before.is_some() != after.is_some() || !aspects.is_empty() {
                let (before, after) = (before.as_ref().map(side), after.as_ref().map(side));
                tell(Difference { path: path.clone(), before, after, aspects }).map_err(WalkError::Read)?;
            }
            let directory = |stat: &Option<Stat>| stat.filter(|stat| stat.kind == Kind::Directory).map(|stat| stat.ino);
            for (tree, stat) in [(self.before, &before), (self.after, &after)] {
                if let (Some(stat), None) = (stat, directory(stat)) {
                    tree.forget(stat.ino, 1);
                }
            }
            let (before, after) = (directory(&before), directory(&after));
            if before.is_some() || after.is_some() {
                frames.push(self.frame(before, after, path.len())?);
            }
        }
        Ok(())
    }

    fn frame(&self, before: Option<Ino>, after: Option<Ino>, path_length: usize) -> Result<Frame> {
        let mut names: BTreeMap<Vec<u8>, Sides> = BTreeMap::new();
        let mut list = |tree: &Tree, directory: Option<Ino>, mark: fn(&mut Sides)| match directory {
            None => Ok(()),
            Some(directory) => tree.read_dir(directory, 0, false, &mut |entry| {
                if entry.name != b"." && entry.name != b".." {
                    mark(names.entry(entry.name.to_vec()).or_default());
                }
                ControlFlow::Continue(())
            }),
        };
        list(self.before, before, |sides| sides.before = true)?;
        list(self.after, after, |sides| sides.after = true)?;
        Ok(Frame { before, after, path_length, names: names.into_iter() })
    }

    /// Returns in what two nodes differ.
    fn aspects(&mut self, before: &Stat, after: &Stat) -> Result<Vec<Aspect>> {
        if before.kind != after.kind {
            return Ok(vec![Aspect::Kind]);
        }
        let mut found = Vec::new();
        let mut note = |differs: bool, aspect: Aspect| {
            if differs {
                found.push(aspect);
            }
        };
        note(before.permissions != after.permissions, Aspect::Mode);
        note((before.uid, before.gid) != (after.uid, after.gid), Aspect::Owner);
        note(before.kind != Kind::Directory && before.mtime != after.mtime, Aspect::Time);
        note(!self.same_content(before, after)?, Aspect::Content);
        note(attributes(self.before, before.ino)? != attributes(self.after, after.ino)?, Aspect::Attributes);
        Ok(found)
    }

    fn same_content(&mut self, before: &Stat, after: &Stat) -> Result<bool> {
        match before.kind {
            Kind::Regular if before.size != after.size => Ok(false),
            Kind::Regular => {
                let place = self.before.data_in_layers(before.ino);
                if place.is_some() && place == self.after.data_in_layers(after.ino) {
                    return Ok(true);
                }
                self.same_bytes(before, after)
            }
            Kind::Symlink => Ok(self.before.read_link(before.ino)? == self.after.read_link(after.ino)?),
            Kind::CharDevice | Kind::BlockDevice => Ok(before.device == after.device),
            Kind::Directory | Kind::Fifo | Kind::Socket => Ok(true),
        }
    }

    fn same_bytes(&mut self, before: &Stat, after: &Stat) -> Result<bool> {
        let [old, new] = &mut self.buffers;
        let mut offset = 0;
        while offset < before.size {
            let read = self.before.read(before.ino, old, offset)?;
            if read == 0 || self.after.read(after.ino, &mut new[..read], offset)? != read || old[..read] != new[..read]
            {
                return Ok(false);
            }
            offset += read as u64;
        }
        Ok(true)
    }
}

fn look(tree: &Tree, directory: Option<Ino>, name: &[u8]) -> Result<Option<Stat>> {
    let Some(directory) = directory else { return Ok(None) };
    match tree.lookup(directory, name) {
        Ok(stat) => Ok(Some(stat)),
        // Deleted while we look.
        Err(Errno::NOENT | Errno::STALE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn side(stat: &Stat) -> Side {
    Side { kind: stat.kind, size: if stat.kind == Kind::Regular { stat.size } else { 0 } }
}

fn attributes(tree: &Tree, ino: Ino) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let list = tree.list_xattrs(ino, true)?;
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_vec(), tree.xattr(ino, name)?))).collect()
}

/// Bytes compared at a time.
const COMPARED: usize = 1 << 18;
