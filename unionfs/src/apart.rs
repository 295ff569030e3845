//! That no folder of a mount is changed by what is done to another.

use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::Result;
use crate::backing::{self, Identity};
use crate::spec::{Lower, MountSpec};

/// Two folders of a mount of which one is the other or lies in it.
#[derive(Debug, thiserror::Error)]
#[error("{inner:?} is or lies in {outer:?}: the folder of changes, its work folder and the layers below must be apart")]
pub struct Overlap {
    inner: PathBuf,
    outer: PathBuf,
}

/// Makes sure that the upper and its work folder do not lie in each other, and no lower in either: staging is emptied,
/// and lowers must not change. That they lie in a lower is allowed, as in overlayfs.
///
/// A folder that cannot be looked at is for whoever opens it to complain about. That one lies in another is judged by
/// their paths: against mistakes, not against who hides it behind a mount.
pub(crate) fn check(spec: &MountSpec) -> Result<(), Overlap> {
    let Some(upper) = &spec.upper else { return Ok(()) };
    let (Ok(dir), Ok(work)) = (Place::of(&upper.dir), Place::of(&upper.work)) else { return Ok(()) };
    dir.is_not_in(&work)?;
    work.is_not_in(&dir)?;
    let Lower::Folders(lowers) = &spec.lower else { return Ok(()) };
    for lower in lowers.iter().filter_map(|lower| Place::of(lower).ok()) {
        lower.is_not_in(&dir)?;
        lower.is_not_in(&work)?;
    }
    Ok(())
}

/// Where a folder is, whatever led to it.
struct Place {
    identity: Identity,
    path: PathBuf,
}

impl Place {
    fn of(folder: &Path) -> Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(folder, flags, Mode::empty())?;
        let path = rustix::fs::readlinkat(CWD, backing::magic_link(fd.as_fd()), Vec::new())?.into_bytes();
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        Ok(Place { identity: backing::identity(&backing::stat(fd.as_fd())?), path })
    }

    fn is_not_in(&self, other: &Place) -> Result<(), Overlap> {
        if self.identity == other.identity || self.path.starts_with(&other.path) {
            return Err(Overlap { inner: self.path.clone(), outer: other.path.clone() });
        }
        Ok(())
    }
}
