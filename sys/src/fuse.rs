//! Calls on an open `/dev/fuse`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Lets the kernel use `file` on this connection for the data of nodes and returns the number that stands for it.
///
/// Whether it may is a matter of privileges, checked at this call; the answer to the handshake does not tell.
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads a `struct fuse_backing_map`, which `map` is and which outlives the call.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) };
    if id < 0 { Err(io::Error::last_os_error()) } else { Ok(id.cast_unsigned()) }
}

/// Takes back a number of [`open_backing`].
pub fn close_backing(device: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    // SAFETY: the request reads a `u32`, which `number` is and which outlives the call.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const number) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `clone`, a freshly opened `/dev/fuse`, one more channel of the connection of `device`.
pub fn clone_device(clone: BorrowedFd<'_>, device: BorrowedFd<'_>) -> io::Result<()> {
    let number = device.as_raw_fd().cast_unsigned();
    // SAFETY: the request reads a `u32`, which `number` is and which outlives the call.
    let ret = unsafe { libc::ioctl(clone.as_raw_fd(), CLONE, &raw const number) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_CLONE`.
const CLONE: libc::Ioctl = libc::_IOR::<u32>(229, 0);
/// `FUSE_DEV_IOC_BACKING_OPEN`.
const BACKING_OPEN: libc::Ioctl = libc::_IOW::<BackingMap>(229, 1);
/// `FUSE_DEV_IOC_BACKING_CLOSE`.
const BACKING_CLOSE: libc::Ioctl = libc::_IOW::<u32>(229, 2);
