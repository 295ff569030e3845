//! FUSE over io_uring: requests of the kernel in buffers of ours, one queue per CPU.
//!
//! A slot is a piece of memory for one request at a time. It is *armed* while the kernel may write to it, and ours from
//! the moment that the kernel has put a request there until we send the answer, which arms it again. Slots lie in
//! [`Buffers`], memory that forked processes share: if one dies, the next finds at the same addresses what was in work.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::io_uring::{Completion, Entry, POLL_ADD, Ring, URING_CMD};

/// The memory of all slots of a connection.
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

/// One queue: all requests that come from one CPU. It may be used only by the thread that made it.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    device: OwnedFd,
    buffers: Arc<Buffers>,
    number: u16,
    armed: Vec<bool>,
    wake: OwnedFd,
    waits_for_wake: bool,
}

/// What came out of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request lies in a slot.
    Request(u16),
    /// A slot is not used any more: the kernel took it back or would not take it, for this reason.
    Lost(u16, i32),
    /// Somebody wrote to the descriptor by which the queue is woken.
    Woken,
}

/// A request as it lies in a slot.
#[derive(Debug)]
pub struct Slot<'a> {
    /// The header of the request (`struct fuse_in_header`).
    pub header: &'a [u8; IN_HEADER],
    /// The part with a fixed layout, and unused room behind it.
    pub head: &'a [u8; HEAD],
    /// The rest of the request, `payload_size` bytes of it; room for the answer.
    pub payload: &'a mut [u8],
    /// How much of the payload belongs to the request.
    pub payload_size: usize,
    /// By which the answer is to be given.
    pub commit_id: u64,
}

impl Buffers {
    /// Reserves the memory for `queues` queues of `depth` slots. What is never used takes no memory.
    pub fn new(queues: u16, depth: u16) -> io::Result<Buffers> {
        let length = Buffers::length(queues, depth);
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length.max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
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

    fn length(queues: u16, depth: u16) -> usize {
        usize::from(queues) * usize::from(depth) * SLOT
    }

    /// Returns where a slot begins.
    fn slot(&self, queue: u16, slot: u16) -> NonNull<u8> {
        assert!(queue < self.queues && slot < self.depth, "a slot that does not exist");
        let number = usize::from(queue) * usize::from(self.depth) + usize::from(slot);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.byte_add(number * SLOT) }
    }

    fn word(&self, queue: u16, slot: u16, offset: usize) -> &AtomicU64 {
        debug_assert!(offset < PAYLOAD && offset.is_multiple_of(8));
        // SAFETY: inside the slot's first page, aligned, and never reached but atomically while others may.
        unsafe { self.slot(queue, slot).byte_add(offset).cast::<AtomicU64>().as_ref() }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made. Every queue holds a reference as long as the kernel may write to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), Buffers::length(self.queues, self.depth).max(1)) };
    }
}

impl Queue {
    /// Makes a queue of the connection `device` for the calling thread. Nothing is registered yet.
    pub fn new(device: OwnedFd, buffers: Arc<Buffers>, number: u16, wake: OwnedFd) -> io::Result<Queue> {
        let depth = buffers.depth();
        let ring = Ring::new((u32::from(depth) + 1).next_power_of_two())?;
        let armed = vec![false; depth.into()];
        Ok(Queue { ring, device, buffers, number, armed, wake, waits_for_wake: false })
    }

    /// Finds out whether this process may have a ring as it is needed here.
    pub fn probe() -> io::Result<()> {
        Ring::new(2).map(drop)
    }

    /// Offers a slot to the kernel for the first time.
    pub fn register(&mut self, slot: u16) -> io::Result<()> {
        let start = self.buffers.slot(self.number, slot);
        let vectors = [
            libc::iovec { iov_base: start.as_ptr().cast(), iov_len: REQUEST_HEADER },
            // SAFETY: inside the slot.
            libc::iovec { iov_base: unsafe { start.byte_add(PAYLOAD) }.as_ptr().cast(), iov_len: PAYLOAD_SIZE },
        ];
        let mut entry = self.command(COMMAND_REGISTER, slot, 0);
        entry.address = vectors.as_ptr().expose_provenance() as u64;
        entry.length = 2;
        // SAFETY: the vectors are read while the kernel takes the entry, which it has done when `enter` returns. What
        // they point to is the slot, which lives as long as the queue, and that stays while a slot is armed.
        unsafe { self.push(slot, &entry) }?;
        self.ring.enter(0)
    }

