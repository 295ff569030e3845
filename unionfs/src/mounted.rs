//! What is mounted already: who serves it, other options, and its end.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::mount::{UnmountError, unmount_as};
use crate::spec::Options;
use crate::tree::SERVER;

/// Who serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// The process, by its number in its own namespace.
    pub pid: u32,
    /// Whether the mount has a writable layer.
    pub writable: bool,
}

/// What to do about users of a mount that is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Nothing: a mount that is in use stays.
    #[default]
    No,
    /// Their requests fail.
    Abort,
    /// They keep it, but it is seen no more.
    Detach,
}

/// Why other options could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RemountError {
    /// It has nowhere to write to.
    #[error("{0:?} has no writable layer")]
    NoUpper(PathBuf),
    /// The kernel refused.
    #[error("remount {path:?}")]
    Kernel {
        /// The place.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Asks a mount who serves it; `None` if it does not answer as one of ours.
pub fn server_of(dir: &Path) -> Option<Server> {
    let mut buffer = [0; 64];
    let length = rustix::fs::lgetxattr(dir, SERVER, &mut buffer[..]).ok()?;
    parse(std::str::from_utf8(&buffer[..length]).ok()?)
}

/// Changes whether a mount may be written, and the flags that every filesystem has.
///
/// The kernel first writes out what is dirty and refuses to make a mount read-only that somebody has open for writing.
pub fn remount(dir: &Path, options: &Options) -> Result<(), RemountError> {
    if !options.read_only && server_of(dir).is_some_and(|server| !server.writable) {
        return Err(RemountError::NoUpper(dir.to_owned()));
    }
    let flags = [
        (options.read_only, MountFlags::RDONLY),
        (options.nosuid, MountFlags::NOSUID),
        (options.nodev, MountFlags::NODEV),
        (options.noexec, MountFlags::NOEXEC),
        (options.noatime, MountFlags::NOATIME),
        (options.nodiratime, MountFlags::NODIRATIME),
        (options.sync, MountFlags::SYNCHRONOUS),
        (options.dirsync, MountFlags::DIRSYNC),
    ];
    let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
    mount_remount(dir, flags, c"").map_err(|error| RemountError::Kernel { path: dir.to_owned(), source: error.into() })
}

/// Unmounts the filesystem at `dir`, and waits until its server has written everything to the disk and is gone, at most
/// for `patience`.
pub fn unmount_with(dir: &Path, force: Force, patience: Duration) -> Result<(), UnmountError> {
    // Whoever is dead does not answer, and nobody waits for a mount that goes on. The descriptor is made while the
    // process serves: it cannot come to mean another.
    let server = (force == Force::No).then(|| server_of(dir)).flatten();
    let process = server
        .and_then(|server| Pid::from_raw(i32::try_from(server.pid).ok()?))
        .filter(|pid| *pid != rustix::process::getpid())
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    unmount_as(
        dir,
        match force {
            Force::No => UnmountFlags::empty(),
            Force::Abort => UnmountFlags::FORCE,
            Force::Detach => UnmountFlags::DETACH,
        },
    )?;
    let (Some(process), Some(server)) = (process, server) else { return Ok(()) };
    // A mount that others see in namespaces of their own goes on, and so does its server.
    if !ends_within(&process, NOTICE) && is_ending(server.pid) {
        ends_within(&process, patience);
    }
    Ok(())
}

fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    let timeout = Timespec { tv_sec: seconds, tv_nsec: limit.subsec_nanos().into() };
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Returns whether a server has nothing left to do but to write out.
fn is_ending(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_ascii_end() == ENDING.to_bytes())
}

fn parse(text: &str) -> Option<Server> {
    let (pid, mode) = text.split_once(' ')?;
    Some(Server { pid: pid.parse().ok()?, writable: mode == "rw" })
}

/// What a server's first thread is called from the end of the mount on.
pub(crate) const ENDING: &CStr = c"strata-fs-end";
/// How long a server may take to notice the end of its mount.
const NOTICE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_servers() {
        assert_eq!(parse("12 rw"), Some(Server { pid: 12, writable: true }));
        assert_eq!(parse("12 ro"), Some(Server { pid: 12, writable: false }));
        assert_eq!(parse("twelve rw"), None);
        assert_eq!(parse("12"), None);
        assert_eq!(server_of(Path::new("/proc")), None);
    }
}
