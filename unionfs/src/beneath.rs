//! Opening paths below a directory that must never lead outside.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::Result;

/// Whether the way may lead into another mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossing {
    Allowed,
    Refused,
}

/// Opens `path` below `root` without following symbolic links or leaving `root`; the empty path is `root` itself.
///
/// Paths may be longer than the kernel takes in one call.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, crossing: Crossing) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if crossing == Crossing::Refused {
        resolve |= ResolveFlags::NO_XDEV;
    }
    let open = |at: BorrowedFd<'_>, path: &[u8], flags| loop {
        match openat2(at, path, flags, Mode::empty(), resolve) {
            // A rename somewhere on the machine raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    };
    let mut rest = path;
    let mut held: Option<OwnedFd> = None;
    while rest.len() > CHUNK {
        let cut = rest[..CHUNK].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let at = held.as_ref().map_or(root, |fd| fd.as_fd());
        held = Some(open(at, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?);
        rest = &rest[cut + 1..];
    }
    let at = held.as_ref().map_or(root, |fd| fd.as_fd());
    open(at, if rest.is_empty() { b"." } else { rest }, flags)
}

/// Shorter than PATH_MAX, longer than any name.
const CHUNK: usize = 3500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("secret"), "").unwrap();
        std::os::unix::fs::symlink("../secret", dir.path().join("root/link")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("root/up")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(dir.path().join("root")).unwrap());
        for path in ["../secret", "link", "up/secret", "/etc/passwd", "./../secret"] {
            assert!(open_beneath(root.as_fd(), path.as_bytes(), OFlags::RDONLY, Crossing::Allowed).is_err(), "{path}");
        }
        assert!(
            open_beneath(root.as_fd(), b"link", OFlags::PATH, Crossing::Allowed).is_ok(),
            "the link itself is inside"
        );
    }

    #[test]
    fn paths_longer_than_path_max_open() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let name = "n".repeat(200);
        let mut path = Vec::new();
        for _ in 0..40 {
            let parent = open_beneath(root.as_fd(), &path, OFlags::PATH, Crossing::Refused).unwrap();
            rustix::fs::mkdirat(&parent, name.as_str(), Mode::RWXU).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        assert!(path.len() > 8000);
        assert!(open_beneath(root.as_fd(), &path, OFlags::PATH | OFlags::DIRECTORY, Crossing::Refused).is_ok());
    }
}
