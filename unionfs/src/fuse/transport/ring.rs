//! Requests in the queues of an io_uring, one per CPU, each served on its CPU.
//!
//! The kernel puts a request into memory of ours on the CPU that asked, and takes the answer from there, so that nobody
//! has to be woken on another CPU. What nobody waits for (FORGET, INTERRUPT) still comes by `/dev/fuse`.
//!
//! Once a connection is served this way it cannot go back. A process that takes it over answers what lies in the slots,
//! which is why these are in memory that it shares with the one before. What the kernel has in its own lists meanwhile
//! starts with the next new request from the same CPU; whoever keeps the mount makes one (`survive/kick.rs`).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::OFlags;
use strata_sys::fuse_ring::{Buffers, Event, Found, OUT_HEADER, Queue};
use zerocopy::FromBytes as _;

use super::device::serve_channel;
use super::idle::Watch;
use super::queue_turns::QueueTurns;
use super::{Sink, Transport, send, serve_frame};
use crate::fuse::backing::{Backing, Register};
use crate::fuse::cpus::Cpus;
use crate::fuse::operations::Operations;
use crate::fuse::reply::Reply;
use crate::fuse::request::Frame;
use crate::fuse::wire::{InHeader, OutHeader};
use crate::survive::{self as journal, Point, RESENT, Ticket};

/// A connection and the memory of its queues.
#[derive(Debug)]
pub(crate) struct Ring {
    device: Arc<OwnedFd>,
    buffers: Arc<Buffers>,
    cpus: Cpus,
}

impl Ring {
    /// Serves a connection. If `buffers` were used by a process before, what lies in them is answered first.
    pub(crate) fn new(device: Arc<OwnedFd>, buffers: Arc<Buffers>) -> Ring {
        Ring { device, buffers, cpus: Cpus::allowed() }
    }

    /// Returns memory for a connection's queues, to be shared by all processes that serve it.
    pub(crate) fn buffers() -> io::Result<Arc<Buffers>> {
        let queues = u16::try_from(possible_cpus()?).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(Arc::new(Buffers::new(queues, DEPTH)?))
    }

    /// Finds out why there can be no such transport here.
    pub(crate) fn refusal() -> Option<&'static str> {
        match std::fs::read("/sys/module/fuse/parameters/enable_uring") {
            Err(_) => return Some("the kernel has no FUSE over io_uring"),
            Ok(text) if !text.starts_with(b"Y") => return Some("/sys/module/fuse/parameters/enable_uring is off"),
            Ok(_) => {}
        }
        match Queue::probe() {
            Err(_) => Some("io_uring is not allowed here"),
            Ok(()) => possible_cpus().err().map(|_| "the number of CPUs is not known"),
        }
    }
}

impl Transport for Ring {
    fn serve(self: Box<Self>, operations: &Arc<Operations>, ready: &(dyn Fn() + Sync)) -> io::Result<()> {
        let stop = Stop::new(self.buffers.queues())?;
        // So that the thread that reads it can be stopped as well.
        let flags = rustix::fs::fcntl_getfl(&*self.device)? | OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&*self.device, flags)?;
        operations.expect_only(&self.left());
        let start = Start { missing: AtomicU16::new(self.buffers.queues()), ready, stop: &stop };
        let watch = Watch::new(self.buffers.queues().into(), self.cpus.count());
        std::thread::scope(|scope| {
            let (ring, stop, start, watch) = (&self, &stop, &start, &watch);
            let mut servers = Vec::new();
            if ring.cpus.count() > 1 {
                // Without it, all stay ordinary.
                let watching = move || watch.run(|_| None, |_, _| {});
                let _ = std::thread::Builder::new().name("fuse-watch".to_owned()).spawn_scoped(scope, watching);
            }
            let reader = move || {
                let _stop = stop.at_the_end();
                serve_channel(&ring.device, operations, &|| stop.wait_for(&ring.device))
            };
            let reader = std::thread::Builder::new().name("fuse-forget".to_owned()).spawn_scoped(scope, reader);
            let mut result = Ok(());
            match reader {
                Ok(reader) => servers.push(reader),
                Err(error) => {
                    stop.now();
                    result = Err(error);
                }
            }
            for number in 0..ring.buffers.queues() {
                let server = move || {
                    // Half a set of queues would leave requests where nobody sees them, whatever the reason.
                    let _stop = stop.at_the_end();
                    let turns = QueueTurns::new(watch, number.into());
                    ring.serve_queue(number, stop, operations, start, &turns)
                };
                match std::thread::Builder::new().name(format!("fuse-{number}")).spawn_scoped(scope, server) {
                    Ok(server) => servers.push(server),
                    Err(error) => {
                        stop.now();
                        result = Err(error);
                    }
                }
            }
            for server in servers {
                result = result.and(server.join().unwrap_or_else(|_| Err(io::Error::other("a serving thread ended"))));
            }
            watch.finish();
            result
        })
    }
}

