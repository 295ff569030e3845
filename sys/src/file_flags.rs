//! Flags of files beyond their mode: what `lsattr` and `xfs_io` show.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Flags, extent sizes and project of a file (`struct fsxattr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtendedFlags {
    /// `FS_XFLAG_*`.
    pub flags: u32,
    /// Hint for the size of extents.
    pub extent_size: u32,
    /// Number of extents; only told, never set.
    pub extents: u32,
    /// Project, for quotas.
    pub project: u32,
    /// Hint for the size of extents when copying on write.
    pub copy_extent_size: u32,
    padding: [u8; 8],
}

/// Returns the flags of a file (`FS_IOC_GETFLAGS`). `file` must not be opened with `O_PATH`.
pub fn flags(file: BorrowedFd<'_>) -> io::Result<u32> {
    let mut flags: libc::c_int = 0;
    // SAFETY: the request is declared with a `long` but writes an `int`, as every filesystem does; `flags` is valid.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(flags.cast_unsigned()) }
}

/// Sets the flags of a file (`FS_IOC_SETFLAGS`).
pub fn set_flags(file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let flags = flags.cast_signed();
    // SAFETY: the request reads one `int`, and `flags` is valid for the call.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the extended flags of a file (`FS_IOC_FSGETXATTR`).
pub fn extended_flags(file: BorrowedFd<'_>) -> io::Result<ExtendedFlags> {
    let mut flags = ExtendedFlags::default();
    // SAFETY: the request writes one `struct fsxattr`, which `ExtendedFlags` mirrors, and `flags` is valid for the call.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut flags) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}

/// Sets the extended flags of a file (`FS_IOC_FSSETXATTR`).
pub fn set_extended_flags(file: BorrowedFd<'_>, flags: &ExtendedFlags) -> io::Result<()> {
    // SAFETY: the request reads one `struct fsxattr`, which `ExtendedFlags` mirrors, and `flags` is valid for the call.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, std::ptr::from_ref(flags)) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl ExtendedFlags {
    /// Reads them as they lie in memory (28 bytes), or returns `None` for another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<ExtendedFlags> {
        let bytes: &[u8; 28] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(ExtendedFlags {
            flags: word(0),
            extent_size: word(4),
            extents: word(8),
            project: word(12),
            copy_extent_size: word(16),
            padding: [0; 8],
        })
    }

    /// Returns them as they lie in memory.
    pub fn to_bytes(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let words = [self.flags, self.extent_size, self.extents, self.project, self.copy_extent_size];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::Ioctl = (2 << 30) | (28 << 16) | (0x58 << 8) | 31;
/// `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSSETXATTR: libc::Ioctl = (1 << 30) | (28 << 16) | (0x58 << 8) | 32;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn flags_lie_in_memory_as_the_kernel_has_them() {
        assert_eq!(size_of::<ExtendedFlags>(), 28);
        let flags =
            ExtendedFlags { flags: 1, extent_size: 2, extents: 3, project: 4, copy_extent_size: 5, padding: [0; 8] };
        assert_eq!(ExtendedFlags::from_bytes(&flags.to_bytes()), Some(flags));
        assert_eq!(ExtendedFlags::from_bytes(&[0; 27]), None);
    }

    #[test]
    fn a_file_that_has_flags_says_the_same_twice() {
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        // A filesystem without flags is no failure of ours.
        let Ok(flags) = flags(file.as_fd()) else { return };
        const NO_DUMP: (u32, u32) = (0x40, 0x80);
        let Ok(extended) = extended_flags(file.as_fd()) else { return };
        assert_eq!(flags & NO_DUMP.0 != 0, extended.flags & NO_DUMP.1 != 0);
    }
}
