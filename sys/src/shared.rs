//! Memory that a process shares with the processes it forks.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Words of memory, zero at first, that are the same in this process and in all that are forked from it, at the same
/// address.
///
/// They are pages of nobody's file: gone with the last process that has them. Pages never touched take no memory.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is reached through atomics only, from wherever.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Words in a page, in which they are given back.
    pub const PER_PAGE: usize = 4096 / size_of::<AtomicU64>();

    /// Reserves room for `count` words.
    ///
    /// # Errors
    /// The errno of `mmap`, which is `ENOMEM` where the address space is limited.
    pub fn new(count: usize) -> io::Result<SharedWords> {
        let bytes = count.checked_mul(size_of::<AtomicU64>()).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(SharedWords { start: map_shared(bytes)?.cast(), count })
    }

    /// Leaves the words out of what is forked from now on by the calling process, which has them still.
    ///
    /// # Errors
    /// The errno of `madvise`.
    pub fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: the mapping that `new` made, whole. Who is forked must not use the words; that is said above, and a use is a fault.
        let done = unsafe { libc::madvise(self.start.as_ptr().cast(), size_of_val(&**self), libc::MADV_DONTFORK) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the memory behind whole pages of the words from `first` on back; they read as zero then.
    pub fn release(&self, first: usize, count: usize) {
        let end = first.saturating_add(count).min(self.count) / Self::PER_PAGE * Self::PER_PAGE;
        let first = first.next_multiple_of(Self::PER_PAGE);
        if let Some(words) = self.get(first..end).filter(|words| !words.is_empty()) {
            // SAFETY: whole pages inside the mapping. They become zero, which is a valid value of an atomic; whoever
            // reads or writes one meanwhile does so before or after.
            // Fails only where the kernel lacks it; then the memory stays.
            unsafe { libc::madvise(words.as_ptr().cast_mut().cast(), size_of_val(words), libc::MADV_REMOVE) };
        }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds that many words, is aligned to pages, lives as long as `self`, and zero pages are
        // valid atomics. All access is atomic, by other processes too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

/// Returns whether the page in which words of a [`SharedWords`] begin takes memory.
///
/// Only for looking at what was given back: what the system has put aside (swap) counts as absent.
pub fn is_resident(words: &[AtomicU64]) -> bool {
    let page = words.as_ptr().map_addr(|address| address & !(4096 - 1));
    let mut state = 0_u8;
    // SAFETY: asks about one page, where the words lie, and writes one byte.
    let asked = unsafe { libc::mincore(page.cast_mut().cast(), 1, &raw mut state) };
    asked == 0 && state & 1 != 0
}

/// Whether the words are there in this process.
#[cfg(test)]
pub(crate) fn is_mapped(words: &SharedWords) -> bool {
    let mut state = 0_u8;
    // SAFETY: asks about one page, and writes one byte.
    unsafe { libc::mincore(words.start.as_ptr().cast(), 1, &raw mut state) == 0 }
}

/// Maps memory that children made by fork share. What is never used takes none.
pub(crate) fn map_shared(bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; every borrow of it has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_begin_as_zero_and_keep_what_is_stored() {
        let words = SharedWords::new(1 << 28).unwrap();
        assert_eq!(words.len(), 1 << 28);
        words[(1 << 28) - 1].store(7, Ordering::Relaxed);
        assert_eq!(words[(1 << 28) - 1].load(Ordering::Relaxed), 7);
        assert_eq!(words[5000].load(Ordering::Relaxed), 0);
        words.release(0, 1 << 28);
        assert_eq!(words[(1 << 28) - 1].load(Ordering::Relaxed), 0);
        assert_eq!(SharedWords::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
