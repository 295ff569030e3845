//! The extended attributes by which overlayfs marks whiteouts, opaque directories and the like.
//!
//! In lower folders both forms count, `trusted.overlay.` and `user.overlay.`; the upper has one of them.

use std::os::fd::BorrowedFd;

use crate::Result;
use crate::backing::{self, RawStat};
use crate::node::Kind;

/// The mark of an empty regular file that is shown as the character device 0:0, which itself would be a whiteout.
pub(crate) const NULL_DEVICE: &[u8] = b"strata.device";

/// The namespaces of the marks.
pub(crate) const PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The marks of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DirectoryMarks {
    /// Layers below are hidden under this directory.
    pub(crate) opaque: bool,
    /// Where in the layers below it came from: a name beside it, or a path from the root.
    pub(crate) redirect: Option<Vec<u8>>,
}

/// Reads the marks of a directory. Nearly all have none, which one call tells.
pub(crate) fn of_directory(fd: BorrowedFd<'_>) -> Result<DirectoryMarks> {
    let mut marks = DirectoryMarks::default();
    for name in backing::list_xattrs(fd)?.split(|byte| *byte == 0) {
        match without_prefix(name) {
            Some(b"opaque") => marks.opaque |= backing::xattr(fd, name)?.is_some_and(|value| value == b"y"),
            Some(b"redirect") => marks.redirect = backing::xattr(fd, name)?.filter(|target| is_usable_redirect(target)),
            _ => {}
        }
    }
    Ok(marks)
}

/// Returns the type under which a file of a layer is shown; `None` for a whiteout, be it a device or a regular file.
pub(crate) fn shown_kind(fd: BorrowedFd<'_>, raw: &RawStat) -> Result<Option<Kind>> {
    if backing::is_whiteout(raw) {
        return Ok(None);
    }
    let kind = backing::kind(raw)?;
    if kind == Kind::Regular && raw.size == 0 {
        for name in backing::list_xattrs(fd)?.split(|byte| *byte == 0) {
            match without_prefix(name) {
                Some(b"whiteout") => return Ok(None),
                Some(NULL_DEVICE) => return Ok(Some(Kind::CharDevice)),
                _ => {}
            }
        }
    }
    Ok(Some(kind))
}

/// Returns whether a file has only its attributes in this layer, and its data in one below.
pub(crate) fn is_metadata_only(fd: BorrowedFd<'_>) -> Result<bool> {
    has_mark(fd, b"metacopy")
}

/// Returns whether a redirect is a path from the root or a single name.
pub(crate) fn is_usable_redirect(target: &[u8]) -> bool {
    let absolute = target.starts_with(b"/");
    let name = !target.contains(&b'/') && target != b"." && target != b"..";
    !target.is_empty() && !target.contains(&0) && (absolute || name)
}

fn has_mark(fd: BorrowedFd<'_>, mark: &[u8]) -> Result<bool> {
    Ok(backing::list_xattrs(fd)?.split(|byte| *byte == 0).any(|name| without_prefix(name) == Some(mark)))
}

fn without_prefix(name: &[u8]) -> Option<&[u8]> {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(*prefix))
}
