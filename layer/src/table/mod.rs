//! Tables that grow in memory and, when there is no more of it to be had, go on in a temporary file.
//!
//! Everything that grows with the entries of a layer is such a table, so that a layer of ten million entries takes no more
//! memory than one of a hundred thousand. A table in a file is reached through a few pages of it, written back when
//! others are needed. It is not mapped: a disk that is full or broken is an error here and not a signal.

mod bits;
mod paged;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) use self::bits::Bits;
use self::paged::Paged;

/// Memory for tables that are shared by all layers that are taken in at a time.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// Lets about so many bytes be used.
    pub const fn new(limit: usize) -> Memory {
        Memory { limit, used: AtomicUsize::new(0) }
    }
}

/// Makes temporary files for tables, and says how much memory there is before they are needed.
#[derive(Clone)]
pub struct Scratch {
    memory: &'static Memory,
    make: Arc<dyn Fn() -> io::Result<File> + Send + Sync>,
}

impl Scratch {
    /// Lets tables be in memory while there is some. `make` returns a new, empty file each time, which nobody else uses
    /// and which is gone when it is closed.
    pub fn new(memory: &'static Memory, make: impl Fn() -> io::Result<File> + Send + Sync + 'static) -> Scratch {
        Scratch { memory, make: Arc::new(make) }
    }

    /// Returns how much memory there is for everybody.
    pub(crate) fn limit(&self) -> usize {
        self.memory.limit
    }
}

/// A part of the memory, given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    memory: Option<&'static Memory>,
    bytes: usize,
}

impl Claim {
    /// Takes as much more as is needed for so many bytes; returns whether it is to be had.
    pub(crate) fn covers(&mut self, scratch: &Scratch, bytes: usize) -> bool {
        self.memory = Some(scratch.memory);
        while self.bytes < bytes {
            if scratch.memory.used.fetch_add(STEP, Ordering::Relaxed) + STEP > scratch.memory.limit {
                scratch.memory.used.fetch_sub(STEP, Ordering::Relaxed);
                return false;
            }
            self.bytes += STEP;
        }
        true
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(memory) = self.memory {
            memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Scratch").field("memory", self.memory).finish_non_exhaustive()
    }
}

/// What a table holds: plain bytes of a fixed size.
pub(crate) trait Record: Copy + FromBytes + IntoBytes + Immutable {}

impl<T: Copy + FromBytes + IntoBytes + Immutable> Record for T {}

/// A sequence of records.
pub(crate) enum Table<T> {
    Memory(Vec<T>),
    File(Paged<T>),
}

impl<T: Record> Table<T> {
    /// Makes an empty table: in memory, or in a file if there is somewhere to make one.
    pub(crate) fn new(scratch: Option<&Scratch>) -> Result<Table<T>, ScratchError> {
        Table::with_places(scratch, PLACES)
    }

    /// Makes a table of so many equal records.
    pub(crate) fn filled(scratch: Option<&Scratch>, count: usize, record: T) -> Result<Table<T>, ScratchError> {
        Table::new(scratch)?.fill(count, record)
    }

    /// Makes a table of so many equal records that are reached all over the place.
    pub(crate) fn scattered(scratch: Option<&Scratch>, count: usize, record: T) -> Result<Table<T>, ScratchError> {
        Table::with_places(scratch, SCATTERED_PLACES)?.fill(count, record)
    }

    fn with_places(scratch: Option<&Scratch>, places: usize) -> Result<Table<T>, ScratchError> {
        Ok(match scratch {
            None => Table::Memory(Vec::new()),
            Some(scratch) => Table::File(Paged::new((scratch.make)()?, places)),
        })
    }

    fn fill(mut self, count: usize, record: T) -> Result<Table<T>, ScratchError> {
        match &mut self {
            Table::Memory(records) => records.resize(count, record),
            Table::File(paged) => (0..count).try_for_each(|_| paged.push(record))?,
        }
        Ok(self)
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Table::Memory(records) => records.len(),
            Table::File(paged) => paged.len(),
        }
    }

    /// Returns how many bytes of memory the records take.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Table::Memory(records) => size_of_val(&records[..]),
            Table::File(_) => 0,
        }
    }

    /// Makes room, so that adding does not move the records.
    pub(crate) fn reserve(&mut self, count: usize) {
        if let Table::Memory(records) = self {
            records.reserve(count);
        }
    }

    pub(crate) fn push(&mut self, record: T) -> Result<(), ScratchError> {
        match self {
            Table::Memory(records) => records.push(record),
            Table::File(paged) => paged.push(record)?,
        }
        Ok(())
    }

    /// Returns a record.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn get(&mut self, number: usize) -> Result<T, ScratchError> {
        match self {
            Table::Memory(records) => Ok(records[number]),
            Table::File(paged) => Ok(paged.get(number)?),
        }
    }

    /// Replaces a record.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn set(&mut self, number: usize, record: T) -> Result<(), ScratchError> {
        match self {
            Table::Memory(records) => records[number] = record,
            Table::File(paged) => paged.set(number, record)?,
        }
        Ok(())
    }

    /// Changes a record in its place.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn update(&mut self, number: usize, change: impl FnOnce(&mut T)) -> Result<(), ScratchError> {
        match self {
            Table::Memory(records) => change(&mut records[number]),
            Table::File(paged) => {
                let mut record = paged.get(number)?;
                change(&mut record);
                paged.set(number, record)?;
            }
        }
        Ok(())
    }

    /// Adds records.
    pub(crate) fn extend(&mut self, more: &[T]) -> Result<(), ScratchError> {
        match self {
            Table::Memory(records) => records.extend_from_slice(more),
            Table::File(paged) => paged.extend(more)?,
        }
        Ok(())
    }

    /// Returns records that follow each other, where they are or copied into `buffer`.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn range<'a>(
        &'a mut self,
        first: usize,
        count: usize,
        buffer: &'a mut Vec<T>,
    ) -> Result<&'a [T], ScratchError> {
        match self {
            Table::Memory(records) => Ok(&records[first..first + count]),
            Table::File(paged) => {
                buffer.clear();
                paged.read(first, count, buffer)?;
                Ok(buffer)
            }
        }
    }

    /// Moves the records from memory into a file.
    pub(crate) fn spill(&mut self, scratch: &Scratch) -> Result<(), ScratchError> {
        if let Table::Memory(records) = self {
            let mut paged = Paged::new((scratch.make)()?, PLACES);
            paged.extend(records)?;
            *self = Table::File(paged);
        }
        Ok(())
    }

    /// Writes all records, one after the other.
    pub(crate) fn write_to(&mut self, out: &mut impl Write) -> Result<(), ScratchError> {
        match self {
            Table::Memory(records) => out.write_all(records.as_bytes())?,
            Table::File(paged) => paged.write_to(out)?,
        }
        Ok(())
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Table::Memory(records) => write!(formatter, "{} records in memory", records.len()),
            Table::File(_) => formatter.write_str("records in a file"),
        }
    }
}

