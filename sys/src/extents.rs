//! Where a filesystem has space for a file.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Returns whether space is allocated for any of `length` bytes of a file from `offset` on (`FS_IOC_FIEMAP`), be there
/// data in it or not. What is promised to data that is not written yet counts.
///
/// Fails with `EOPNOTSUPP` or `ENOTTY` on filesystems that cannot tell.
pub fn is_allocated(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<bool> {
    let mut map = Map { start: offset, length, ..Map::default() };
    // SAFETY: the request reads and writes one `fiemap`, which `map` is; with no room for extents the kernel only counts
    // them.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
    if ret == 0 { Ok(map.mapped > 0) } else { Err(io::Error::last_os_error()) }
}

/// `struct fiemap` without extents.
#[repr(C)]
#[derive(Default)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
}

/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn space_is_seen_with_and_without_data_and_holes_are_not() {
        let path = std::env::temp_dir().join(format!("strata-extents-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"data", 1 << 19).unwrap();
        let seen = match is_allocated(file.as_fd(), 0, 1 << 18) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                println!("SKIPPED: the filesystem of {path:?} does not tell");
                return;
            }
            seen => seen.unwrap(),
        };
        assert!(!seen);
        assert!(is_allocated(file.as_fd(), 1 << 19, 4096).unwrap());
        // SAFETY: it takes a descriptor and numbers.
        assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 4096) }, 0);
        assert!(is_allocated(file.as_fd(), 0, 4096).unwrap());
        assert!(!is_allocated(file.as_fd(), 1 << 16, 4096).unwrap());
    }
}