impl Ring {
    /// Returns the numbers of the requests that an earlier process has left.
    fn left(&self) -> Vec<u64> {
        let (queues, depth) = (self.buffers.queues(), self.buffers.depth());
        let slots = (0..queues).flat_map(|queue| (0..depth).map(move |slot| (queue, slot)));
        let found = slots.map(|(queue, slot)| self.buffers.found(queue, slot));
        found.filter_map(|found| if let Found::Request(unique) = found { Some(unique) } else { None }).collect()
    }

    /// Serves one queue until the connection is gone.
    fn serve_queue(
        &self,
        number: u16,
        stop: &Stop,
        operations: &Arc<Operations>,
        start: &Start<'_>,
        turns: &QueueTurns<'_>,
    ) -> io::Result<()> {
        self.cpus.pin_to_cpu(number.into());
        operations.expose_this_thread();
        let answers = Arc::new(Answers::new(&self.device, stop.waker(number)?));
        let device = self.device.try_clone()?;
        let mut queue = Queue::new(device, Arc::clone(&self.buffers), number, stop.waker(number)?)?;
        let mut left = take_over(&mut queue, &self.buffers, number, operations.is_forgetful())?;
        start.registered();
        let mut lost = 0;
        while lost < self.buffers.depth() && !stop.is_now() {
            if start.is_over() {
                for slot in std::mem::take(&mut left) {
                    serve_slot(&mut queue, slot, Sent::Again, operations, &answers, turns)?;
                }
            }
            queue.wait()?;
            while let Some(event) = queue.event() {
                match event {
                    Event::Request(slot) => serve_slot(&mut queue, slot, Sent::First, operations, &answers, turns)?,
                    Event::Woken => answers.send_all(&mut queue)?,
                    // An answer that another process has given before; the slot has no request then.
                    Event::Lost(slot, libc::ENOENT) => queue.register(slot)?,
                    Event::Lost(_, error) => {
                        if !matches!(error, libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED) {
                            tracing::warn!(queue = number, error, "the kernel gave up a slot");
                        }
                        lost += 1;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The time until the kernel has the slots of all queues. What an earlier process has left is not served before: if it
/// killed, no process would ever be ready.
struct Start<'a> {
    missing: AtomicU16,
    ready: &'a (dyn Fn() + Sync),
    stop: &'a Stop,
}

impl Start<'_> {
    /// Says that one more queue is registered.
    fn registered(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            (self.ready)();
            self.stop.wake_queues();
        }
    }

    fn is_over(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
}

/// Gives the kernel all slots of a queue but those with a request that an earlier process has left, and returns these.
fn take_over(queue: &mut Queue, buffers: &Buffers, number: u16, forgetful: bool) -> io::Result<Vec<u16>> {
    let mut left = Vec::new();
    for slot in 0..buffers.depth() {
        match buffers.found(number, slot) {
            Found::Nothing => queue.register(slot)?,
            Found::Answer => queue.pass_on(slot)?,
            Found::Request(_) if forgetful => queue.register(slot)?,
            Found::Request(_) => {
                queue.adopt(slot);
                left.push(slot);
            }
        }
    }
    queue.submit()?;
    Ok(left)
}

/// Whether a request comes to this process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    First,
    /// An earlier process had it as well.
    Again,
}

fn serve_slot(
    queue: &mut Queue,
    number: u16,
    sent: Sent,
    operations: &Arc<Operations>,
    answers: &Arc<Answers>,
    turns: &QueueTurns<'_>,
) -> io::Result<()> {
    turns.begin();
    if let Some(slot) = queue.slot(number)
        && let Ok(header) = InHeader::read_from_bytes(slot.header)
    {
        let answer = Answer { slot: number, unique: header.unique, answers: Arc::clone(answers) };
        let mark = if sent == Sent::Again { RESENT } else { 0 };
        let header = InHeader { unique: header.unique | mark, ..header };
        let (body, room) = slot.payload.split_at_mut(slot.payload_size);
        let frame = Frame::of_parts(header, slot.head, body);
        if let Some((sink, reply)) = serve_frame(operations, &frame, room, answer) {
            send(sink, reply, &[]);
        }
    }
    turns.end();
    answers.send_all(queue)
}

/// The answers of one queue on their way into it.
#[derive(Debug)]
struct Answers {
    device: Arc<OwnedFd>,
    owner: ThreadId,
    ready: Mutex<Vec<Ready>>,
    wake: OwnedFd,
}

/// An answer that its slot waits for.
#[derive(Debug)]
struct Ready {
    slot: u16,
    unique: u64,
    reply: Reply,
    /// Of the request, which is in work until the answer lies in the slot.
    ticket: Ticket,
}

/// The answer to one request.
struct Answer {
    slot: u16,
    unique: u64,
    answers: Arc<Answers>,
}

impl Answers {
    /// Makes room for the answers of the calling thread's queue.
    fn new(device: &Arc<OwnedFd>, wake: OwnedFd) -> Answers {
        let owner = std::thread::current().id();
        Answers { device: Arc::clone(device), owner, ready: Mutex::default(), wake }
    }

    fn ready(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts all that is ready into the queue.
    fn send_all(&self, queue: &mut Queue) -> io::Result<()> {
        loop {
            let Some(Ready { slot, unique, reply, ticket }) = self.ready().pop() else { return Ok(()) };
            journal::attach(ticket);
            let in_room = if let Reply::InRoom(length) = reply { length } else { 0 };
            reply.with_bytes(|encoded| {
                let encoded = encoded.unwrap_or_default();
                let mut joined = [0; JOINED_MAX];
                let bytes = if encoded.second.is_empty() {
                    encoded.first
                } else {
                    let length = encoded.first.len() + encoded.second.len();
                    let room = joined.get_mut(..length).ok_or(io::ErrorKind::InvalidInput)?;
                    room[..encoded.first.len()].copy_from_slice(encoded.first);
                    room[encoded.first.len()..].copy_from_slice(encoded.second);
                    room
                };
                let mut answer = |error, bytes: &[u8], size| {
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    let len = size.saturating_add(u32::try_from(OUT_HEADER).unwrap_or(0));
                    let header: [u8; OUT_HEADER] = zerocopy::transmute!(OutHeader { len, error, unique });
                    queue.answer(slot, &header, bytes, size)
                };
                match answer(encoded.error, bytes, bytes.len() + in_room) {
                    // Whatever asked for so much, all others are served on.
                    Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => answer(-libc::EIO, &[], 0),
                    result => result,
                }
            })?;
            journal::pass(Point::Replied);
            journal::finish();
        }
    }
}

impl Register for Answer {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let device = &self.answers.device;
        let number = strata_sys::fuse::open_backing(device.as_fd(), file)?;
        Ok(Backing::Numbered { device: Arc::clone(device), number })
    }
}

impl Sink for Answer {
    /// What lies in the room is in its place already.
    fn send(self, reply: Reply, _room: &[u8]) {
        let ticket = journal::detach();
        self.answers.ready().push(Ready { slot: self.slot, unique: self.unique, reply, ticket });
        if std::thread::current().id() != self.answers.owner {
            // It only fails if it is already woken as often as can be counted.
            let _ = rustix::io::write(&self.answers.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// Ends all threads of a connection together.
#[derive(Debug)]
struct Stop {
    now: AtomicBool,
    /// One for each queue, and one for who reads the device.
    wakers: Vec<OwnedFd>,
}

impl Stop {
    fn new(queues: u16) -> io::Result<Stop> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let wakers = (0..=queues).map(|_| Ok(rustix::event::eventfd(0, flags)?)).collect::<io::Result<_>>()?;
        Ok(Stop { now: AtomicBool::new(false), wakers })
    }

    fn waker(&self, queue: u16) -> io::Result<OwnedFd> {
        self.wakers[usize::from(queue)].try_clone()
    }

    fn is_now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    fn now(&self) {
        self.now.store(true, Ordering::Relaxed);
        self.wake(&self.wakers);
    }

    /// Wakes the threads of all queues. Who reads the device would not go to sleep again.
    fn wake_queues(&self) {
        self.wake(&self.wakers[..self.wakers.len().saturating_sub(1)]);
    }

    fn wake(&self, wakers: &[OwnedFd]) {
        for waker in wakers {
            // It only fails if it is already woken as often as can be counted.
            let _ = rustix::io::write(waker, &1_u64.to_ne_bytes());
        }
    }

    /// Waits until there is something to read; returns whether to go on.
    fn wait_for(&self, device: &OwnedFd) -> bool {
        let Some(waker) = self.wakers.last() else { return false };
        let mut both = [PollFd::new(device, PollFlags::IN), PollFd::new(waker, PollFlags::IN)];
        // Interrupted or not, reading tells.
        let _ = rustix::event::poll(&mut both, None);
        !self.is_now()
    }

    fn at_the_end(&self) -> impl Drop + '_ {
        struct AtTheEnd<'a>(&'a Stop);
        impl Drop for AtTheEnd<'_> {
            fn drop(&mut self) {
                self.0.now();
            }
        }
        AtTheEnd(self)
    }
}

/// Returns the number of CPUs that there can be, for each of which the kernel wants a queue.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_of_ranges(text.trim()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Counts the numbers in a list such as `0-3,8`.
pub(crate) fn count_of_ranges(text: &str) -> Option<usize> {
    text.split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let length = last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1;
        Some(count + length)
    })
}

/// Requests at once from one CPU. Those that take long keep their slot meanwhile.
const DEPTH: u16 = 8;
/// The longest answer in two parts is that to CREATE.
const JOINED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        for (text, count) in [("0", Some(1)), ("0-1", Some(2)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)] {
            assert_eq!(count_of_ranges(text), count, "{text}");
        }
        assert!(possible_cpus().unwrap() >= 1);
    }
}
