//! Writing a tree, or what changed in it, to a tar.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::ops::{ControlFlow, Range};

use rustix::io::Errno;
use strata_layer::tar_writer::{TarEntry, TarKind, TarWriteError, TarWriter};

use super::differ::{Differ, Difference};
use super::mount_points::MountPoints;
use crate::Result;
use crate::node::{Ino, Kind, Stat};
use crate::spec::MountSpec;
use crate::tree::{OpenError, Tree};

/// Why a tree could not be walked or written.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The layers cannot be used.
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
    /// A layer cannot be read.
    #[error("read the container's filesystem")]
    Read(#[source] io::Error),
    /// The archive cannot be written, or something cannot be expressed in one.
    #[error(transparent)]
    Write(#[from] TarWriteError),
}

impl From<Errno> for WalkError {
    fn from(error: Errno) -> WalkError {
        WalkError::Read(error.into())
    }
}

/// Writes the whole tree as users see it, with the ids that are on disk.
pub fn write_merged<W: Write>(spec: &MountSpec, out: &mut TarWriter<W>) -> Result<(), WalkError> {
    let tree = observe(spec)?;
    let mut writer = Writer { tree: &tree, out, first_names: HashMap::new() };
    writer.entry(b"", &tree.stat(Ino::ROOT)?)?;
    let mut path = Vec::new();
    let mut open = vec![(Ino::ROOT, 0, names(&tree, Ino::ROOT)?.into_iter())];
    while let Some((dir, length, rest)) = open.last_mut() {
        path.truncate(*length);
        let Some(name) = rest.next() else {
            tree.forget(*dir, 1);
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let stat = match tree.lookup(*dir, &name) {
            Ok(stat) => stat,
            // Deleted while we look.
            Err(Errno::NOENT | Errno::STALE) => continue,
            Err(error) => return Err(error.into()),
        };
        writer.entry(&path, &stat)?;
        if stat.kind == Kind::Directory {
            open.push((stat.ino, path.len(), names(&tree, stat.ino)?.into_iter()));
        } else {
            tree.forget(stat.ino, 1);
        }
    }
    Ok(())
}

/// Writes a layer that holds exactly the changes of the upper, with whiteouts and opaque markers.
///
/// Files that were copied up and are as before are left out, unless links join them to something changed, and so are unused
/// mount points that were made for the container.
pub fn write_changes<W: Write>(
    spec: &MountSpec,
    mount_points: &MountPoints,
    out: &mut TarWriter<W>,
) -> Result<(), WalkError> {
    let tree = observe(spec)?;
    let mut writer = Writer { tree: &tree, out, first_names: HashMap::new() };
    Differ { tree: &tree, layered: true, mount_points }.run(&mut |difference| match difference {
        Difference::Added { path, stat }
        | Difference::Modified { path, stat }
        | Difference::Containing { path, stat }
        | Difference::Linked { path, stat } => writer.entry(path, stat),
        Difference::Opaque { path } => writer.marker(path, TarKind::Opaque),
        Difference::Deleted { path } => writer.marker(path, TarKind::Whiteout),
    })
}

fn observe(spec: &MountSpec) -> Result<Tree, WalkError> {
    let mut spec = spec.clone();
    // Layers hold the container's ids.
    (spec.options.uid_map, spec.options.gid_map) = (None, None);
    Ok(Tree::observe(&spec).map_err(Box::new)?)
}

fn names(tree: &Tree, dir: Ino) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    tree.read_dir(dir, 0, false, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            names.push(entry.name.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    names.sort_unstable();
    Ok(names)
}

struct Writer<'a, W> {
    tree: &'a Tree,
    out: &'a mut TarWriter<W>,
    /// Files with several names, and the one they were written under.
    first_names: HashMap<Ino, Vec<u8>>,
}

impl<W: Write> Writer<'_, W> {
    fn entry(&mut self, path: &[u8], stat: &Stat) -> Result<(), WalkError> {
        let xattrs = self.xattrs(stat.ino)?;
        let xattrs: Vec<(&[u8], &[u8])> = xattrs.iter().map(|(name, value)| (&**name, &**value)).collect();
        let target;
        let first;
        let kind = match stat.kind {
            Kind::Directory => TarKind::Directory,
            _ if stat.nlink > 1 && self.first_names.contains_key(&stat.ino) => {
                first = self.first_names.get(&stat.ino).cloned().unwrap_or_default();
                TarKind::HardLink { target: &first }
            }
            Kind::Regular => TarKind::Regular { size: stat.size },
            Kind::Symlink => {
                target = self.tree.read_link(stat.ino)?;
                TarKind::Symlink { target: &target }
            }
            Kind::CharDevice => TarKind::CharDevice(stat.device),
            Kind::BlockDevice => TarKind::BlockDevice(stat.device),
            Kind::Fifo => TarKind::Fifo,
            Kind::Socket => TarKind::Socket,
        };
        let entry = TarEntry {
            path,
            kind,
            permissions: stat.permissions,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: &xattrs,
        };
        if let TarKind::Regular { size } = kind {
            let ranges = if stat.blocks.saturating_mul(512) < size {
                self.data_ranges(stat)?
            } else {
                std::iter::once(0..size).collect()
            };
            let mut content = Content { tree: self.tree, ino: stat.ino, ranges: ranges.clone(), next: 0 };
            if ranges.len() == 1 && ranges[0] == (0..size) || size == 0 {
                self.out.append_with(&entry, &mut content)?;
            } else {
                self.out.append_sparse(&entry, &ranges, &mut content)?;
            }
        } else {
            self.out.append(&entry)?;
        }
        if stat.nlink > 1 && stat.kind != Kind::Directory {
            self.first_names.entry(stat.ino).or_insert_with(|| path.to_vec());
        }
        Ok(())
    }

    fn marker(&mut self, path: &[u8], kind: TarKind<'_>) -> Result<(), WalkError> {
        let entry = TarEntry { path, kind, permissions: 0, uid: 0, gid: 0, mtime: Default::default(), xattrs: &[] };
        Ok(self.out.append(&entry)?)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = self.tree.list_xattrs(ino, true)?;
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match self.tree.xattr(ino, name) {
                Ok(value) => xattrs.push((name.to_vec(), value)),
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(xattrs)
    }

    /// Returns where a file has data.
    fn data_ranges(&self, stat: &Stat) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut offset = 0;
        while offset < stat.size {
            let start = match self.tree.seek(stat.ino, offset, true) {
                Ok(start) => start.min(stat.size),
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error),
            };
            let end = self.tree.seek(stat.ino, start, false).unwrap_or(stat.size).min(stat.size);
            if end <= start {
                break;
            }
            ranges.push(start..end);
            offset = end;
        }
        Ok(ranges)
    }
}

/// The data of a file, range after range.
struct Content<'a> {
    tree: &'a Tree,
    ino: Ino,
    ranges: Vec<Range<u64>>,
    next: usize,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(range) = self.ranges.get_mut(self.next) {
            let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(buffer.len());
            if left == 0 && !buffer.is_empty() {
                self.next += 1;
                continue;
            }
            let read = self.tree.read(self.ino, &mut buffer[..left], range.start)?;
            range.start += read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}
