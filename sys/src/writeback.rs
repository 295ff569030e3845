//! Starting to write a file's pages to the disk.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Starts to write the changed pages of a part of a file to the disk, and does not wait for it.
///
/// Nothing is durable afterwards; a later `fsync` or `syncfs` just finds less to do.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let number = |value: u64| i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    let (offset, length) = (number(offset)?, number(length)?);
    let fd = file.as_fd();
    // SAFETY: the descriptor is borrowed for the length of the call, which takes no pointers.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_pages_are_started_and_kept() {
        let path = std::env::temp_dir().join(format!("strata-writeback-{}", std::process::id()));
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        start_writeback(&file, 0, 100_000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
        std::fs::remove_file(&path).unwrap();
        assert!(start_writeback(&file, u64::MAX, 1).is_err());
    }
}