    /// Returns a request, if it lies in this slot.
    pub fn slot(&mut self, slot: u16) -> Option<Slot<'_>> {
        if *self.armed.get(usize::from(slot))? {
            return None;
        }
        let start = self.buffers.slot(self.number, slot);
        let commit_id = self.buffers.word(self.number, slot, COMMIT_ID).load(Ordering::Acquire);
        let size = self.buffers.word(self.number, slot, PAYLOAD_SIZE_AT).load(Ordering::Acquire) & 0xffff_ffff;
        // SAFETY: the slot is not armed, so that nobody writes to it but who holds the result, for which `self` is
        // borrowed; all parts are inside the slot and do not overlap.
        unsafe {
            Some(Slot {
                header: start.cast().as_ref(),
                head: start.byte_add(HEAD_AT).cast().as_ref(),
                payload: std::slice::from_raw_parts_mut(start.byte_add(PAYLOAD).as_ptr(), PAYLOAD_SIZE),
                payload_size: usize::try_from(size).unwrap_or(PAYLOAD_SIZE).min(PAYLOAD_SIZE),
                commit_id,
            })
        }
    }

    /// Answers the request in a slot with a header, these bytes, and behind them what lies in the payload already, in
    /// all `size` bytes. The slot is armed again. The kernel learns of it by [`wait`](Self::wait).
    ///
    /// Until the answer is complete the request stays readable; from then on the answer is. So if this process dies, its
    /// successor can do one or the other: see [`is_answered`](Self::is_answered).
    pub fn answer(&mut self, slot: u16, header: &[u8; OUT_HEADER], bytes: &[u8], size: u32) -> io::Result<()> {
        let Some(request) = self.slot(slot) else { return Err(io::Error::from_raw_os_error(libc::EBUSY)) };
        let commit_id = request.commit_id;
        if bytes.len() > ANSWER_MAX {
            // Too long to be kept: only values of attributes and targets of links are, which change nothing.
            let room = request.payload.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
            room.copy_from_slice(bytes);
        }
        let kept = if bytes.len() > ANSWER_MAX { &[] } else { bytes };
        let start = self.buffers.slot(self.number, slot);
        // SAFETY: the slot is not armed, so that nobody else writes to it; header and bytes are inside its first page,
        // behind the kernel's part and our two words.
        unsafe {
            start.byte_add(ANSWER_AT).cast::<[u8; OUT_HEADER]>().write(*header);
            let room = start.byte_add(ANSWER_AT + OUT_HEADER);
            std::ptr::copy_nonoverlapping(kept.as_ptr(), room.as_ptr(), kept.len());
        }
        let lengths = u64::from(size) << 32 | kept.len() as u64;
        self.buffers.word(self.number, slot, LENGTHS_AT).store(lengths, Ordering::Release);
        self.buffers.word(self.number, slot, ANSWERED_AT).store(commit_id, Ordering::Release);
        self.answer_again(slot)
    }

    /// Returns whether an answer to the request in a slot is complete, perhaps made by a process that died of something
    /// else.
    pub fn is_answered(&self, slot: u16) -> bool {
        self.buffers.word(self.number, slot, ANSWERED_AT).load(Ordering::Acquire) == self.commit_id(slot)
    }

    /// Sends the complete answer that lies in a slot.
    pub fn answer_again(&mut self, slot: u16) -> io::Result<()> {
        if self.armed.get(usize::from(slot)) != Some(&false) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let commit_id = self.commit_id(slot);
        let lengths = self.buffers.word(self.number, slot, LENGTHS_AT).load(Ordering::Acquire);
        let (size, kept) = (lengths >> 32, usize::try_from(lengths & 0xffff_ffff).unwrap_or(0).min(ANSWER_MAX));
        let start = self.buffers.slot(self.number, slot);
        // SAFETY: the slot is not armed, so that nobody else writes to it; all parts are inside and do not overlap.
        unsafe {
            let answer = start.byte_add(ANSWER_AT);
            std::ptr::copy_nonoverlapping(answer.as_ptr(), start.as_ptr(), OUT_HEADER);
            let payload = start.byte_add(PAYLOAD);
            std::ptr::copy_nonoverlapping(answer.byte_add(OUT_HEADER).as_ptr(), payload.as_ptr(), kept);
        }
        self.buffers.word(self.number, slot, PAYLOAD_SIZE_AT).store(size, Ordering::Release);
        let entry = self.command(COMMAND_COMMIT_AND_FETCH, slot, commit_id);
        // SAFETY: the entry points to nothing; the slot stays while it is armed.
        unsafe { self.push(slot, &entry) }
    }

    /// Returns the id of the last request that came to a slot, 0 if none ever did.
    pub fn commit_id(&self, slot: u16) -> u64 {
        self.buffers.word(self.number, slot, COMMIT_ID).load(Ordering::Acquire)
    }

    /// Tells the kernel of what was done and waits for at least one event.
    pub fn wait(&mut self) -> io::Result<()> {
        self.listen_for_wake()?;
        self.ring.enter(1)
    }

    /// Tells the kernel of what was done, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.enter(0)
    }

    /// Returns the next event, if there is one.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let Completion { user_data, result, .. } = self.ring.completion()?;
            if user_data == WAKE {
                self.waits_for_wake = false;
                let mut count = 0_u64;
                // SAFETY: reads the eight bytes of `count`, which outlives the call. That there is nothing to read is
                // no failure.
                unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), 8) };
                return Some(Event::Woken);
            }
            let Ok(slot) = u16::try_from(user_data) else { continue };
            if let Some(armed) = self.armed.get_mut(usize::from(slot)) {
                *armed = false;
                return Some(if result == 0 { Event::Request(slot) } else { Event::Lost(slot, -result) });
            }
        }
    }

    /// Returns how many slots the kernel has.
    pub fn armed(&self) -> usize {
        self.armed.iter().filter(|armed| **armed).count()
    }

    /// # Safety
    /// As [`Ring::push`]: what the entry points to stays valid until it has completed.
    unsafe fn push(&mut self, slot: u16, entry: &Entry) -> io::Result<()> {
        // SAFETY: promised by the caller.
        if !unsafe { self.ring.push(entry) } {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if let Some(armed) = self.armed.get_mut(usize::from(slot)) {
            *armed = true;
        }
        Ok(())
    }

    fn command(&self, command: u64, slot: u16, commit_id: u64) -> Entry {
        let mut entry = Entry::new(URING_CMD, self.device.as_raw_fd(), slot.into());
        entry.offset = command;
        // `struct fuse_uring_cmd_req`: flags, commit id, queue.
        entry.command[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        entry.command[16..18].copy_from_slice(&self.number.to_ne_bytes());
        entry
    }

    fn listen_for_wake(&mut self) -> io::Result<()> {
        if self.waits_for_wake {
            return Ok(());
        }
        let mut entry = Entry::new(POLL_ADD, self.wake.as_raw_fd(), WAKE);
        entry.operation_flags = libc::POLLIN.unsigned_abs().into();
        // SAFETY: the entry points to nothing.
        if !unsafe { self.ring.push(&entry) } {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.waits_for_wake = true;
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.armed() > 0 {
            // The kernel takes armed slots back some time after the ring is gone, and may write to them until then.
            std::mem::forget(Arc::clone(&self.buffers));
        }
    }
}

/// Size of `struct fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Size of `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Room for the part of a request with a fixed layout.
pub const HEAD: usize = 128;
/// Room for the rest, which is as much as the largest read and write.
pub const PAYLOAD_SIZE: usize = 1 << 20;

// `struct fuse_uring_req_header`: 128 bytes for the headers, 128 for the head, `struct fuse_uring_ent_in_out`.
const HEAD_AT: usize = 128;
const REQUEST_HEADER: usize = 288;
/// `fuse_uring_ent_in_out.commit_id`.
const COMMIT_ID: usize = 264;
/// `fuse_uring_ent_in_out.payload_sz`, and padding.
const PAYLOAD_SIZE_AT: usize = 272;
/// Behind the kernel's part: the id of the request whose answer lies here, the lengths of that, header and bytes.
const ANSWERED_AT: usize = 512;
const LENGTHS_AT: usize = 520;
const ANSWER_AT: usize = 528;
const ANSWER_MAX: usize = PAYLOAD - ANSWER_AT - OUT_HEADER;
/// The payload begins on a page of its own.
const PAYLOAD: usize = 4096;
const SLOT: usize = PAYLOAD + PAYLOAD_SIZE;

const COMMAND_REGISTER: u64 = 1;
const COMMAND_COMMIT_AND_FETCH: u64 = 2;
const WAKE: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_begin_as_zero() {
        let buffers = Buffers::new(2, 3).unwrap();
        let starts: Vec<_> = (0..2).flat_map(|queue| (0..3).map(move |slot| (queue, slot))).collect();
        let starts: Vec<_> = starts.into_iter().map(|(queue, slot)| buffers.slot(queue, slot).addr().get()).collect();
        assert!(starts.windows(2).all(|pair| pair[0] + SLOT == pair[1]));
        assert_eq!(buffers.word(1, 2, COMMIT_ID).load(Ordering::Relaxed), 0);
        buffers.word(1, 2, ANSWERED_AT).store(5, Ordering::Relaxed);
        assert_eq!(buffers.word(1, 1, ANSWERED_AT).load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_answer_is_kept_beside_its_request_for_a_successor() {
        // A kernel that has no rings, or not for us, is no failure of ours.
        if Queue::probe().is_err() {
            return;
        }
        let buffers = Arc::new(Buffers::new(1, 1).unwrap());
        let queue = || {
            // No connection: whatever is sent comes back as lost, which is when a server would die.
            let device = std::fs::File::open("/dev/urandom").unwrap().into();
            let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            Queue::new(device, Arc::clone(&buffers), 0, wake).unwrap()
        };
        let mut first = queue();
        assert_eq!(first.commit_id(0), 0);
        // As the kernel would put a request there.
        buffers.word(0, 0, COMMIT_ID).store(7, Ordering::Release);
        buffers.word(0, 0, PAYLOAD_SIZE_AT).store(4, Ordering::Release);
        first.slot(0).unwrap().payload[..8].copy_from_slice(b"name....");
        assert_eq!((first.commit_id(0), first.is_answered(0)), (7, false));
        assert_eq!(first.slot(0).unwrap().payload_size, 4);
        first.answer(0, &[9; OUT_HEADER], b"answer", 8).unwrap();
        assert!(first.slot(0).is_none(), "it is the kernel's now");
        first.wait().unwrap();
        assert!(matches!(first.event(), Some(Event::Lost(0, _))));
        drop(first);

        let mut second = queue();
        assert!(second.is_answered(0));
        second.slot(0).unwrap().payload[..8].fill(0);
        second.answer_again(0).unwrap();
        second.wait().unwrap();
        assert!(matches!(second.event(), Some(Event::Lost(0, _))));
        let slot = second.slot(0).unwrap();
        assert_eq!((&slot.payload[..8], slot.payload_size), (b"answer\0\0".as_slice(), 8));
        assert_eq!(slot.header[..OUT_HEADER], [9; OUT_HEADER]);
        // The next request takes the place of the answer.
        buffers.word(0, 0, COMMIT_ID).store(8, Ordering::Release);
        assert!(!second.is_answered(0));
    }

    #[test]
    fn a_queue_can_be_woken_and_knows_no_slot_that_it_was_not_given() {
        // A kernel that has no rings, or not for us, is no failure of ours.
        if Queue::probe().is_err() {
            return;
        }
        let wake = || -> OwnedFd {
            rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC)
                .unwrap()
        };
        let device = std::fs::File::open("/dev/urandom").unwrap();
        let ours = wake();
        let mut queue =
            Queue::new(device.into(), Arc::new(Buffers::new(1, 2).unwrap()), 0, ours.try_clone().unwrap()).unwrap();
        for _ in 0..3 {
            rustix::io::write(&ours, &1_u64.to_ne_bytes()).unwrap();
            queue.wait().unwrap();
            assert_eq!(queue.event(), Some(Event::Woken));
            assert_eq!(queue.event(), None);
        }
        // This is no connection.
        queue.register(1).unwrap();
        queue.wait().unwrap();
        assert!(matches!(queue.event(), Some(Event::Lost(1, error)) if error != 0));
        assert!(queue.slot(2).is_none());
        assert_eq!(queue.armed(), 0);
    }
}
