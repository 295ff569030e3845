//! fs-verity: files whose every byte the kernel checks against a hash tree when it is read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the kernel verify a file from now on (`FS_IOC_ENABLE_VERITY`), by a tree of SHA-256 over blocks of `block_size`
/// bytes: a power of two from 1024 to the smaller one of the filesystem's blocks and the machine's pages.
///
/// `file` must be open for reading, and nobody may have it open for writing. It can never be written again, only removed.
/// Fails with `ENOTTY` or `EOPNOTSUPP` where the filesystem cannot, and with `EEXIST` if it was done already.
pub fn enable(file: BorrowedFd<'_>, block_size: u32) -> io::Result<()> {
    let argument = EnableArgument { version: 1, hash_algorithm: SHA256, block_size, ..EnableArgument::default() };
    // SAFETY: the request reads one `struct fsverity_enable_arg`, which `EnableArgument` mirrors; its pointers are null
    // and their lengths zero.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const argument) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the digest that the kernel verifies a file against (`FS_IOC_MEASURE_VERITY`); a constant amount of work.
///
/// `None` if the file, or its filesystem, has no fs-verity, or a digest of another kind than [`enable`] makes.
pub fn measure(file: BorrowedFd<'_>) -> io::Result<Option<[u8; 32]>> {
    let mut measured = Measured { algorithm: 0, size: 32, digest: [0; 32] };
    // SAFETY: the request reads `size` and writes at most as many bytes of the digest, for which there is room.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut measured) };
    if ret == 0 {
        let ours = u32::from(measured.algorithm) == SHA256 && measured.size == 32;
        return Ok(ours.then_some(measured.digest));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENODATA | libc::ENOTTY | libc::EOPNOTSUPP | libc::EOVERFLOW) => Ok(None),
        _ => Err(error),
    }
}

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_more: [u64; 11],
}

/// `struct fsverity_digest`, with room for a SHA-256.
#[repr(C)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;
/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const FS_IOC_ENABLE_VERITY: libc::Ioctl = (1 << 30) | (128 << 16) | (0x66 << 8) | 133;
/// `_IOWR('f', 134, struct fsverity_digest)`.
const FS_IOC_MEASURE_VERITY: libc::Ioctl = (3 << 30) | (4 << 16) | (0x66 << 8) | 134;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!(size_of::<Measured>(), 36);
    }

    #[test]
    fn a_file_in_memory_has_none() {
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(measure(file.as_fd()).is_ok_and(|digest| digest.is_none()));
        assert!(enable(file.as_fd(), 4096).is_err());
    }
}
