//! Whiteouts by name, as archives of layers have them and programs that unpack such archives leave them.
//!
//! `.wh.NAME` deletes `NAME` in the layers below, `.wh..wh..opq` (or `.wh..opq`) hides all that the layers below have in
//! its directory. A mount believes this only if it is told to: elsewhere such names are names.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::Result;

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special<'a> {
    /// The layers below have nothing in this directory.
    Opaque,
    /// They do not have this name.
    Whiteout(&'a [u8]),
    /// Nothing, but it is reserved.
    Nothing,
}

/// Returns what a name says; `None` for an ordinary one.
pub(crate) fn special(name: &[u8]) -> Option<Special<'_>> {
    let target = name.strip_prefix(PREFIX)?;
    Some(match target {
        b".wh..opq" | b".opq" => Special::Opaque,
        b"" | b"." | b".." => Special::Nothing,
        target if target.starts_with(PREFIX) => Special::Nothing,
        target => Special::Whiteout(target),
    })
}

/// Returns whether a directory of a layer hides `name` in the layers below.
pub(crate) fn hides(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    exists(dir, &[PREFIX, name].concat())
}

/// Returns whether a directory of a layer hides everything in the layers below.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    Ok(exists(dir, b".wh..wh..opq")? || exists(dir, b".wh..opq")?)
}

fn exists(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error),
    }
}

const PREFIX: &[u8] = b".wh.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_they_say() {
        assert_eq!(special(b".wh.name"), Some(Special::Whiteout(b"name")));
        assert_eq!(special(b".wh..wh..opq"), Some(Special::Opaque));
        assert_eq!(special(b".wh..opq"), Some(Special::Opaque));
        assert_eq!(special(b".wh..hidden"), Some(Special::Whiteout(b".hidden")));
        for name in [&b".wh."[..], b".wh..", b".wh...", b".wh..wh.plnk"] {
            assert_eq!(special(name), Some(Special::Nothing));
        }
        for name in [&b"name"[..], b".wh", b"wh.name", b""] {
            assert_eq!(special(name), None);
        }
    }
}
