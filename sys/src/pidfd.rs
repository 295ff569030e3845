//! Signals by pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
