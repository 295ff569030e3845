//! A real directory: plain, or where a union is mounted.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::{Filesystem, Operation};

#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) root: PathBuf,
}

impl Dir {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<fs::File, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::open(self.at(path), flags, Mode::from_raw_mode(0o644))?.into())
    }

    fn rename(&self, path: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
        rustix::fs::renameat_with(CWD, self.at(path), CWD, self.at(new), flags)
    }
}

impl Filesystem for Dir {
    fn apply(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::Create(path) => self.open(path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).map(drop),
            Operation::Write(path, offset, text) => {
                let file = self.open(path, OFlags::WRONLY)?;
                file.write_all_at(text.as_bytes(), u64::from(*offset)).map_err(errno)
            }
            Operation::Truncate(path, size) => {
                let file = self.open(path, OFlags::WRONLY)?;
                file.set_len(u64::from(*size)).map_err(errno)
            }
            Operation::Replace(path, text) => {
                let file = self.open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
                file.write_all_at(text.as_bytes(), 0).map_err(errno)
            }
            Operation::Mkdir(path) => rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(0o755)),
            Operation::Symlink(target, path) => rustix::fs::symlink(target, self.at(path)),
            Operation::Link(path, new) => rustix::fs::link(self.at(path), self.at(new)),
            Operation::Unlink(path) => rustix::fs::unlink(self.at(path)),
            Operation::Rmdir(path) => rustix::fs::rmdir(self.at(path)),
            Operation::RemoveAll(path) => {
                let path = self.at(path);
                let found = rustix::fs::lstat(&path)?;
                if found.st_mode & libc::S_IFMT == libc::S_IFDIR {
                    fs::remove_dir_all(&path).map_err(errno)
                } else {
                    rustix::fs::unlink(&path)
                }
            }
            Operation::Rename(path, new) => self.rename(path, new, RenameFlags::empty()),
            Operation::RenameNoReplace(path, new) => self.rename(path, new, RenameFlags::NOREPLACE),
            Operation::Exchange(path, new) => self.rename(path, new, RenameFlags::EXCHANGE),
            Operation::Chmod(path, mode) => {
                let path = self.at(path);
                if rustix::fs::lstat(&path)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
                    return Err(Errno::LOOP);
                }
                rustix::fs::chmod(&path, Mode::from_raw_mode((*mode).into()))
            }
            Operation::SetXattr(path, value) => {
                if self.kind(path)? != libc::S_IFREG {
                    return Err(Errno::PERM);
                }
                rustix::fs::lsetxattr(self.at(path), "user.test", value.as_bytes(), XattrFlags::empty())
            }
            Operation::RemoveXattr(path) => {
                if self.kind(path)? != libc::S_IFREG {
                    return Err(Errno::PERM);
                }
                rustix::fs::lremovexattr(self.at(path), "user.test")
            }
            Operation::List(path) => {
                if self.kind(path)? != libc::S_IFDIR {
                    return Err(Errno::NOTDIR);
                }
                fs::read_dir(self.at(path)).map_err(errno)?.try_for_each(|entry| entry.map(drop)).map_err(errno)
            }
        }
    }

    fn listing(&mut self) -> String {
        let mut out = String::new();
        list(&self.root, "", &mut out);
        out
    }
}

impl Dir {
    fn kind(&self, path: &str) -> Result<u32, Errno> {
        Ok(rustix::fs::lstat(self.at(path))?.st_mode & libc::S_IFMT)
    }

    /// Returns the inode number of every path.
    pub(crate) fn numbers(&self) -> Vec<(PathBuf, u64)> {
        fn walk(dir: &Path, out: &mut Vec<(PathBuf, u64)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let number = fs::symlink_metadata(entry.path()).unwrap().ino();
                assert_eq!(number, entry.ino(), "d_ino of {:?}", entry.path());
                out.push((entry.path(), number));
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), out);
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.root, &mut out);
        out.sort();
        out
    }
}

fn list(dir: &Path, path: &str, out: &mut String) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = format!("{path}/{}", name.to_str().unwrap());
        let full = dir.join(&name);
        let metadata = fs::symlink_metadata(&full).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            writeln!(out, "{path} d {mode:o}").unwrap();
            list(&full, &path, out);
        } else if metadata.is_symlink() {
            let target = fs::read_link(&full).unwrap();
            writeln!(out, "{path} l {} {}", metadata.nlink(), target.display()).unwrap();
        } else {
            let data = fs::read(&full).unwrap();
            assert_eq!(metadata.size(), data.len() as u64, "size of {path}");
            let mut value = [0; 64];
            let xattr = rustix::fs::lgetxattr(&full, "user.test", &mut value[..])
                .ok()
                .map(|length| String::from_utf8_lossy(&value[..length]).into_owned());
            let data = String::from_utf8_lossy(&data);
            writeln!(out, "{path} f {mode:o} {} {xattr:?} {data:?}", metadata.nlink()).unwrap();
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap()
}
