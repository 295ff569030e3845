//! Listing a directory on disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, getxattr, listxattr, major, minor, openat, readlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Facts, ListingError, Options, join};
use crate::Digest;
use crate::index::{Device, Kind, Timestamp};

/// Lists the tree at `root`. Follows no symbolic link below it.
///
/// Holds one open file per level of the tree.
pub fn list_directory(root: &Path, options: &Options) -> Result<String, ListingError> {
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.map_err(failed("open", root.as_os_str().as_bytes()))?;
    let mut walk = Walk { options, text: String::new(), seen: HashMap::new() };
    walk.visit(&directory, b"", None)?;
    Ok(walk.text)
}

struct Walk<'a> {
    options: &'a Options,
    text: String,
    /// First path of every file that has several.
    seen: HashMap<(u64, u64), Vec<u8>>,
}

impl Walk<'_> {
    /// Lists what `file`, opened with `O_PATH`, is, and what is below it.
    fn visit(&mut self, file: &OwnedFd, path: &[u8], entry_type: Option<FileType>) -> Result<(), ListingError> {
        let stat = fstat(file).map_err(failed("stat", path))?;
        self.describe(file, path, &stat, entry_type)?.write(&mut self.text, path);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let mut entries = Vec::new();
        let directory = reopen(file, OFlags::DIRECTORY).map_err(failed("open", path))?;
        for entry in Dir::new(directory).map_err(failed("read directory", path))? {
            let entry = entry.map_err(failed("read directory", path))?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, entry_type) in entries {
            let child_path = join(path, name.to_bytes());
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = openat(file, &name, flags, Mode::empty()).map_err(failed("open", &child_path))?;
            self.visit(&child, &child_path, Some(entry_type))?;
        }
        Ok(())
    }

    fn describe(
        &mut self,
        file: &OwnedFd,
        path: &[u8],
        stat: &Stat,
        entry_type: Option<FileType>,
    ) -> Result<Facts, ListingError> {
        let kind = kind_of(stat.st_mode).ok_or_else(|| ListingError::Damaged { path: to_path(path) })?;
        let target = match kind {
            Kind::Symlink => readlinkat(file, "", Vec::new()).map_err(failed("read link", path))?.into_bytes(),
            _ => Vec::new(),
        };
        let digest = match kind {
            Kind::Regular if self.options.contents => {
                let file = reopen(file, OFlags::empty()).map_err(failed("open", path))?;
                Some(digest(File::from(file)).map_err(failed("read", path))?)
            }
            _ => None,
        };
        let mut same = None;
        if kind != Kind::Directory && stat.st_nlink > 1 {
            let first = self.seen.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec());
            same = (first != path).then(|| first.clone());
        }
        // A filesystem may say nothing, but not something wrong.
        let entry_kind = entry_type.and_then(|entry_type| kind_of(entry_type.as_raw_mode()));
        Ok(Facts {
            kind,
            permissions: low16(stat.st_mode) & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            size: stat.st_size.unsigned_abs(),
            nlink: stat.st_nlink,
            device: Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) },
            target,
            same,
            entry_type: entry_kind.filter(|entry_kind| *entry_kind != kind).map(Kind::to_bits),
            marks: Vec::new(),
            digest,
            xattrs: self.xattrs(file.as_fd()).map_err(failed("read the attributes of", path))?,
        })
    }

    fn xattrs(&self, file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // Works for every type, and for links themselves: what the kernel finds behind this name is not followed on.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let names = match grow(|buffer| listxattr(&path, buffer)) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            names => names?,
        };
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if (self.options.keep_xattr)(name) {
                let value = grow(|buffer| getxattr(&path, OsStr::from_bytes(name), buffer))?;
                xattrs.push((name.to_vec(), value));
            }
        }
        Ok(xattrs)
    }
}

/// Calls `read` with a buffer that is large enough.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Opens for reading what `file` is open on with `O_PATH`.
fn reopen(file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Not through the name, which may be another file's by now.
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
}

fn digest(mut file: File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn kind_of(mode: u32) -> Option<Kind> {
    Kind::from_mode(low16(mode))
}

fn low16(mode: u32) -> u16 {
    u16::try_from(mode & 0xffff).unwrap_or_default()
}

fn to_path(path: &[u8]) -> std::path::PathBuf {
    OsStr::from_bytes(super::path_or_dot(path)).into()
}

/// Returns a function that says which operation on which file failed.
fn failed<E: Into<io::Error>>(operation: &'static str, path: &[u8]) -> impl FnOnce(E) -> ListingError {
    move |source| ListingError::Io { operation, path: to_path(path), source: source.into() }
}
