//! The memory of a connection's slots, shared by all processes that serve it one after another.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ANSWERED_AT, COMMIT_ID, IN_HEADER, PAYLOAD, SENT_AT, SLOT};
use crate::shared::map_shared;

/// The memory of all slots of a connection, and a few words about each queue.
#[derive(Debug)]
pub struct Buffers {
    start: NonNull<u8>,
    queues: u16,
    depth: u16,
}

// SAFETY: the memory is reached through a `Queue` only, each of which has slots of its own, and through atomics.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

/// What a process finds in a slot that another has used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing that is still to be done: it is to be offered to the kernel anew.
    Nothing,
    /// An answer that is complete and perhaps not with the kernel yet.
    Answer,
    /// The request of this number (`fuse_in_header.unique`), not answered.
    Request(u64),
}

/// A number about a queue that all processes can read and raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Tally {
    /// Grows when the queue's thread begins to wait for the kernel and when it goes on: even while it waits.
    Turns,
    /// Requests that the present server has taken.
    Taken,
    /// Those of them that it has answered.
    Answered,
    /// For whoever wants to know whether the queue is served: requests made for that alone.
    Asked,
    /// Those of them that have come back.
    Returned,
}

impl Buffers {
    /// Reserves the memory for `queues` queues of `depth` slots. What is never used takes no memory.
    ///
    /// # Errors
    /// The errno of `mmap`, which is `ENOMEM` where the address space is limited.
    pub fn new(queues: u16, depth: u16) -> io::Result<Buffers> {
        let start = map_shared(Buffers::length(queues, depth))?;
        Ok(Buffers { start, queues, depth })
    }

    /// Returns the number of queues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Returns the number of slots of each queue.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Returns a number about a queue.
    pub fn tally(&self, queue: u16, tally: Tally) -> &AtomicU64 {
        assert!(queue < self.queues, "a queue that does not exist");
        let place = usize::from(queue) * TALLIES + tally as usize;
        // SAFETY: inside the first part of the mapping, aligned, and never reached but atomically.
        unsafe { self.start.cast::<AtomicU64>().add(place).as_ref() }
    }

    /// Returns what an earlier process has left in a slot.
    pub fn found(&self, queue: u16, slot: u16) -> Found {
        let word = |offset| self.word(queue, slot, offset).load(Ordering::Acquire);
        let commit_id = word(COMMIT_ID);
        // The header is what the kernel writes last.
        let unique = word(UNIQUE_AT);
        if commit_id == 0 || word(SENT_AT) == commit_id {
            Found::Nothing
        } else if word(ANSWERED_AT) == commit_id {
            Found::Answer
        } else if unique == commit_id {
            Found::Request(unique)
        } else {
            Found::Nothing
        }
    }

    fn length(queues: u16, depth: u16) -> usize {
        Buffers::slots_at(queues) + usize::from(queues) * usize::from(depth) * SLOT
    }

    /// Returns where the slots begin.
    fn slots_at(queues: u16) -> usize {
        (usize::from(queues).max(1) * TALLIES * size_of::<AtomicU64>()).next_multiple_of(PAGE)
    }

    /// Returns where a slot begins.
    pub(super) fn slot(&self, queue: u16, slot: u16) -> NonNull<u8> {
        assert!(queue < self.queues && slot < self.depth, "a slot that does not exist");
        let number = usize::from(queue) * usize::from(self.depth) + usize::from(slot);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.byte_add(Buffers::slots_at(self.queues) + number * SLOT) }
    }

    pub(super) fn word(&self, queue: u16, slot: u16, offset: usize) -> &AtomicU64 {
        debug_assert!(offset < PAYLOAD && offset.is_multiple_of(8));
        // SAFETY: inside the slot's first page, aligned, and never reached but atomically while others may.
        unsafe { self.slot(queue, slot).byte_add(offset).cast::<AtomicU64>().as_ref() }
    }

    /// Gives the memory of a slot from an offset on, a whole number of pages, back to the system: it is zero then.
    ///
    /// # Safety
    /// Nobody uses that part of the slot now.
    pub(super) unsafe fn release(&self, queue: u16, slot: u16, from: usize) {
        debug_assert!(from.is_multiple_of(PAGE) && from < SLOT);
        // SAFETY: inside the slot, whole pages of it, and unused, as the caller promises.
        let start = unsafe { self.slot(queue, slot).byte_add(from) };
        // SAFETY: as above. Fails only where the kernel lacks it; then the memory stays.
        unsafe { libc::madvise(start.as_ptr().cast(), SLOT - from, libc::MADV_REMOVE) };
    }

    /// Makes the pages of a slot present in this process that the kernel is about to use: the first, and as many of the
    /// payload as `used` bytes lie in, at least one.
    ///
    /// From the moment that a process is killed, the kernel does not wait for a page of its memory any more. What it is
    /// just copying from there or to there fails with `EINTR`, which the client would see.
    pub(super) fn touch(&self, queue: u16, slot: u16, used: usize) {
        // Adds nothing, and writes all the same.
        self.word(queue, slot, SENT_AT).fetch_add(0, Ordering::Relaxed);
        for page in 0..used.clamp(1, SLOT - PAYLOAD).div_ceil(PAGE) {
            // SAFETY: inside the slot, and nobody writes to a slot that is not armed yet, or what is read is not used.
            unsafe { self.slot(queue, slot).byte_add(PAYLOAD + page * PAGE).read_volatile() };
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made. Every queue holds a reference as long as the kernel may write to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), Buffers::length(self.queues, self.depth)) };
    }
}

/// `fuse_in_header.unique`, at the same place as `fuse_out_header.unique`.
const UNIQUE_AT: usize = 8;
const _: () = assert!(UNIQUE_AT + 8 <= IN_HEADER);
/// Words for each queue: a cache line of its own.
const TALLIES: usize = 8;
const PAGE: usize = 4096;
