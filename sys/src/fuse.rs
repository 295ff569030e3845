//! Calls on an open `/dev/fuse`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Finds out whether the kernel lets us name backing files on this connection, with `file` as the one to try.
///
/// The answer to the handshake does not tell: it is a matter of privileges, checked at this call.
pub fn probe_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads a `struct fuse_backing_map`, which `map` is and which outlives the call.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    let id = id.cast_unsigned();
    // SAFETY: the request reads a `u32`, the id that we just got and nobody else knows.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN`.
const BACKING_OPEN: libc::Ioctl = libc::_IOW::<BackingMap>(229, 1);
/// `FUSE_DEV_IOC_BACKING_CLOSE`.
const BACKING_CLOSE: libc::Ioctl = libc::_IOW::<u32>(229, 2);
