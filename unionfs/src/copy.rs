//! Moving file data with as little copying as the filesystems allow.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::Result;

/// Copies `length` bytes between two places in files; reaching the end of `from` early is an error.
pub(crate) fn copy_range(
    from: BorrowedFd<'_>,
    source: u64,
    to: BorrowedFd<'_>,
    target: u64,
    length: u64,
) -> Result<()> {
    let mut done = 0;
    while done < length {
        let (mut input, mut output) = (source + done, target + done);
        let step = usize::try_from(length - done).unwrap_or(usize::MAX).min(STEP);
        match rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), step) {
            Ok(0) => return Err(Errno::IO),
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            // Across filesystems of different types, or a filesystem that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => {
                return copy_by_buffer(from, source + done, to, target + done, length - done);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies the whole of `from` to the empty file `to`, keeping holes, up to `length`.
pub(crate) fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<()> {
    let size = u64::try_from(rustix::fs::fstat(from)?.st_size).map_err(|_| Errno::IO)?;
    if length >= size && size > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let end = length.min(size);
    rustix::fs::ftruncate(to, end)?;
    let mut offset = 0;
    while offset < end {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => offset,
            Err(error) => return Err(error),
        };
        if start >= end {
            break;
        }
        let stop = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)).unwrap_or(end).min(end);
        if stop <= start {
            break;
        }
        copy_range(from, start, to, start, stop - start)?;
        offset = stop;
    }
    Ok(())
}

fn copy_by_buffer(
    from: BorrowedFd<'_>,
    mut source: u64,
    to: BorrowedFd<'_>,
    mut target: u64,
    length: u64,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER))];
    let mut left = length;
    while left > 0 {
        let step = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = match rustix::io::pread(from, &mut buffer[..step], source) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        write_all_at(to, &buffer[..read], target)?;
        source += read as u64;
        target += read as u64;
        left -= read as u64;
    }
    Ok(())
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_all_at(to: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        match rustix::io::pwrite(to, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                data = &data[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One call moves at most this much, so that a signal is noticed.
const STEP: usize = 1 << 30;
const BUFFER: usize = 1 << 20;
