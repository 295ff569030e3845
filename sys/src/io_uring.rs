//! A ring for submitting work to the kernel and taking completions, as small as our use of it.
//!
//! Entries have 128 bytes, since that is what commands of `/dev/fuse` need; completions have 16. Raw calls rather than a
//! crate: what we need of one is two system calls and three maps, and the entries would be filled by hand all the same.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A ring. It may be used only by the thread that made it.
#[derive(Debug)]
pub(crate) struct Ring {
    fd: OwnedFd,
    /// Heads, tails and completions.
    shared: Mapping,
    entries: Mapping,
    offsets: Offsets,
    /// The end of what was put into the ring, and of what the kernel was told of.
    tail: u32,
    told: u32,
    /// Not to be sent to another thread: the kernel takes entries of one only.
    _thread: std::marker::PhantomData<*const ()>,
}

/// Work to submit: `struct io_uring_sqe` of 128 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) priority: u16,
    pub(crate) fd: RawFd,
    /// An offset, or the number of a command.
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) operation_flags: u32,
    pub(crate) user_data: u64,
    pub(crate) buffer: u16,
    pub(crate) personality: u16,
    pub(crate) file_index: u32,
    pub(crate) command: [u8; 80],
}

/// What became of an entry: `struct io_uring_cqe`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// How [`Ring::enter`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// With completions, or by a signal.
    Done,
    /// There were not as many completions for so long.
    TimedOut,
}

impl Ring {
    /// Makes a ring for the calling thread, with room for `size` entries at once and twice as many completions.
    pub(crate) fn new(size: u32) -> io::Result<Ring> {
        let mut params = Params { flags: SETUP, ..Params::default() };
        // SAFETY: the kernel reads and writes one `struct io_uring_params`, which `params` is and which outlives the
        // call.
        let ret = unsafe { libc::syscall(libc::SYS_io_uring_setup, size, &raw mut params) };
        let fd = match RawFd::try_from(ret) {
            // SAFETY: the kernel just returned this descriptor and nobody else knows its number.
            Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(io::Error::last_os_error()),
        };
        if params.features & FEATURE_SINGLE_MAP == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let completions = params.cq.completions as usize + params.cq_entries as usize * size_of::<Completion>();
        let shared = Mapping::of_ring(&fd, completions, MAP_RING)?;
        let entries = Mapping::of_ring(&fd, params.sq_entries as usize * size_of::<Entry>(), MAP_ENTRIES)?;
        let offsets = Offsets {
            sq_head: params.sq.head,
            sq_tail: params.sq.tail,
            sq_entries: params.sq_entries,
            cq_head: params.cq.head,
            cq_tail: params.cq.tail,
            cq_entries: params.cq_entries,
            completions: params.cq.completions,
        };
        Ok(Ring { fd, shared, entries, offsets, tail: 0, told: 0, _thread: std::marker::PhantomData })
    }

    /// Puts an entry into the ring; the kernel learns of it by [`enter`](Self::enter). Returns whether there was room.
    ///
    /// # Safety
    /// Whatever the entry points to must stay valid until its completion has been taken.
    pub(crate) unsafe fn push(&mut self, entry: &Entry) -> bool {
        let head = self.word(self.offsets.sq_head).load(Ordering::Acquire);
        if self.tail.wrapping_sub(head) >= self.offsets.sq_entries {
            return false;
        }
        let index = (self.tail & (self.offsets.sq_entries - 1)) as usize;
        // SAFETY: the mapping holds `sq_entries` entries, a power of two, so `index` is inside; the kernel has taken the
        // entry that was there, since head is less than that many behind.
        unsafe { self.entries.start.cast::<Entry>().add(index).write(*entry) };
        self.tail = self.tail.wrapping_add(1);
        true
    }

