//! Writing what is at a path as a tar.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dir, FileType, OFlags, Stat, fstat, getxattr, major, minor, readlinkat};
use rustix::io::Errno;
use strata_layer::index::{Device, Timestamp};
use strata_layer::tar_writer::{TarEntry, TarKind, TarWriteError, TarWriter};

use super::tree::{Found, Tree, by_descriptor, is_kernel_filesystem, open_beneath, reopen};
use super::{ArchiveError, text};

impl Tree {
    /// Writes what was found as a tar in which it is called `name`; with an empty name, a directory's contents without
    /// itself. What is deleted meanwhile is left out; what is in filesystems of the kernel in a container, too.
    ///
    /// # Errors
    /// [`ArchiveError`]. Nothing is written behind the failure, not even the end of the archive.
    pub fn pack(&self, found: &Found, name: &[u8], out: &mut dyn Write) -> Result<(), ArchiveError> {
        let mut packer = Packer { tree: self, out: TarWriter::plain(out), names: HashMap::new() };
        packer.entry(name, found.handle.as_fd(), &found.stat)?;
        if found.is_directory() {
            packer.below(found, name)?;
        }
        let (out, _) = packer.out.finish()?;
        out.flush().map_err(|error| ArchiveError::Output(TarWriteError::Write(error)))
    }
}

struct Packer<'a, 'o> {
    tree: &'a Tree,
    out: TarWriter<&'o mut dyn Write>,
    /// Files with several names, and the one they were written under.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl Packer<'_, '_> {
    /// Writes all that is below a directory, each directory before what is in it.
    fn below(&mut self, top: &Found, name: &[u8]) -> Result<(), ArchiveError> {
        // Folders to look into, below the top.
        let mut pending = vec![Vec::new()];
        while let Some(folder) = pending.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let handle = match open_beneath(top.handle.as_fd(), &folder, flags) {
                Ok(handle) => handle,
                // Deleted, or replaced by something else, while we look.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !folder.is_empty() => continue,
                Err(errno) => return Err(failed(&join(&top.path, &folder), errno)),
            };
            let device = fstat(&handle).map_err(|errno| failed(&join(&top.path, &folder), errno))?.st_dev;
            let mut folders = Vec::new();
            for child in sorted_names(&handle).map_err(|errno| failed(&join(&top.path, &folder), errno))? {
                let below = join(&folder, &child);
                let file = match open_beneath(handle.as_fd(), &child, OFlags::PATH | OFlags::NOFOLLOW) {
                    Ok(file) => file,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(failed(&join(&top.path, &below), errno)),
                };
                let stat = fstat(&file).map_err(|errno| failed(&join(&top.path, &below), errno))?;
                let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let of_runtime = self.tree.foreign
                    && stat.st_dev != device
                    && (is_kernel_filesystem(file.as_fd()) || join(&top.path, &below) == b"/dev");
                if of_runtime && !is_folder {
                    continue;
                }
                self.entry(&join(name, &below), file.as_fd(), &stat)?;
                if is_folder && !of_runtime {
                    folders.push(below);
                }
            }
            // In the order of their names, one subtree after the other.
            pending.extend(folders.into_iter().rev());
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], file: BorrowedFd<'_>, stat: &Stat) -> Result<(), ArchiveError> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let device = || Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        let key = (stat.st_dev, stat.st_ino);
        let target;
        let kind = match file_type {
            FileType::Directory => TarKind::Directory,
            _ if stat.st_nlink > 1 && self.names.contains_key(&key) => {
                target = self.names[&key].clone();
                TarKind::HardLink { target: &target }
            }
            FileType::RegularFile => TarKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
            FileType::Symlink => {
                target = readlinkat(file, c"", Vec::new()).map_err(|errno| failed(path, errno))?.into_bytes();
                TarKind::Symlink { target: &target }
            }
            FileType::CharacterDevice => TarKind::CharDevice(device()),
            FileType::BlockDevice => TarKind::BlockDevice(device()),
            FileType::Fifo => TarKind::Fifo,
            _ => TarKind::Socket,
        };
        if stat.st_nlink > 1 && file_type != FileType::Directory {
            self.names.entry(key).or_insert_with(|| path.to_vec());
        }
        let capability = match file_type {
            FileType::RegularFile => capability(file),
            _ => None,
        };
        let capability = capability.as_deref().map(|value| (CAPABILITY.to_bytes(), value));
        let (uid, gid) = self.tree.owner_inside(stat.st_uid, stat.st_gid);
        let entry = TarEntry {
            path,
            kind,
            permissions: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid,
            gid,
            mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
            xattrs: capability.as_slice(),
        };
        match kind {
            TarKind::Regular { size } if size > 0 => {
                let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
                let content = reopen(file, flags).map_err(|source| ArchiveError::Read { path: text(path), source })?;
                self.out.append_file(&entry, &File::from(content))?;
            }
            _ => self.out.append(&entry)?,
        }
        Ok(())
    }
}

/// The capabilities of a program file. As Docker, no other extended attribute is copied.
fn capability(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut value = vec![0; 64];
    // Most files have none, and some filesystems know of none.
    let length = getxattr(by_descriptor(file), CAPABILITY, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

fn sorted_names(folder: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Puts two paths together, of which either may be empty.
fn join(first: &[u8], second: &[u8]) -> Vec<u8> {
    match (first, second) {
        (_, b"") => first.to_vec(),
        (b"", _) => second.to_vec(),
        (b"/", _) => [b"/", second].concat(),
        _ => [first, b"/", second].concat(),
    }
}

fn failed(path: &[u8], errno: Errno) -> ArchiveError {
    ArchiveError::Read { path: OsStr::from_bytes(path).to_string_lossy().into_owned(), source: errno.into() }
}

pub(super) const CAPABILITY: &std::ffi::CStr = c"security.capability";
