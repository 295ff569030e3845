//! One queue of a connection, as its thread uses it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{
    ANSWER_AT, ANSWER_MAX, ANSWERED_AT, Buffers, COMMAND_COMMIT_AND_FETCH, COMMAND_REGISTER, COMMIT_ID, HEAD, HEAD_AT,
    IN_HEADER, LENGTHS_AT, LONG_ANSWER, NEVER, OUT_HEADER, PAYLOAD, PAYLOAD_SIZE, PAYLOAD_SIZE_AT, REQUEST_HEADER,
    SENT_AT, Tally, WAKE,
};
use crate::io_uring::{Completion, Entered, Entry, POLL_ADD, Ring, URING_CMD};

/// One queue: all requests that come from one CPU. It may be used only by the thread that made it.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    device: OwnedFd,
    buffers: Arc<Buffers>,
    number: u16,
    armed: Vec<bool>,
    /// Slots whose pages are present in this process. Others have never been used by any.
    present: Vec<bool>,
    /// Answers that were put into the ring and perhaps not taken by the kernel yet: slots and commit ids.
    unsent: Vec<(u16, u64)>,
    wake: OwnedFd,
    waits_for_wake: bool,
    /// Something long may have lain in a slot since memory was given back.
    grown: bool,
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

impl Queue {
    /// Makes a queue of the connection `device` for the calling thread. Nothing is registered yet.
    pub fn new(device: OwnedFd, buffers: Arc<Buffers>, number: u16, wake: OwnedFd) -> io::Result<Queue> {
        let depth = buffers.depth();
        let ring = Ring::new((u32::from(depth) + 2).next_power_of_two())?;
        // An earlier process may have had no time to give anything back.
        let used = |slot| buffers.word(number, slot, COMMIT_ID).load(Ordering::Relaxed) != 0;
        let grown = (0..depth).any(used);
        let (armed, present) = (vec![false; depth.into()], vec![false; depth.into()]);
        let unsent = Vec::with_capacity(depth.into());
        let mut queue =
            Queue { ring, device, buffers, number, armed, present, unsent, wake, waits_for_wake: false, grown };
        queue.begin_tallies();
        queue.die_in_order()?;
        Ok(queue)
    }

    /// Finds out whether this process may have a ring as it is needed here.
    pub fn probe() -> io::Result<()> {
        Ring::new(2).map(drop)
    }

    /// Offers a slot to the kernel for the first time.
    pub fn register(&mut self, slot: u16) -> io::Result<()> {
        // The kernel begins with the slot that was registered last.
        if slot + 1 == self.buffers.depth()
            || self.buffers.word(self.number, slot, COMMIT_ID).load(Ordering::Relaxed) != 0
        {
            self.touch(slot, 0);
        }
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
        self.submit()
    }

    /// Returns a request, if it lies in this slot.
    pub fn slot(&mut self, slot: u16) -> Option<Slot<'_>> {
        if *self.armed.get(usize::from(slot))? {
            return None;
        }
        let start = self.buffers.slot(self.number, slot);
        let commit_id = self.buffers.word(self.number, slot, COMMIT_ID).load(Ordering::Acquire);
        let size = self.buffers.word(self.number, slot, PAYLOAD_SIZE_AT).load(Ordering::Acquire) & 0xffff_ffff;
        self.grown |= size > KEPT as u64;
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

    /// Takes over a request that an earlier process has left in a slot; it will be answered.
    pub fn adopt(&mut self, slot: u16) {
        self.touch_used(slot);
        self.raise(Tally::Taken);
    }

    /// Sends the complete answer that an earlier process has left in a slot.
    ///
    /// # Errors
    /// `EBUSY` if the kernel has the slot.
    pub fn pass_on(&mut self, slot: u16) -> io::Result<()> {
        self.touch_used(slot);
        self.send(slot)
    }

    /// The slot is armed again without being registered by this process, so its pages have to be present for this request
    /// and for the next.
    fn touch_used(&mut self, slot: u16) {
        let size = self.buffers.word(self.number, slot, PAYLOAD_SIZE_AT).load(Ordering::Acquire) & 0xffff_ffff;
        self.touch(slot, usize::try_from(size).unwrap_or(PAYLOAD_SIZE));
    }

