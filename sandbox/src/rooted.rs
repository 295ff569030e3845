//! Opening paths of a root filesystem that somebody hostile may have filled.
//!
//! Every path is resolved by the kernel below a root descriptor, so that a symlink can point to any place of the same
//! root and to nowhere else.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::path::Arg;

/// Opens `path` below `root`. Symlinks are followed inside the root, `/proc`-style magic links never.
///
/// # Errors
/// The errno of `openat2`.
pub(crate) fn open<P: Arg>(root: BorrowedFd<'_>, path: P, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        match openat2(root, path.as_cow_c_str()?.as_ref(), flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel could not rule out an escape because something was renamed or mounted meanwhile.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if attempts < OPEN_ATTEMPTS => attempts += 1,
            result => return result,
        }
    }
}

/// Reads a regular file of at most `limit` bytes below `root`. A FIFO or device neither blocks nor is read.
///
/// # Errors
/// The errno of the calls; `InvalidInput` when it is no regular file, `FileTooLarge` above the limit.
pub(crate) fn read_regular_file(root: BorrowedFd<'_>, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_found(find_regular_file(root, path)?.as_fd())?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file too large"));
    }
    Ok(content)
}

/// Finds a regular file below `root` without opening it, since opening a device or FIFO can already have effects.
///
/// # Errors
/// The errno of the calls; `InvalidInput` when it is no regular file.
pub(crate) fn find_regular_file<P: Arg>(root: BorrowedFd<'_>, path: P) -> io::Result<OwnedFd> {
    let found = open(root, path, OFlags::PATH)?;
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::RegularFile => Ok(found),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Opens for reading the very inode that was found.
///
/// # Errors
/// The errno of the call.
pub(crate) fn open_found(found: BorrowedFd<'_>) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Somebody who renames without pause must not keep us here for ever.
const OPEN_ATTEMPTS: u32 = 10_000;
