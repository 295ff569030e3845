//! What namespaces are to each other.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens the parent of the user or pid namespace that `namespace` is a file of.
///
/// # Errors
/// `EPERM` for a parent that is outside of the caller's own, `EINVAL` for a namespace of another kind.
pub fn parent(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `linux/nsfs.h`; the descriptor closes on exec.
const NS_GET_PARENT: libc::Ioctl = libc::_IO(0xb7, 2);
