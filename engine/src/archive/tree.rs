//! A tree of files, the host's or a container's, and finding things in it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat2, readlinkat};
use rustix::io::Errno;
use strata_unionfs::{IdMap, OVERFLOW_ID};

use super::{ArchiveError, text};
use crate::container::OwnIds;

/// A tree of files below a root. Symbolic links count from that root, and nothing in it leads outside.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// What messages call it.
    place: String,
    /// Whether somebody hostile may have filled it.
    pub(super) foreign: bool,
    /// What the ids of users in the tree are on this side, where they differ.
    uids: Option<IdMap>,
    /// The same for groups.
    gids: Option<IdMap>,
}

/// Something in a tree, held open so that it stays what was found.
#[derive(Debug)]
pub struct Found {
    /// Opened for nothing but being there.
    pub(super) handle: OwnedFd,
    pub(super) stat: Stat,
    /// Its path, absolute, `.` and `..` taken out by text.
    pub(super) path: Vec<u8>,
}

impl Tree {
    /// The tree of this host.
    ///
    /// # Errors
    /// [`ArchiveError::Open`].
    pub fn host() -> Result<Tree, ArchiveError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, c"/", flags, Mode::empty()).map_err(|errno| ArchiveError::Open {
            path: "/".to_owned(),
            place: HOST.to_owned(),
            source: errno.into(),
        })?;
        Ok(Tree { root, place: HOST.to_owned(), foreign: false, uids: None, gids: None })
    }

    /// The tree of a container.
    pub(super) fn container(root: OwnedFd, name: &str, ids: Option<&OwnIds>) -> Tree {
        let (uids, gids) = ids.map(OwnIds::of_filesystem).unwrap_or_default();
        Tree { root, place: format!("container {name}"), foreign: true, uids, gids }
    }

    /// Finds `path`. A symbolic link at its end is found itself, unless a slash follows it, as in Docker.
    ///
    /// # Errors
    /// [`ArchiveError::NotFound`], [`ArchiveError::Open`].
    pub fn find(&self, path: &[u8]) -> Result<Found, ArchiveError> {
        self.find_exactly(clean(path), path, asserts_directory(path))
    }

    fn find_exactly(&self, exact: Vec<u8>, path: &[u8], directory: bool) -> Result<Found, ArchiveError> {
        let flags = if directory { OFlags::DIRECTORY } else { OFlags::NOFOLLOW };
        let handle = self.open(&exact, OFlags::PATH | flags).map_err(|errno| self.failed(path, errno))?;
        let stat = fstat(&handle).map_err(|errno| self.failed(path, errno))?;
        let found = Found { handle, stat, path: exact };
        if self.foreign && is_kernel_filesystem(found.handle.as_fd()) {
            return Err(ArchiveError::KernelFilesystem { path: text(path) });
        }
        Ok(found)
    }

    /// Follows the symbolic links at the end of `path`. Returns the path without them, and what is there, if there is
    /// something.
    ///
    /// # Errors
    /// As [`find`](Self::find), but for a path that does not exist.
    pub fn follow(&self, path: &[u8]) -> Result<(Vec<u8>, Option<Found>), ArchiveError> {
        let directory = asserts_directory(path);
        let mut path = clean(path);
        for _ in 0..MAX_LINKS {
            let found = match self.find_exactly(path.clone(), &path, directory) {
                Err(ArchiveError::NotFound { .. }) => return Ok((path, None)),
                result => result?,
            };
            if found.file_type() != FileType::Symlink {
                return Ok((path, Some(found)));
            }
            let target = found.link_target().map_err(|errno| self.failed(&path, errno))?;
            path = match target.first() {
                Some(b'/') => target,
                // The link's folder may itself be reached through one: not resolved by text.
                _ => [parent(&found.path), b"/", &target].concat(),
            };
        }
        Err(self.failed(&path, Errno::LOOP))
    }

    /// Opens `path`, resolved by the kernel in this root.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"/" } else { path };
        open(self.root.as_fd(), path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    pub(super) fn failed(&self, path: &[u8], errno: Errno) -> ArchiveError {
        let (path, place) = (text(path), self.place.clone());
        match errno {
            Errno::NOENT => ArchiveError::NotFound { path, place },
            errno => ArchiveError::Open { path, place, source: errno.into() },
        }
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What a user and a group on this side are in the tree.
    pub(super) fn owner_inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let inside = |map: &Option<IdMap>, id| match map {
            None => id,
            Some(map) => map.to_disk(id).unwrap_or(OVERFLOW_ID),
        };
        (inside(&self.uids, uid), inside(&self.gids, gid))
    }

    /// What a user and a group in the tree are on this side; `None` for one that the container does not have.
    pub(super) fn owner_outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let outside = |map: &Option<IdMap>, id| match map {
            None => Some(id),
            Some(map) => map.has_disk(id).then(|| map.to_host(id)),
        };
        Some((outside(&self.uids, uid)?, outside(&self.gids, gid)?))
    }

    /// Who on this side is root in the tree, where that is somebody else.
    pub(super) fn foreign_root(&self) -> Option<(u32, u32)> {
        self.owner_outside(0, 0).filter(|root| *root != (0, 0))
    }
}