/// A temporary file, or the file that something is written to, failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ScratchError {
    errno: i32,
}

impl ScratchError {
    /// Returns what the system said.
    pub fn to_io(self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl From<io::Error> for ScratchError {
    fn from(error: io::Error) -> ScratchError {
        ScratchError { errno: error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()) }
    }
}

impl fmt::Debug for ScratchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ScratchError({})", self.to_io())
    }
}

impl fmt::Display for ScratchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a file for the tables of the index: {}", self.to_io())
    }
}

impl std::error::Error for ScratchError {}

/// How many pages of a table are in memory: half a megabyte.
const PLACES: usize = 128;
/// How many of one that is reached all over the place: eight megabytes, a million names.
const SCATTERED_PLACES: usize = 2048;
/// How much memory is taken at once.
const STEP: usize = 64 << 10;

#[cfg(test)]
pub(crate) fn tiny_scratch() -> Scratch {
    static NONE: Memory = Memory::new(0);
    Scratch::new(&NONE, tempfile::tempfile)
}

#[cfg(test)]
mod tests {
    use zerocopy::little_endian::U32;

    use super::*;

    /// Seven bytes, so that records do not fit a page evenly.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
    #[repr(C)]
    struct Odd {
        a: U32,
        b: [u8; 3],
    }

    fn odd(number: usize) -> Odd {
        Odd { a: U32::new(u32::try_from(number).unwrap()), b: [1, 2, u8::try_from(number % 251).unwrap()] }
    }

    #[test]
    fn a_table_is_the_same_in_a_file() {
        let scratch = tiny_scratch();
        for start in [0, 1, 5000, 20_000] {
            let mut table = Table::new(None).unwrap();
            (0..start).for_each(|number| table.push(odd(number)).unwrap());
            table.spill(&scratch).unwrap();
            assert_eq!(table.memory(), 0);
            let more: Vec<Odd> = (start..start + 3000).map(odd).collect();
            table.extend(&more).unwrap();
            (start + 3000..start + 90_000).for_each(|number| table.push(odd(number)).unwrap());
            let count = table.len();
            assert_eq!(count, start + 90_000);
            // All over the place, so that pages come and go.
            for step in 0..count {
                let number = step * 7919 % count;
                assert_eq!(table.get(number).unwrap(), odd(number));
                table.update(number, |record| record.a += 1).unwrap();
            }
            let mut buffer = Vec::new();
            let found = table.range(start, 5000, &mut buffer).unwrap();
            assert!((start..).zip(found).all(|(number, found)| found.a == odd(number).a + 1));
            let mut written = Vec::new();
            table.write_to(&mut written).unwrap();
            let records = <[Odd]>::ref_from_bytes(&written).unwrap();
            assert_eq!(records.len(), count);
            assert!((0..).zip(records).all(|(number, found)| found.a == odd(number).a + 1));
        }
    }

    #[test]
    fn a_file_that_fails_is_told() {
        static NONE: Memory = Memory::new(0);
        let scratch = Scratch::new(&NONE, || File::open("/dev/null"));
        let mut table = Table::<u32>::new(Some(&scratch)).unwrap();
        let failed = (0..1_000_000).try_for_each(|number| table.push(number));
        assert_eq!(failed.unwrap_err().to_io().raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()));
        let scratch = Scratch::new(&NONE, || Err(io::Error::from_raw_os_error(28)));
        assert_eq!(Table::<u8>::new(Some(&scratch)).unwrap_err().to_io().raw_os_error(), Some(28));
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        static MEMORY: Memory = Memory::new(4 * STEP);
        let scratch = Scratch::new(&MEMORY, tempfile::tempfile);
        let (mut one, mut other) = (Claim::default(), Claim::default());
        assert!(one.covers(&scratch, 2 * STEP + 1) && one.covers(&scratch, 3 * STEP));
        assert!(other.covers(&scratch, STEP) && !other.covers(&scratch, STEP + 1));
        drop(one);
        assert!(other.covers(&scratch, 4 * STEP) && !other.covers(&scratch, 4 * STEP + 1));
        drop(other);
        assert_eq!(MEMORY.used.load(Ordering::Relaxed), 0);
    }
}