    /// Makes the pages of a slot present in this process, as many as `used` bytes lie in.
    fn touch(&mut self, slot: u16, used: usize) {
        self.buffers.touch(self.number, slot, used);
        if let Some(present) = self.present.get_mut(usize::from(slot)) {
            *present = true;
        }
    }

    /// The kernel takes the slot that was given back last, and one that was never used if all others are: the next of
    /// these is made ready for that.
    fn touch_next(&mut self, taken: u16) {
        if let Some(present) = self.present.get_mut(usize::from(taken)) {
            *present = true;
        }
        if let Some(next) = taken.checked_sub(1)
            && self.present.get(usize::from(next)) == Some(&false)
        {
            self.touch(next, 0);
        }
    }

    /// Answers the request in a slot with a header, these bytes, and behind them what lies in the payload already, in
    /// all `size` bytes. The slot is armed again. The kernel learns of it by [`wait`](Self::wait).
    ///
    /// Until the answer is complete the request stays readable; from then on the answer is. So if this process dies, its
    /// successor can do one or the other: see [`Buffers::found`].
    ///
    /// # Errors
    /// `EBUSY` if there is no request in the slot, `EMSGSIZE` if there are more bytes than fit: as much as the payload, or
    /// half of it where part of the request lies there.
    pub fn answer(&mut self, slot: u16, header: &[u8; OUT_HEADER], bytes: &[u8], size: u32) -> io::Result<()> {
        let Some(request) = self.slot(slot) else { return Err(io::Error::from_raw_os_error(libc::EBUSY)) };
        let commit_id = request.commit_id;
        // What was read: there is nothing of the request that it could cover.
        let at_once = request.payload_size == 0 && bytes.len() > ANSWER_MAX;
        let start = self.buffers.slot(self.number, slot);
        let room = if bytes.len() <= ANSWER_MAX {
            ANSWER_AT + OUT_HEADER
        } else if at_once && bytes.len() <= PAYLOAD_SIZE {
            PAYLOAD
        } else if bytes.len() <= PAYLOAD_SIZE - LONG_ANSWER {
            // Only values of attributes and listings of them are so long, and their requests short.
            PAYLOAD + LONG_ANSWER
        } else {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        };
        // SAFETY: the slot is not armed, so that nobody else writes to it; the header is inside its first page, behind
        // the kernel's part and our words, and there is room for the bytes, as just checked.
        unsafe {
            start.byte_add(ANSWER_AT).cast::<[u8; OUT_HEADER]>().write(*header);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.byte_add(room).as_ptr(), bytes.len());
        }
        let kept = if at_once { 0 } else { bytes.len() };
        let lengths = u64::from(size) << 32 | kept as u64;
        self.buffers.word(self.number, slot, LENGTHS_AT).store(lengths, Ordering::Release);
        self.buffers.word(self.number, slot, ANSWERED_AT).store(commit_id, Ordering::Release);
        self.raise(Tally::Answered);
        self.send(slot)
    }

    /// Sends the complete answer that lies in a slot. `EBUSY` if the kernel has the slot.
    fn send(&mut self, slot: u16) -> io::Result<()> {
        if self.armed.get(usize::from(slot)) != Some(&false) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let word = |offset| self.buffers.word(self.number, slot, offset).load(Ordering::Acquire);
        let (commit_id, lengths) = (word(COMMIT_ID), word(LENGTHS_AT));
        let size = lengths >> 32;
        self.grown |= size > KEPT as u64;
        let kept = usize::try_from(lengths & 0xffff_ffff).unwrap_or(0).min(PAYLOAD_SIZE - LONG_ANSWER);
        let room = if kept <= ANSWER_MAX { ANSWER_AT + OUT_HEADER } else { PAYLOAD + LONG_ANSWER };
        let start = self.buffers.slot(self.number, slot);
        // SAFETY: the slot is not armed, so that nobody else writes to it; all parts are inside and do not overlap: what
        // lies in the second half of the payload is no longer than the first.
        unsafe {
            std::ptr::copy_nonoverlapping(start.byte_add(ANSWER_AT).as_ptr(), start.as_ptr(), OUT_HEADER);
            let payload = start.byte_add(PAYLOAD);
            std::ptr::copy_nonoverlapping(start.byte_add(room).as_ptr(), payload.as_ptr(), kept);
        }
        self.buffers.word(self.number, slot, PAYLOAD_SIZE_AT).store(size, Ordering::Release);
        let entry = self.command(COMMAND_COMMIT_AND_FETCH, slot, commit_id);
        // SAFETY: the entry points to nothing; the slot stays while it is armed.
        unsafe { self.push(slot, &entry) }?;
        self.unsent.push((slot, commit_id));
        Ok(())
    }

    /// Tells the kernel of what was done and waits for at least one event. If there is none for some time, it gives the
    /// memory back in which something long has lain, and waits on.
    pub fn wait(&mut self) -> io::Result<()> {
        self.listen_for_wake()?;
        self.raise(Tally::Turns);
        let result = loop {
            match self.enter(1, self.grown.then_some(IDLE)) {
                // For whoever watches, this is waiting still.
                Ok(Entered::TimedOut) => self.give_back(),
                // The time was over, but something had been submitted, which is what the kernel tells of then.
                Ok(Entered::Done) if self.grown && !self.ring.has_completions() => {}
                result => break result,
            }
        };
        self.raise(Tally::Turns);
        result.map(drop)
    }

    /// Gives back the memory of all slots that the kernel has. It puts requests there only while this thread is inside
    /// `enter`, and then there is a completion for each.
    fn give_back(&mut self) {
        let idle = |slot: &u16| self.armed.get(usize::from(*slot)) == Some(&true);
        if self.ring.has_completions() || !self.unsent.is_empty() {
            return;
        }
        for slot in (0..self.buffers.depth()).filter(idle) {
            // SAFETY: nobody reads or writes what is in an armed slot but the kernel, and it does not now.
            unsafe { self.buffers.release(self.number, slot, PAYLOAD + KEPT) };
        }
        // What is in work is looked at next time.
        self.grown = self.armed() < usize::from(self.buffers.depth());
    }

    /// Tells the kernel of what was done, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0, None).map(drop)
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
                if result == 0 {
                    self.raise(Tally::Taken);
                    self.touch_next(slot);
                    return Some(Event::Request(slot));
                }
                return Some(Event::Lost(slot, -result));
            }
        }
    }

    /// Returns how many slots the kernel has.
    pub fn armed(&self) -> usize {
        self.armed.iter().filter(|armed| **armed).count()
    }

    fn enter(&mut self, wanted: u32, patience: Option<Duration>) -> io::Result<Entered> {
        let result = self.ring.enter(wanted, patience);
        if self.ring.all_taken() {
            for (slot, commit_id) in self.unsent.drain(..) {
                self.buffers.word(self.number, slot, SENT_AT).store(commit_id, Ordering::Release);
            }
        }
        result
    }

    /// Makes the kernel take back all that this thread has in the ring at the very start of the thread's end, in order:
    /// what it had promised to a slot it still puts there, and from then on it keeps requests for whoever comes next.
    ///
    /// Without this, slots stay on offer while the process comes apart, and a request for one of them fails with
    /// `ECANCELED`. The kernel does so for a thread that waits for something on a ring (io_uring's guard against rings
    /// that hold each other), so this waits for what never happens on a ring that nobody uses.
    fn die_in_order(&mut self) -> io::Result<()> {
        let other = Ring::new(1)?;
        let mut entry = Entry::new(POLL_ADD, other.as_fd().as_raw_fd(), NEVER);
        entry.operation_flags = libc::POLLIN.unsigned_abs().into();
        // SAFETY: the entry points to nothing.
        if !unsafe { self.ring.push(&entry) } {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        // From here on the kernel holds the other ring.
        self.submit()
    }

    /// What an earlier process has counted is of no use, but that the turns grow.
    fn begin_tallies(&self) {
        let turns = self.buffers.tally(self.number, Tally::Turns);
        turns.store((turns.load(Ordering::Relaxed) + 1) | 1, Ordering::Release);
        for tally in [Tally::Taken, Tally::Answered] {
            self.buffers.tally(self.number, tally).store(0, Ordering::Release);
        }
    }

    /// Raises a number that only this thread changes.
    fn raise(&self, tally: Tally) {
        let word = self.buffers.tally(self.number, tally);
        word.store(word.load(Ordering::Relaxed) + 1, Ordering::Release);
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

/// How much of the payload of a slot is never given back: what nearly all requests fit in.
const KEPT: usize = 4096;
/// Memory is given back when nothing has come for so long.
const IDLE: Duration = Duration::from_secs(2);
