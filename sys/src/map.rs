//! Read-only memory maps of whole files.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

/// A file mapped for reading.
///
/// Only for files that nobody shortens while they are mapped: a read past the new end raises `SIGBUS`. Our own files
/// are written aside and renamed into place, so they never change under their name.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps all of `file`.
    pub fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the map is shared and read-only. That the bytes do not change or vanish under it is the condition
        // stated on the type; the callers map only files that are replaced by rename and never written in place.
        unsafe { memmap2::Mmap::map(file) }.map(Map)
    }

    /// Gives the memory back that the pages of a range read so far take in this process. They stay in the kernel's cache.
    pub fn forget(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: the map is shared and of a file, so what is read next is what was there before.
        unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_shows_the_whole_file() {
        let mut file = tempfile_in_memory();
        assert_eq!(&*Map::of(&file).unwrap(), b"");
        io::Write::write_all(&mut file, b"strata").unwrap();
        let map = Map::of(&file).unwrap();
        assert_eq!(&*map, b"strata");
        map.forget(0..6).unwrap();
        assert_eq!(&*map, b"strata");
    }

    fn tempfile_in_memory() -> File {
        File::from(rustix::fs::memfd_create("map-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }
}
