//! Signals by pidfd, and waiting for the end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Sends signal number `signal` (0 only checks) to the process of `pidfd`.
///
/// # Errors
/// `ESRCH` when the process has been reaped, `EPERM`, `EINVAL` for a number that is no signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no signal information is passed, the kernel fills in its own.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the process of `pidfd` has ended, at most for `limit`, and returns whether it has. It is not reaped.
///
/// # Errors
/// The errno of `poll`; never `EINTR`.
pub fn wait_for_end(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    // A time that the clock cannot tell never comes.
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn the_end_is_waited_for_and_no_longer_than_asked() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!wait_for_end(pidfd.as_fd(), Duration::ZERO).unwrap());
        assert!(!wait_for_end(pidfd.as_fd(), Duration::from_millis(20)).unwrap());
        child.kill().unwrap();
        assert!(wait_for_end(pidfd.as_fd(), Duration::MAX).unwrap());
        child.wait().unwrap();
    }
}