impl Found {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// What it is.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What `lstat` says of it.
    #[must_use]
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Its last name; empty for the root of the tree.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        last_name(&self.path)
    }

    /// Where it points to, if it is a symbolic link.
    ///
    /// # Errors
    /// The errno of `readlinkat`.
    pub fn link_target(&self) -> rustix::io::Result<Vec<u8>> {
        Ok(readlinkat(&self.handle, c"", Vec::new())?.into_bytes())
    }
}

/// Opens below `at`. Somebody who renames without pause must not keep us here for ever.
pub(super) fn open(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..OPEN_ATTEMPTS {
        match openat2(at, OsStr::from_bytes(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens what lies below a directory; a link on the way is `ELOOP`, and at the end too without `NOFOLLOW`.
pub(super) fn open_beneath(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open(at, path, flags, resolve)
}

/// Tells whether something belongs to a filesystem in which files are the kernel's, not anybody's.
pub(super) fn is_kernel_filesystem(file: BorrowedFd<'_>) -> bool {
    // What cannot be asked is no such one.
    fstatfs(file).is_ok_and(|found| KERNEL_FILESYSTEMS.contains(&found.f_type))
}

/// The path from the root, `.` and `..` resolved by text as Docker does with what users write.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    [b"/", names.join(&b'/').as_slice()].concat()
}

/// Whether a path says that it is one of a directory.
pub(super) fn asserts_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || is_contents(path)
}

/// Whether a path means what is in a directory: it ends in `.`.
pub(super) fn is_contents(path: &[u8]) -> bool {
    path == b"." || path.ends_with(b"/.")
}

/// The part of an absolute path before its last name.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

/// The last name of an absolute path.
pub(super) fn last_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |slash| &path[slash + 1..])
}

/// A path to what `handle` holds, for calls that take no such descriptor.
pub(super) fn by_descriptor(handle: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle))
}

/// Opens the very file that `handle` holds.
pub(super) fn reopen(handle: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, by_descriptor(handle), flags | OFlags::CLOEXEC, Mode::empty())?)
}

const HOST: &str = "the host";
/// As many as the kernel follows.
const MAX_LINKS: usize = 40;
const OPEN_ATTEMPTS: u32 = 10_000;

/// procfs, sysfs, both cgroups, devpts, mqueue, debugfs, tracefs, securityfs, bpf, pstore, efivarfs, configfs, nsfs,
/// selinuxfs, binfmt_misc: the numbers of `statfs(2)`.
const KERNEL_FILESYSTEMS: [i64; 16] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x6265_6570,
    0x6e73_6673,
    0xf97c_ff8c,
    0x4249_4e4d,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_users_are_cleaned_by_text() {
        for (path, cleaned) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../../b", "/b"),
            ("../..", "/"),
            ("/a/.", "/a"),
        ] {
            assert_eq!(text(&clean(path.as_bytes())), cleaned, "{path}");
        }
        assert!(asserts_directory(b"a/") && asserts_directory(b"a/.") && asserts_directory(b"."));
        assert!(!asserts_directory(b"a.") && !asserts_directory(b"a/..."));
        assert_eq!((parent(b"/a/b"), last_name(b"/a/b")), (&b"/a"[..], &b"b"[..]));
        assert_eq!((parent(b"/a"), last_name(b"/")), (&b""[..], &b""[..]));
    }

    #[test]
    fn links_lead_to_places_of_the_same_root() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(base.path().join("secret"), "").unwrap();
        std::fs::write(root.join("etc/passwd"), "").unwrap();
        for (target, link) in [("/etc", "absolute"), ("../../..", "up"), ("../secret", "out"), ("etc/passwd", "file")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let tree = Tree::container(OwnedFd::from(std::fs::File::open(&root).unwrap()), "c", None);
        assert!(tree.find(b"/absolute/passwd").is_ok());
        assert!(tree.find(b"/up/etc/passwd").is_ok());
        assert_eq!(tree.find(b"out").unwrap().file_type(), FileType::Symlink);
        assert!(tree.find(b"/absolute/").unwrap().is_directory());
        assert!(matches!(tree.find(b"/up/secret"), Err(ArchiveError::NotFound { .. })));
        let (path, found) = tree.follow(b"/file").unwrap();
        assert_eq!((text(&path), found.is_some()), ("/etc/passwd".to_owned(), true));
        let (path, found) = tree.follow(b"/out").unwrap();
        assert_eq!((text(&path), found.is_some()), ("/../secret".to_owned(), false));
        assert!(tree.follow(b"/loop").is_err());
        let error = tree.find(b"/nothing").unwrap_err().to_string();
        assert_eq!(error, "Could not find the file /nothing in container c");
    }
}
