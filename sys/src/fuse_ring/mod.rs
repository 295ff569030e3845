//! FUSE over io_uring: requests of the kernel in buffers of ours, one queue per CPU.
//!
//! A slot is a piece of memory for one request at a time. It is *armed* while the kernel may write to it, and ours from
//! the moment that the kernel has put a request there until we send the answer, which arms it again. Slots lie in
//! [`Buffers`], memory that forked processes share: if one dies, the next finds at the same addresses what was in work.

mod buffers;
mod queue;

pub use buffers::{Buffers, Found, Tally};
pub use queue::{Event, Queue, Slot};

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
/// Behind the kernel's part: the id of the request whose answer lies here, that of the last answer that the kernel has
/// taken, the lengths of the answer, its header and bytes.
const ANSWERED_AT: usize = 512;
const SENT_AT: usize = 520;
const LENGTHS_AT: usize = 528;
const ANSWER_AT: usize = 536;
const ANSWER_MAX: usize = PAYLOAD - ANSWER_AT - OUT_HEADER;
/// The payload begins on a page of its own.
const PAYLOAD: usize = 4096;
const SLOT: usize = PAYLOAD + PAYLOAD_SIZE;
/// Where in the payload an answer lies that is too long for the first page, so that it does not cover its request.
const LONG_ANSWER: usize = PAYLOAD_SIZE / 2;

const COMMAND_REGISTER: u64 = 1;
const COMMAND_COMMIT_AND_FETCH: u64 = 2;
const WAKE: u64 = 1 << 32;
const NEVER: u64 = 1 << 33;

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

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

    /// A queue of no connection: whatever is sent comes back as lost. `None` without rings, or without any for us.
    fn queue(buffers: &Arc<Buffers>) -> Option<Queue> {
        Queue::probe().ok()?;
        let device = std::fs::File::open("/dev/urandom").unwrap().into();
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        Some(Queue::new(device, Arc::clone(buffers), 0, wake).unwrap())
    }

    /// Puts a request into the only slot, as the kernel does.
    fn put(buffers: &Buffers, unique: u64) {
        for (offset, value) in [(8, unique), (PAYLOAD_SIZE_AT, 4), (COMMIT_ID, unique)] {
            buffers.word(0, 0, offset).store(value, Ordering::Release);
        }
    }

    #[test]
    fn what_is_in_a_slot_is_known_to_a_successor() {
        let buffers = Arc::new(Buffers::new(1, 1).unwrap());
        let Some(first) = queue(&buffers) else { return };
        assert_eq!(buffers.found(0, 0), Found::Nothing);
        drop(first);
        put(&buffers, 7);
        assert_eq!(buffers.found(0, 0), Found::Request(7));

        let mut second = queue(&buffers).unwrap();
        assert_eq!(second.slot(0).unwrap().payload_size, 4);
        let header: [u8; OUT_HEADER] = std::array::from_fn(|place| if place == 8 { 7 } else { 0 });
        second.answer(0, &header, b"answer", 8).unwrap();
        assert!(second.slot(0).is_none(), "it is the kernel's now");
        assert_eq!(buffers.found(0, 0), Found::Answer);
        assert_eq!(buffers.tally(0, Tally::Answered).load(Ordering::Relaxed), 1);
        // It dies before the kernel has heard of the answer.
        drop(second);

        let mut third = queue(&buffers).unwrap();
        third.slot(0).unwrap().payload[..8].fill(0);
        third.pass_on(0).unwrap();
        third.wait().unwrap();
        assert!(matches!(third.event(), Some(Event::Lost(0, _))));
        assert_eq!(buffers.found(0, 0), Found::Nothing);
        let slot = third.slot(0).unwrap();
        assert_eq!((&slot.payload[..8], slot.payload_size), (b"answer\0\0".as_slice(), 8));
        assert_eq!(slot.header[..OUT_HEADER], header);
        // The header is what the kernel writes last.
        buffers.word(0, 0, COMMIT_ID).store(9, Ordering::Release);
        assert_eq!(buffers.found(0, 0), Found::Nothing);
    }

    #[test]
    fn a_long_answer_does_not_cover_its_request_before_it_is_complete() {
        let buffers = Arc::new(Buffers::new(1, 1).unwrap());
        put(&buffers, 7);
        let Some(mut queue) = queue(&buffers) else { return };
        queue.slot(0).unwrap().payload[..4].copy_from_slice(b"name");
        let long = vec![3; PAYLOAD_SIZE - LONG_ANSWER + 1];
        assert_eq!(queue.answer(0, &[0; OUT_HEADER], &long, 1).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(&queue.slot(0).unwrap().payload[..4], b"name");
        queue.answer(0, &[0; OUT_HEADER], &long[1..], 1).unwrap();
        queue.wait().unwrap();
        assert!(matches!(queue.event(), Some(Event::Lost(0, _))));
        assert_eq!(queue.slot(0).unwrap().payload[..long.len() - 1], long[1..]);
    }

    #[test]
    fn what_is_read_may_fill_the_payload_of_a_request_that_has_nothing_there() {
        let buffers = Arc::new(Buffers::new(1, 1).unwrap());
        put(&buffers, 7);
        buffers.word(0, 0, PAYLOAD_SIZE_AT).store(0, Ordering::Release);
        let Some(mut queue) = queue(&buffers) else { return };
        let data: Vec<u8> = (0..=PAYLOAD_SIZE).map(|place| u8::try_from(place % 251).unwrap()).collect();
        let answer = |queue: &mut Queue, bytes: &[u8]| {
            queue.answer(0, &[0; OUT_HEADER], bytes, u32::try_from(bytes.len()).unwrap())
        };
        assert_eq!(answer(&mut queue, &data).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(buffers.found(0, 0), Found::Request(7));
        answer(&mut queue, &data[1..]).unwrap();
        queue.wait().unwrap();
        assert!(matches!(queue.event(), Some(Event::Lost(0, _))));
        let slot = queue.slot(0).unwrap();
        assert_eq!((slot.payload_size, *slot.payload == data[1..]), (PAYLOAD_SIZE, true));
    }

    #[test]
    fn who_gives_memory_back_is_waiting_still() {
        if Queue::probe().is_err() {
            return;
        }
        let buffers = Arc::new(Buffers::new(1, 1).unwrap());
        let wake: OwnedFd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let device = std::fs::File::open("/dev/urandom").unwrap();
        let mut queue = Queue::new(device.into(), Arc::clone(&buffers), 0, wake.try_clone().unwrap()).unwrap();
        put(&buffers, 7);
        buffers.word(0, 0, PAYLOAD_SIZE_AT).store(PAYLOAD_SIZE as u64, Ordering::Release);
        assert_eq!(queue.slot(0).unwrap().payload_size, PAYLOAD_SIZE, "something long");
        let before = buffers.tally(0, Tally::Turns).load(Ordering::Acquire);
        let waker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(4500));
            rustix::io::write(&wake, &1_u64.to_ne_bytes()).unwrap();
        });
        queue.wait().unwrap();
        assert_eq!(queue.event(), Some(Event::Woken));
        assert_eq!(buffers.tally(0, Tally::Turns).load(Ordering::Acquire), before + 2);
        waker.join().unwrap();
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
