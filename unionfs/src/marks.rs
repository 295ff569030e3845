//! The extended attributes by which overlayfs marks whiteouts, opaque directories and the like.
//!
//! In lower folders both forms count, `trusted.overlay.` and `user.overlay.`; the upper has one of them.

use std::os::fd::BorrowedFd;

use crate::Result;
use crate::backing::{self, RawStat};

/// The namespaces of the marks.
pub(crate) const PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Returns whether layers below are hidden under this directory.
pub(crate) fn is_opaque(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(mark(fd, b"opaque")?.is_some_and(|value| value == b"y"))
}

/// Returns whether the directory may hold regular files that stand for whiteouts.
pub(crate) fn may_hold_whiteout_files(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(mark(fd, b"opaque")?.is_some_and(|value| value == b"x"))
}

/// Returns whether the file is a whiteout in its form as a regular file.
pub(crate) fn is_whiteout_file(fd: BorrowedFd<'_>, raw: &RawStat) -> Result<bool> {
    let candidate = raw.st_mode & libc::S_IFMT == libc::S_IFREG && raw.st_size == 0;
    Ok(candidate && mark(fd, b"whiteout")?.is_some())
}

/// Returns the place in the layers below where the directory came from: a name beside it, or a path from the root.
pub(crate) fn redirect(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    Ok(mark(fd, b"redirect")?.filter(|target| is_usable_redirect(target)))
}

/// Returns whether a redirect is a path from the root or a single name.
pub(crate) fn is_usable_redirect(target: &[u8]) -> bool {
    let absolute = target.starts_with(b"/");
    let name = !target.contains(&b'/') && target != b"." && target != b"..";
    !target.is_empty() && !target.contains(&0) && (absolute || name)
}

/// Returns whether a file has only its attributes in this layer, and its data in one below.
pub(crate) fn is_metadata_only(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(mark(fd, b"metacopy")?.is_some())
}

fn mark(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    for prefix in PREFIXES {
        if let Some(value) = backing::xattr(fd, &[prefix, name].concat())? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
