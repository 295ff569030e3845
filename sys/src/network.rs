//! Network interfaces of the current network namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Switches the loopback interface on. `socket` is any INET or UNIX datagram socket of the namespace.
///
/// # Errors
/// The errno of the ioctls.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, valid when zeroed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: SIOCGIFFLAGS fills the flags of a valid `ifreq` whose name is NUL-terminated.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl above wrote this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= UP };
    // SAFETY: SIOCSIFFLAGS reads a valid `ifreq`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `IFF_UP`, as wide as the field.
const UP: libc::c_short = 1;