    /// Tells the kernel of all entries, and waits until there are `wanted` completions, but no longer than `patience`.
    /// Interrupted by a signal it returns early.
    pub(crate) fn enter(&mut self, wanted: u32, patience: Option<Duration>) -> io::Result<Entered> {
        self.word(self.offsets.sq_tail).store(self.tail, Ordering::Release);
        let new = self.tail.wrapping_sub(self.told);
        let time = patience.map(|patience| KernelTime {
            seconds: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: patience.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let argument = EnterArgument { signals: 0, signals_size: 0, least: 0, time: time.expose_provenance() as u64 };
        // SAFETY: reads the argument, and the time that it points to if any, which outlive the call; that the entries stay
        // valid is promised at `push`.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                new,
                wanted,
                ENTER_GET_EVENTS | ENTER_ARGUMENT,
                &raw const argument,
                size_of::<EnterArgument>(),
            )
        };
        self.told = self.word(self.offsets.sq_head).load(Ordering::Acquire);
        if ret >= 0 {
            return Ok(Entered::Done);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINTR) => Ok(Entered::Done),
            error if error.raw_os_error() == Some(libc::ETIME) => Ok(Entered::TimedOut),
            error => Err(error),
        }
    }

    /// Returns whether the kernel has taken all that it was told of, and was told of all that was put in.
    pub(crate) fn all_taken(&self) -> bool {
        self.told == self.tail
    }

    /// Returns whether there is a completion to take.
    pub(crate) fn has_completions(&self) -> bool {
        self.word(self.offsets.cq_head).load(Ordering::Relaxed)
            != self.word(self.offsets.cq_tail).load(Ordering::Acquire)
    }

    /// Takes a completion, if there is one.
    pub(crate) fn completion(&mut self) -> Option<Completion> {
        let head_word = self.word(self.offsets.cq_head);
        let head = head_word.load(Ordering::Relaxed);
        if head == self.word(self.offsets.cq_tail).load(Ordering::Acquire) {
            return None;
        }
        let index = (head & (self.offsets.cq_entries - 1)) as usize;
        // SAFETY: the mapping holds `cq_entries` completions from there on, a power of two, so `index` is inside, and
        // the kernel has written this one, since tail is beyond it.
        let completion = unsafe {
            let completions = self.shared.start.byte_add(self.offsets.completions as usize).cast::<Completion>();
            completions.add(index).read()
        };
        head_word.store(head.wrapping_add(1), Ordering::Release);
        Some(completion)
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel said that there is a word at this offset of the mapping; it is aligned, both sides reach it
        // atomically, and the mapping lives as long as `self`.
        unsafe { self.shared.start.byte_add(offset as usize).cast::<AtomicU32>().as_ref() }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Entry {
    /// Returns an entry that does nothing.
    pub(crate) fn new(opcode: u8, fd: RawFd, user_data: u64) -> Entry {
        Entry {
            opcode,
            flags: 0,
            priority: 0,
            fd,
            offset: 0,
            address: 0,
            length: 0,
            operation_flags: 0,
            user_data,
            buffer: 0,
            personality: 0,
            file_index: 0,
            command: [0; 80],
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Offsets {
    sq_head: u32,
    sq_tail: u32,
    sq_entries: u32,
    cq_head: u32,
    cq_tail: u32,
    cq_entries: u32,
    completions: u32,
}

/// A part of the ring in memory.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn of_ring(fd: &OwnedFd, length: usize, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of_ring` made; nothing borrows from it beyond its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: SqOffsets,
    cq: CqOffsets,
}

/// `struct io_sqring_offsets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    reserved: u32,
    user_address: u64,
}

/// `struct io_cqring_offsets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    completions: u32,
    flags: u32,
    reserved: u32,
    user_address: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct EnterArgument {
    signals: u64,
    signals_size: u32,
    least: u32,
    time: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTime {
    seconds: i64,
    nanoseconds: i64,
}

/// One thread submits, and the kernel works for the ring only while it waits for completions: at any other time that
/// would interrupt what the thread is just doing (a call on a file may end early with `EINTR`). Entries have 128 bytes
/// and are taken in order.
const SETUP: u32 = SETUP_SQE128 | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_NO_SQARRAY;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const FEATURE_SINGLE_MAP: u32 = 1;
const ENTER_GET_EVENTS: u32 = 1;
const ENTER_ARGUMENT: u32 = 1 << 3;
/// `IORING_OFF_SQ_RING`
const MAP_RING: libc::off_t = 0;
/// `IORING_OFF_SQES`
const MAP_ENTRIES: libc::off_t = 0x1000_0000;

/// `IORING_OP_POLL_ADD`
pub(crate) const POLL_ADD: u8 = 6;
/// `IORING_OP_URING_CMD`
pub(crate) const URING_CMD: u8 = 46;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernel_s_size() {
        assert_eq!(size_of::<Entry>(), 128);
        assert_eq!(std::mem::offset_of!(Entry, command), 48);
        assert_eq!(size_of::<Completion>(), 16);
        assert_eq!(size_of::<Params>(), 120);
    }

    #[test]
    fn what_is_put_in_comes_back() {
        let ring = Ring::new(4);
        // A kernel that has no rings, or not for us, is no failure of ours.
        let Ok(mut ring) = ring else { return };
        const NOP: u8 = 0;
        for round in 0..5 {
            for number in 0..4 {
                // SAFETY: it points to nothing.
                assert!(unsafe { ring.push(&Entry::new(NOP, -1, round * 4 + number)) });
            }
            // SAFETY: as above.
            assert!(!unsafe { ring.push(&Entry::new(NOP, -1, 99)) }, "it is full");
            ring.enter(4, None).unwrap();
            let came: Vec<_> =
                std::iter::from_fn(|| ring.completion()).map(|done| (done.user_data, done.result)).collect();
            assert_eq!(came, (round * 4..round * 4 + 4).map(|number| (number, 0)).collect::<Vec<_>>());
        }
    }
}
