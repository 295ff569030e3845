//! Permissions of files that are open as a path only.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Changes the permission bits of a file (`fchmodat2`, Linux 6.6), which may have been opened with `O_PATH`. Fails for a
/// symbolic link.
pub fn set(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the path is a C string that the kernel only reads; all other arguments are numbers.
    let ret = unsafe { libc::syscall(libc::SYS_fchmodat2, file.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
