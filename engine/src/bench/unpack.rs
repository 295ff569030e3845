//! Layers as folders, in overlayfs's form, out of their index and tar.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev};
use strata_layer::index::{Attributes, Child, Index, Kind, NodeId};

use super::{BenchError, failed};

/// Unpacks the topmost of `folders`, which must not exist yet; those below it are unpacked already.
///
/// Names come from an index, which holds no `..` and no slash, and every parent is a folder made here: so plain paths
/// lead nowhere else.
pub(super) fn unpack(index: &Index, tar: &Path, folders: &[PathBuf]) -> Result<(), BenchError> {
    let (root, below) = folders.split_last().expect("there is one folder to unpack to");
    fs::create_dir(root).map_err(failed("create", root))?;
    let tar = File::open(tar).map_err(failed("open", tar))?;
    let mut unpacking =
        Unpacking { index, tar, root, below, linked: HashMap::new(), as_root: strata_sandbox::userns::is_initial() };
    unpacking.folder(NodeId::ROOT, Path::new(""))
}

struct Unpacking<'a> {
    index: &'a Index,
    tar: File,
    root: &'a Path,
    below: &'a [PathBuf],
    /// Where the first name of a file with several is.
    linked: HashMap<u32, PathBuf>,
    as_root: bool,
}

impl Unpacking<'_> {
    fn folder(&mut self, directory: NodeId, relative: &Path) -> Result<(), BenchError> {
        let path = self.root.join(relative);
        for child in self.index.children(directory) {
            let relative = relative.join(OsStr::from_bytes(child.name));
            let target = self.root.join(&relative);
            self.child(&child, &target).map_err(failed("unpack", &target))?;
            if child.kind == Kind::Directory && !child.whiteout {
                self.folder(child.node, &relative)?;
            }
        }
        if self.index.is_opaque(directory) {
            let name = if self.as_root { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
            rustix::fs::setxattr(&path, name, b"y", XattrFlags::empty())
                .map_err(|error| failed("mark", &path)(error.into()))?;
        }
        // After its content, which a mode without write permission would keep out.
        match self.index.attributes(directory) {
            Some(attributes) => self.own(&path, &attributes).map_err(failed("unpack", &path)),
            None => Ok(()),
        }
    }

    fn child(&mut self, child: &Child<'_>, target: &Path) -> io::Result<()> {
        if child.whiteout {
            return Ok(rustix::fs::mknodat(CWD, target, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?);
        }
        let Some(attributes) = self.index.attributes(child.node) else { return Ok(()) };
        if let Some(first) = self.linked.get(&child.node.as_u32()) {
            return fs::hard_link(first, target);
        }
        if attributes.nlink > 1 && child.kind != Kind::Directory {
            self.linked.insert(child.node.as_u32(), target.to_owned());
        }
        match child.kind {
            Kind::Directory => return fs::create_dir(target),
            Kind::Regular => match self.index.foreign_link(child.node) {
                Some(lower) => self.copy_from_below(Path::new(OsStr::from_bytes(lower)), target)?,
                None => self.file(child.node, &attributes, target)?,
            },
            Kind::Symlink => {
                let to = self.index.symlink_target(child.node).unwrap_or_default();
                symlink(OsStr::from_bytes(to), target)?;
                return if self.as_root { lchown(target, Some(attributes.uid), Some(attributes.gid)) } else { Ok(()) };
            }
            Kind::Fifo => rustix::fs::mknodat(CWD, target, FileType::Fifo, Mode::empty(), 0)?,
            Kind::Socket => rustix::fs::mknodat(CWD, target, FileType::Socket, Mode::empty(), 0)?,
            Kind::CharDevice | Kind::BlockDevice if !self.as_root => drop(File::create_new(target)?),
            kind @ (Kind::CharDevice | Kind::BlockDevice) => {
                let file_type =
                    if kind == Kind::CharDevice { FileType::CharacterDevice } else { FileType::BlockDevice };
                let strata_layer::index::Device { major, minor } = attributes.device;
                rustix::fs::mknodat(CWD, target, file_type, Mode::empty(), makedev(major, minor))?;
            }
        }
        self.own(target, &attributes)
    }

    fn file(&self, node: NodeId, attributes: &Attributes, target: &Path) -> io::Result<()> {
        let mut file = File::create_new(target)?;
        file.set_len(attributes.size)?;
        let mut buffer = vec![0; 1 << 20];
        for extent in self.index.extents(node) {
            let mut done = 0;
            while done < extent.length {
                let count = usize::try_from(extent.length - done).unwrap_or(usize::MAX).min(buffer.len());
                self.tar.read_exact_at(&mut buffer[..count], extent.source + done)?;
                file.write_all_at(&buffer[..count], extent.offset + done)?;
                done += count as u64;
            }
        }
        file.flush()
    }

    /// A hard link to a file of a lower layer: overlayfs would have copied it up.
    fn copy_from_below(&self, lower: &Path, target: &Path) -> io::Result<()> {
        let found = self.below.iter().rev().map(|folder| folder.join(lower)).find(|path| path.is_file());
        match found {
            Some(path) => fs::copy(path, target).map(drop),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn own(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        if self.as_root {
            chown(path, Some(attributes.uid), Some(attributes.gid))?;
        }
        // In a user namespace what we unpacked must stay readable to ourselves.
        let extra = if self.as_root { 0 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(u32::from(attributes.permissions) | extra))
    }
}
