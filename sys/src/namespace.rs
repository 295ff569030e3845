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

/// Returns the kind of the namespace that `namespace` is a file of, as its `CLONE_NEW*` bit.
///
/// # Errors
/// `ENOTTY` for a file of another sort.
pub fn kind(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: the ioctl takes no argument and returns a number or -1.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) };
    u64::try_from(kind).map_err(|_| io::Error::last_os_error())
}

/// `linux/nsfs.h`; the descriptor closes on exec.
const NS_GET_PARENT: libc::Ioctl = libc::_IO(0xb7, 2);
/// `linux/nsfs.h`
const NS_GET_NSTYPE: libc::Ioctl = libc::_IO(0xb7, 3);
