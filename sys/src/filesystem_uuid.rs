//! The identifier that a filesystem carries in its superblock.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the UUID of the filesystem that `file` lies on (`FS_IOC_GETFSUUID`, Linux 6.9). `file` must not be opened
/// with `O_PATH`. Fails with `ENOTTY` where the filesystem has none.
pub fn filesystem_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut raw = RawUuid { length: 0, uuid: [0; 16] };
    // SAFETY: the request writes one `struct fsuuid2`, which `RawUuid` mirrors, and `raw` is valid for the call.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut raw) };
    match ret {
        0 if raw.length == 16 => Ok(raw.uuid),
        0 => Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct fsuuid2` of `linux/fs.h`.
#[repr(C)]
struct RawUuid {
    length: u8,
    uuid: [u8; 16],
}

/// `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::Ioctl = (2 << 30) | (17 << 16) | (0x15 << 8);
