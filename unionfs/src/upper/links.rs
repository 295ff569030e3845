//! What is remembered about lower files with several names, so that their links stay together over a remount.
//!
//! A lower file with hard links is copied up once. The copy then lies in the upper under one of the names, and the other
//! names still lead to the lower. For each such file the folder holds, named by its inode number in hexadecimal,
//! a further hard link to the copy (if there is one), and a symbolic link `<number>.names` to `<covered>-of-<all>`:
//! how many of the lower's names are no longer seen through.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::for_each_name;
use crate::Result;
use crate::backing;
use crate::node::Ino;

/// The memory of hard links.
#[derive(Debug)]
pub(crate) struct Links {
    dir: OwnedFd,
    known: Mutex<HashMap<Ino, Link>>,
}

/// What is remembered of one lower file with several names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Names that the lower has for it.
    pub(crate) all: u32,
    /// Those of them that are deleted or lie in the upper now.
    pub(crate) covered: u32,
    /// Whether the copy in the upper is linked here.
    pub(crate) copied: bool,
}

impl Links {
    /// Reads what is there; what makes no sense is ignored.
    pub(crate) fn open(dir: OwnedFd) -> Result<Links> {
        let mut known: HashMap<Ino, Link> = HashMap::new();
        let listed = for_each_name(dir.as_fd(), &mut |name, _| {
            let Ok(name) = str::from_utf8(name) else { return Ok(()) };
            match name.split_once('.') {
                None => {
                    if let Some(ino) = parse_ino(name) {
                        known.entry(ino).or_default().copied = true;
                    }
                }
                Some((number, "names")) => {
                    let target = rustix::fs::readlinkat(&dir, name, Vec::new());
                    let parsed = target.ok().and_then(|target| parse_names(target.to_str().ok()?));
                    if let (Some(ino), Some((covered, all))) = (parse_ino(number), parsed) {
                        let link = known.entry(ino).or_default();
                        (link.covered, link.all) = (covered, all);
                    }
                }
                Some(_) => {}
            }
            Ok(())
        });
        match listed {
            // A layer that is only looked at need not have the folder.
            Ok(()) | Err(Errno::NOTDIR) => {}
            Err(error) => return Err(error),
        }
        known.retain(|_, link| link.all > 1);
        Ok(Links { dir, known: Mutex::new(known) })
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<Link> {
        self.known().get(&ino).copied()
    }

    /// Returns whether some name of the lower shows a file of the upper.
    pub(crate) fn any_shared(&self) -> bool {
        self.known().values().any(|link| link.copied && link.covered < link.all)
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the name under which the copy is linked here.
    pub(crate) fn name(ino: Ino) -> String {
        format!("{:x}", ino.0)
    }

    /// Links the copy.
    pub(crate) fn add_copy(&self, ino: Ino, file: BorrowedFd<'_>) -> Result<()> {
        let link = || {
            let name = Links::name(ino);
            rustix::fs::linkat(rustix::fs::CWD, backing::magic_link(file), &self.dir, name, AtFlags::SYMLINK_FOLLOW)
        };
        match link() {
            // Left by something that did not finish.
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.dir, Links::name(ino), AtFlags::empty())?;
                link()
            }
            result => result,
        }
    }

    /// Remembers how many names are covered.
    pub(crate) fn set(&self, ino: Ino, link: Link) -> Result<()> {
        let name = format!("{:x}.names", ino.0);
        let fresh = format!("{:x}.new", ino.0);
        match rustix::fs::unlinkat(&self.dir, &fresh, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        rustix::fs::symlinkat(format!("{}-of-{}", link.covered, link.all), &self.dir, &fresh)?;
        rustix::fs::renameat(&self.dir, &fresh, &self.dir, &name)?;
        self.known().insert(ino, link);
        Ok(())
    }

    /// Forgets a file that has no name left.
    pub(crate) fn remove(&self, ino: Ino) {
        self.known().remove(&ino);
        for name in [Links::name(ino), format!("{:x}.names", ino.0)] {
            // What stays only takes space.
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Ino, Link>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_ino(text: &str) -> Option<Ino> {
    u64::from_str_radix(text, 16).ok().filter(|number| *number > 1).map(Ino)
}

fn parse_names(text: &str) -> Option<(u32, u32)> {
    let (covered, all) = text.split_once("-of-")?;
    let (covered, all) = (covered.parse().ok()?, all.parse().ok()?);
    (covered <= all).then_some((covered, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_read_again_and_garbage_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let open = || OwnedFd::from(std::fs::File::open(temp.path()).unwrap());
        let link = Link { all: 3, covered: 2, copied: false };
        Links::open(open()).unwrap().set(Ino(0x2a), link).unwrap();
        std::fs::write(temp.path().join("zz"), "").unwrap();
        std::os::unix::fs::symlink("9-of-3", temp.path().join("7.names")).unwrap();
        std::fs::write(temp.path().join("99"), "").unwrap();
        let links = Links::open(open()).unwrap();
        assert_eq!(links.get(Ino(0x2a)), Some(link));
        assert_eq!(links.known().len(), 1);
        links.remove(Ino(0x2a));
        assert_eq!(Links::open(open()).unwrap().get(Ino(0x2a)), None);
    }
}
