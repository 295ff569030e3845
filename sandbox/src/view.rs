//! The file tree of a container as a mount that is attached nowhere: for copying into and out of it from outside.
//!
//! Whoever holds the descriptor sees what the container sees, volumes included, and resolves paths below it with
//! `openat2`. Nothing of the container runs for that, and no namespace of it is entered by more than a thread of ours that
//! makes two calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use strata_sys::clone::unshare;
use strata_sys::mount_attributes::{self, MountAttributes, mount_setattr};

use crate::rooted;

/// A folder or file of the host that a container has somewhere in its tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container.
    pub target: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// A tree that cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The mounts of the container cannot be had.
    #[error("open the container's file tree")]
    Tree(#[source] io::Error),
    /// A folder of the host is missing, or the container's tree has no place for it.
    #[error("show {source_path:?} at {target:?} of the container")]
    Volume {
        /// The path on the host.
        source_path: PathBuf,
        /// The path in the container.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Returns the tree of a running container, by the pidfd of its first process: all its mounts as they are now, whatever
/// that process did to its own root.
///
/// # Errors
/// [`ViewError::Tree`] when the process has ended or may not be looked into.
pub fn of_running(init: BorrowedFd<'_>) -> Result<OwnedFd, ViewError> {
    in_thread(|| {
        unshare(u64::from(libc::CLONE_FS.unsigned_abs()))?;
        // Also makes the root of that namespace the root of this thread.
        move_into_thread_name_spaces(init, ThreadNameSpaceType::MOUNT)?;
        Ok(open_tree(CWD, c"/", CLONE_ALL)?)
    })
    .map_err(ViewError::Tree)
}

/// Puts the tree of a container that does not run together: its root, a detached mount, and its volumes.
///
/// A missing mount point is made, as a start would.
///
/// # Errors
/// [`ViewError`].
pub fn of_stopped(root: OwnedFd, read_only: bool, volumes: &[Volume]) -> Result<OwnedFd, ViewError> {
    // Opened first: in the thread below, the container's root is over all paths.
    let mut sources = Vec::with_capacity(volumes.len());
    for volume in volumes {
        sources.push(open_source(volume).map_err(|error| about(volume, error))?);
    }
    if !sources.is_empty() {
        let mut failed = None;
        let whole = in_thread(|| {
            unshare(u64::from((libc::CLONE_FS | libc::CLONE_NEWNS).unsigned_abs()))?;
            mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            move_mount(&root, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            for (volume, source) in volumes.iter().zip(&sources) {
                if let Err(error) = attach(root.as_fd(), volume, source) {
                    failed = Some(about(volume, error));
                    return Err(io::ErrorKind::Other.into());
                }
            }
            // The namespace ends with this thread; a copy of the mounts does not.
            Ok(open_tree(&root, c"", CLONE_ALL | OpenTreeFlags::AT_EMPTY_PATH)?)
        });
        return match (whole, failed) {
            (Ok(tree), _) => protect(tree, read_only),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(ViewError::Tree(error)),
        };
    }
    protect(root, read_only)
}

fn protect(tree: OwnedFd, read_only: bool) -> Result<OwnedFd, ViewError> {
    if read_only {
        mount_attributes::set_read_only(tree.as_fd()).map_err(ViewError::Tree)?;
    }
    Ok(tree)
}

fn about(volume: &Volume, source: io::Error) -> ViewError {
    ViewError::Volume { source_path: volume.source.clone(), target: volume.target.clone(), source }
}

fn open_source(volume: &Volume) -> io::Result<OwnedFd> {
    let mount = open_tree(CWD, &volume.source, CLONE_ALL)?;
    if volume.read_only {
        let attributes = MountAttributes { set: mount_attributes::RDONLY, ..MountAttributes::default() };
        mount_setattr(mount.as_fd(), c"", true, &attributes)?;
    }
    Ok(mount)
}

fn attach(root: BorrowedFd<'_>, volume: &Volume, source: &OwnedFd) -> io::Result<()> {
    let is_file = !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode).is_dir();
    let target = mount_point(root, &volume.target, is_file)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(source, c"", &target, c"", flags)?)
}

/// Opens a place in the root, making what is missing of it in directories that are held open.
fn mount_point(root: BorrowedFd<'_>, path: &Path, is_file: bool) -> io::Result<OwnedFd> {
    use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat};
    let plan = crate::plan::target(path, is_file).map_err(io::Error::other)?;
    let mut reached: Option<OwnedFd> = None;
    let last = plan.components.len().saturating_sub(1);
    for position in 0..plan.components.len() {
        let prefix = plan.components[..=position].iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
        let prefix = CString::new(prefix)?;
        let next = match rooted::open(root, prefix.as_c_str(), OFlags::PATH) {
            Err(rustix::io::Errno::NOENT) => {
                let parent = reached.as_ref().map_or(root, AsFd::as_fd);
                let name = plan.components[position].as_c_str();
                if is_file && position == last {
                    mknodat(parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
                } else {
                    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
                }
                rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
            }
            result => result?,
        };
        reached = Some(next);
    }
    match reached {
        Some(place) => Ok(place),
        None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// Runs `work` in a thread that ends afterwards, with whatever namespaces it entered.
fn in_thread(work: impl FnOnce() -> io::Result<OwnedFd> + Send) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread that looks into it panicked")))
    })
}

const CLONE_ALL: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC).union(OpenTreeFlags::AT_RECURSIVE);
