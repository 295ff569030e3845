//! Records in a file, of which a few pages are in memory.

use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes as _;

use super::Record;

/// A sequence of records in a file that nobody else uses.
///
/// Each page of the file has one place in memory where it can be, so finding it costs nothing. What is added lies on
/// few pages, and so does what is near to each other; else each access is a read of one page, mostly from the kernel's cache.
pub(crate) struct Paged<T> {
    file: File,
    count: usize,
    places: Vec<Place>,
    records: PhantomData<T>,
}

/// Where a page can be in memory.
struct Place {
    page: usize,
    changed: bool,
    bytes: Box<[u8]>,
}

impl<T: Record> Paged<T> {
    /// Records do not cross the edges of pages: a page is as many as fit.
    const PER_PAGE: usize = PAGE / size_of::<T>();
    const PAGE_BYTES: usize = Self::PER_PAGE * size_of::<T>();

    /// Starts with an empty file, of which so many pages can be in memory.
    pub(super) fn new(file: File, places: usize) -> Paged<T> {
        let place = || Place { page: usize::MAX, changed: false, bytes: Box::default() };
        Paged { file, count: 0, places: (0..places).map(|_| place()).collect(), records: PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, record: T) -> io::Result<()> {
        self.count += 1;
        self.set(self.count - 1, record)
    }

    pub(super) fn extend(&mut self, records: &[T]) -> io::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let (page, first) = (self.count / Self::PER_PAGE, self.count % Self::PER_PAGE);
            let (now, later) = rest.split_at(rest.len().min(Self::PER_PAGE - first));
            let place = self.page(page)?;
            place.changed = true;
            place.bytes[first * size_of::<T>()..][..size_of_val(now)].copy_from_slice(now.as_bytes());
            self.count += now.len();
            rest = later;
        }
        Ok(())
    }

    pub(super) fn get(&mut self, number: usize) -> io::Result<T> {
        assert!(number < self.count, "record {number} of {}", self.count);
        let place = self.page(number / Self::PER_PAGE)?;
        let start = number % Self::PER_PAGE * size_of::<T>();
        Ok(T::read_from_bytes(&place.bytes[start..start + size_of::<T>()]).expect("as many bytes as it has"))
    }

    pub(super) fn set(&mut self, number: usize, record: T) -> io::Result<()> {
        assert!(number < self.count, "record {number} of {}", self.count);
        let place = self.page(number / Self::PER_PAGE)?;
        let start = number % Self::PER_PAGE * size_of::<T>();
        place.changed = true;
        place.bytes[start..start + size_of::<T>()].copy_from_slice(record.as_bytes());
        Ok(())
    }

    /// Adds records that follow each other to `out`.
    pub(super) fn read(&mut self, first: usize, count: usize, out: &mut Vec<T>) -> io::Result<()> {
        let end = first + count;
        assert!(end <= self.count, "records {first} to {end} of {}", self.count);
        let mut next = first;
        while next < end {
            let (page, start) = (next / Self::PER_PAGE, next % Self::PER_PAGE);
            let here = (end - next).min(Self::PER_PAGE - start);
            let place = self.page(page)?;
            for number in start..start + here {
                let bytes = &place.bytes[number * size_of::<T>()..][..size_of::<T>()];
                out.push(T::read_from_bytes(bytes).expect("as many bytes as it has"));
            }
            next += here;
        }
        Ok(())
    }

    pub(super) fn write_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        for page in 0..self.count.div_ceil(Self::PER_PAGE) {
            let here = (self.count - page * Self::PER_PAGE).min(Self::PER_PAGE);
            out.write_all(&self.page(page)?.bytes[..here * size_of::<T>()])?;
        }
        Ok(())
    }

    /// Brings a page into memory, which may push another one out. What was never written reads as zeros.
    fn page(&mut self, page: usize) -> io::Result<&mut Place> {
        let count = self.places.len();
        let place = &mut self.places[page % count];
        if place.page != page {
            if place.bytes.is_empty() {
                place.bytes = vec![0; Self::PAGE_BYTES].into();
            }
            if place.changed {
                self.file.write_all_at(&place.bytes, (place.page * Self::PAGE_BYTES) as u64)?;
                place.changed = false;
            }
            place.page = usize::MAX;
            read_page(&self.file, &mut place.bytes, (page * Self::PAGE_BYTES) as u64)?;
            place.page = page;
        }
        Ok(place)
    }
}

fn read_page(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

const PAGE: usize = 4096;
