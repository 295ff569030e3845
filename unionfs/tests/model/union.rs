//! The union itself, without a mount: does what the kernel would do between a program and the filesystem.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use strata_unionfs::{Access, Caller, Ino, Kind, New, RenameMode, SetAttributes, SetGroupId, Stat, Tree};

use super::{Filesystem, Operation};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

#[derive(Debug)]
pub(crate) struct Union {
    pub(crate) tree: Tree,
}

impl Union {
    fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Errno> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut ino = Ino::ROOT;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            let stat = self.tree.lookup(ino, part.as_bytes())?;
            if stat.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            ino = stat.ino;
        }
        Ok((ino, name.as_bytes()))
    }

    fn find(&self, path: &str) -> Result<Stat, Errno> {
        let (dir, name) = self.parent(path)?;
        self.tree.lookup(dir, name)
    }

    fn open(&self, path: &str, truncate: bool) -> Result<Ino, Errno> {
        let stat = self.find(path)?;
        match stat.kind {
            Kind::Directory => return Err(Errno::ISDIR),
            Kind::Symlink => return Err(Errno::LOOP),
            _ => {}
        }
        let _ = self.tree.open_file(stat.ino, Access { write: true, truncate, ..Access::default() })?;
        Ok(stat.ino)
    }

    fn create(&self, path: &str, new: New<'_>, mode: u32) -> Result<Ino, Errno> {
        let (dir, name) = self.parent(path)?;
        Ok(self.tree.create(dir, name, new, mode, 0, &CALLER)?.ino)
    }

    fn regular(&self, path: &str) -> Result<Ino, Errno> {
        let stat = self.find(path)?;
        if stat.kind == Kind::Regular { Ok(stat.ino) } else { Err(Errno::PERM) }
    }

    fn rename(&self, path: &str, new: &str, mode: RenameMode) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        let (new_dir, new_name) = self.parent(new)?;
        // The order of the kernel's own checks.
        self.tree.lookup(dir, name)?;
        let target = self.tree.lookup(new_dir, new_name);
        if mode == RenameMode::NoReplace && target.is_ok() {
            return Err(Errno::EXIST);
        }
        if mode == RenameMode::Exchange {
            target?;
        }
        let inside = |path: &str, dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        if inside(new, path) {
            return Err(Errno::INVAL);
        }
        if inside(path, new) {
            return Err(if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        self.tree.rename(dir, name, new_dir, new_name, mode)
    }

    fn names(&self, dir: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        self.tree.read_dir(dir, 0, false, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push(entry.name.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        Ok(names)
    }

    fn remove_all(&self, path: &str) -> Result<(), Errno> {
        let stat = self.find(path)?;
        let (dir, name) = self.parent(path)?;
        if stat.kind != Kind::Directory {
            return self.tree.unlink(dir, name);
        }
        for child in self.names(stat.ino)? {
            self.remove_all(&format!("{path}/{}", String::from_utf8(child).unwrap()))?;
        }
        self.tree.rmdir(dir, name)
    }

    fn list(&self, dir: Ino, path: &str, out: &mut String) {
        let mut names = self.names(dir).unwrap();
        names.sort();
        for name in names {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            let stat = self.tree.lookup(dir, &name).unwrap_or_else(|error| panic!("{path}: {error}"));
            let mode = stat.permissions;
            match stat.kind {
                Kind::Directory => {
                    writeln!(out, "{path} d {mode:o}").unwrap();
                    self.list(stat.ino, &path, out);
                }
                Kind::Symlink => {
                    let target = self.tree.read_link(stat.ino).unwrap();
                    writeln!(out, "{path} l {} {}", stat.nlink, String::from_utf8_lossy(&target)).unwrap();
                }
                _ => {
                    let mut data = vec![0; 1000];
                    let length = self.tree.read(stat.ino, &mut data, 0).unwrap();
                    assert_eq!(stat.size, length as u64, "size of {path}");
                    let xattr = self.tree.xattr(stat.ino, b"user.test").ok();
                    let xattr = xattr.map(|value| String::from_utf8_lossy(&value).into_owned());
                    let data = String::from_utf8_lossy(&data[..length]);
                    writeln!(out, "{path} f {mode:o} {} {xattr:?} {data:?}", stat.nlink).unwrap();
                }
            }
        }
    }
}

impl Filesystem for Union {
    fn apply(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::Create(path) => self.create(path, New::File { open: false }, 0o644).map(drop),
            Operation::Write(path, offset, text) => {
                let ino = self.open(path, false)?;
                let written = self.tree.write(ino, text.as_bytes(), u64::from(*offset), false);
                self.tree.release(ino);
                written.map(drop)
            }
            Operation::Truncate(path, size) => {
                let ino = self.open(path, false)?;
                let change = SetAttributes { size: Some(u64::from(*size)), ..SetAttributes::default() };
                let changed = self.tree.set_attributes(ino, &change).map(drop);
                self.tree.release(ino);
                changed
            }
            Operation::Replace(path, text) => {
                let ino = match self.find(path) {
                    Err(Errno::NOENT) => self.create(path, New::File { open: true }, 0o644)?,
                    _ => self.open(path, true)?,
                };
                let written = self.tree.write(ino, text.as_bytes(), 0, false);
                self.tree.release(ino);
                written.map(drop)
            }
            Operation::Mkdir(path) => self.create(path, New::Directory, 0o755).map(drop),
            Operation::Symlink(target, path) => self.create(path, New::Symlink(target.as_bytes()), 0o777).map(drop),
            Operation::Link(path, new) => {
                let stat = self.find(path)?;
                let (dir, name) = self.parent(new)?;
                if self.tree.lookup(dir, name).is_ok() {
                    return Err(Errno::EXIST);
                }
                if stat.kind == Kind::Directory {
                    return Err(Errno::PERM);
                }
                self.tree.link(stat.ino, dir, name).map(drop)
            }
            Operation::Unlink(path) => {
                let (dir, name) = self.parent(path)?;
                self.tree.unlink(dir, name)
            }
            Operation::Rmdir(path) => {
                let (dir, name) = self.parent(path)?;
                self.tree.rmdir(dir, name)
            }
            Operation::RemoveAll(path) => self.remove_all(path),
            Operation::Rename(path, new) => self.rename(path, new, RenameMode::Replace),
            Operation::RenameNoReplace(path, new) => self.rename(path, new, RenameMode::NoReplace),
            Operation::Exchange(path, new) => self.rename(path, new, RenameMode::Exchange),
            Operation::Chmod(path, mode) => {
                let stat = self.find(path)?;
                if stat.kind == Kind::Symlink {
                    return Err(Errno::LOOP);
                }
                let change = SetAttributes { permissions: Some(*mode), ..SetAttributes::default() };
                self.tree.set_attributes(stat.ino, &change).map(drop)
            }
            Operation::SetXattr(path, value) => {
                let ino = self.regular(path)?;
                self.tree.set_xattr(ino, b"user.test", value.as_bytes(), XattrFlags::empty(), SetGroupId::Keep)
            }
            Operation::RemoveXattr(path) => self.tree.remove_xattr(self.regular(path)?, b"user.test"),
            Operation::List(path) => {
                let stat = self.find(path)?;
                if stat.kind != Kind::Directory {
                    return Err(Errno::NOTDIR);
                }
                self.names(stat.ino).map(drop)
            }
        }
    }

    fn listing(&mut self) -> String {
        let mut out = String::new();
        self.list(Ino::ROOT, "", &mut out);
        out
    }
}
