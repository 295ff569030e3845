//! Sparse files in the PAX 1.0 form: the map is text in front of the data.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::header::BLOCK;

/// Returns the map of a file of `size` bytes with data in these ranges, padded to whole blocks. `None` if the ranges are
/// empty, out of order, overlap or leave the file.
pub(super) fn encode_map(data: &[Range<u64>], size: u64) -> Option<Vec<u8>> {
    let mut previous = 0;
    for range in data {
        if range.start < previous || range.end <= range.start || range.end > size {
            return None;
        }
        previous = range.end;
    }
    // As GNU tar does, an empty range marks a hole at the end.
    let end = (previous < size).then_some(size..size);
    let ranges = data.iter().chain(end.as_ref());
    let mut map = format!("{}\n", ranges.clone().count());
    for range in ranges {
        map += &format!("{}\n{}\n", range.start, range.end - range.start);
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    Some(map)
}

/// Returns where the first `size` bytes of `file` hold data, or `None` if its holes are not worth a sparse entry: fewer
/// than 64 KiB in total. Moves the file's position.
///
/// The threshold keeps ordinary files ordinary entries, which more readers understand.
pub(super) fn data_ranges(file: &File, size: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut ranges = Vec::new();
    let mut covered = 0u64;
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A filesystem that does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if start >= size {
            break;
        }
        // Every file ends in a hole. Ended by a concurrent truncation otherwise, which reading will notice.
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        ranges.push(start..end);
        covered += end - start;
        at = end;
    }
    Ok((size - covered >= WORTHWHILE).then_some(ranges))
}

/// Reads the ranges of a file, one after the other, whatever the file's position.
#[derive(Debug)]
pub(super) struct RangesReader<'a> {
    file: &'a File,
    ranges: std::slice::Iter<'a, Range<u64>>,
    current: Range<u64>,
}

impl<'a> RangesReader<'a> {
    pub(super) fn new(file: &'a File, ranges: &'a [Range<u64>]) -> RangesReader<'a> {
        RangesReader { file, ranges: ranges.iter(), current: 0..0 }
    }
}

impl Read for RangesReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.ranges.next() {
                Some(range) => self.current = range.clone(),
                None => return Ok(0),
            }
        }
        let left = usize::try_from(self.current.end - self.current.start).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let got = self.file.read_at(&mut buffer[..length], self.current.start)?;
        self.current.start += got as u64;
        Ok(got)
    }
}

/// Bytes of holes that make a sparse entry worth it.
const WORTHWHILE: u64 = 64 * 1024;
