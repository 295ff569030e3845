//! `fork`: a copy of this process that goes on as a process of its own.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Which side of the call this is.
#[derive(Debug)]
pub enum Forked {
    /// The caller, with the new process.
    Parent {
        /// The child's process number.
        pid: u32,
        /// A descriptor for the child, close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process, with copies of all memory that is not shared, and of all descriptors.
    Child,
}

/// Copies this process. Refused with `EDEADLK` if it has more than one thread: the copy would have only the calling
/// one, and whatever lock another held at the moment would be held for ever.
///
/// # Errors
/// The errno of `fork` or `pidfd_open`; that of reading `/proc/self/task`.
pub fn fork() -> io::Result<Forked> {
    let mut threads = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        task?;
        threads += 1;
    }
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: this is the only thread, as just counted, and only it could have started another since. So no lock is
    // held by anybody who is missing in the child, which may therefore do whatever the parent may.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers and touches no memory. The child is not reaped yet, so the number is still its own.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(pidfd) {
        Ok(fd) if fd >= 0 => Ok(Forked::Parent {
            pid: pid.unsigned_abs(),
            // SAFETY: the kernel just returned this descriptor and nobody else knows its number.
            pidfd: unsafe { OwnedFd::from_raw_fd(fd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness runs each test in a thread beside the main one.
        assert_eq!(fork().unwrap_err().raw_os_error(), Some(libc::EDEADLK));
    }
}
