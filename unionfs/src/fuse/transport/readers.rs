//! Which threads read requests, so that a request is answered on the CPU that asked.
//!
//! With a thread on each CPU the kernel wakes the one that has waited longest, wherever it is. While CPUs are idle that is
//! the right one: the scheduler moves a client that is answered to an idle CPU, and so client and threads go round in step.
//! While the CPUs are busy nobody is moved, and every second request goes to a CPU where it has to wait for others; then
//! one thread that may go everywhere does far better, as the scheduler keeps it beside its only client. So it is looked
//! now and then on which CPU the client was, and the other way is taken when this one does not meet it. Several clients at
//! once have all threads.
//!
//! Where few run on the machine even going round in step takes longer than need be, as CPUs wake each other. There a single
//! client has one reader beside it, at idle priority ([`idle`](super::idle)).
//!
//! A thread that does not read is parked. The one that reads alone is watched, as it may have to wait for a disk.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use strata_sys::process_stat::last_cpu;

use super::device::Turns;
use super::idle::{Care, Entered, PATIENCE, Watch};
use super::policy::{Policy, Way};
use crate::fuse::cpus::Cpus;

/// Who reads, shared by the serving threads.
#[derive(Debug)]
pub(super) struct Readers {
    cpus: Cpus,
    /// Whether there is a thread for each CPU, which is kept there while all read.
    on_each_cpu: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// As in the policy, to look at without the lock.
    way: AtomicU8,
    /// Of the first thread only, while that is the only one to read.
    watch: Watch,
}

#[derive(Debug, Default)]
struct State {
    policy: Policy,
    /// A thread has ended, as the connection is gone or it failed. The others find out for themselves.
    over: bool,
}

/// One of the serving threads.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    number: usize,
    /// The CPU that it is kept on.
    kept_on: Cell<Option<usize>>,
    /// Of the first.
    _watched: Option<Entered<'a>>,
}

impl Readers {
    /// Prepares for so many threads. Fewer than there are CPUs go where they want.
    pub(super) fn new(threads: usize) -> Readers {
        let cpus = Cpus::allowed();
        let on_each_cpu = threads > 1 && threads >= cpus.count();
        let watch = Watch::new(1, cpus.count());
        let way = AtomicU8::new(Way::All as u8);
        Readers { cpus, on_each_cpu, state: Mutex::default(), changed: Condvar::new(), way, watch }
    }

    /// Returns the part of the calling thread, which is the one of this number. There must be a first, 0.
    pub(super) fn reader(&self, number: usize) -> Reader<'_> {
        let watched = (number == FIRST).then(|| self.watch.enter(FIRST));
        let reader = Reader { readers: self, number, kept_on: Cell::new(None), _watched: watched };
        reader.take_place(self.way());
        reader
    }

    /// Lets some read alone from now on, and watches the one who does, until all is over.
    pub(super) fn watch(&self, channel: &OwnedFd) {
        let waits = |_| {
            let mut channel = [PollFd::new(channel, PollFlags::IN)];
            Some(poll(&mut channel, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0))
        };
        let held_up = |_, time: Duration| {
            // The one who has idle priority is not left alone with it for so long.
            if time >= PATIENCE || waits(FIRST) == Some(true) {
                let mut state = self.lock();
                state.policy.set_all();
                self.publish(&mut state);
            }
        };
        self.lock().policy.may_be_one = self.on_each_cpu;
        self.watch.run(waits, held_up);
        self.lock().policy.may_be_one = false;
    }

    /// Lets the watching thread end: there is no thread left to watch, or there never was one.
    pub(super) fn finish(&self) {
        self.watch.finish();
    }

    fn way(&self) -> Way {
        [Way::All, Way::One, Way::Beside][usize::from(self.way.load(Ordering::SeqCst))]
    }

    /// Lets the others know what the policy says now.
    fn publish(&self, state: &mut State) {
        if state.over {
            state.policy.way = Way::All;
        }
        let way = state.policy.way;
        self.way.store(way as u8, Ordering::SeqCst);
        self.watch.set(
            FIRST,
            match way {
                Way::All => Care::No,
                Way::One => Care::Ordinary,
                Way::Beside => Care::Idle,
            },
        );
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    fn is_first(&self) -> bool {
        self.number == FIRST
    }

    /// Goes where a thread belongs.
    fn take_place(&self, way: Way) {
        match way {
            Way::All if self.readers.on_each_cpu => self.keep_on(self.readers.cpus.number(self.number)),
            Way::All | Way::One => self.keep_on(None),
            // Beside its client, where it has seen that.
            Way::Beside => {}
        }
    }

    fn keep_on(&self, cpu: Option<usize>) {
        if self.kept_on.get() != cpu {
            let cpus = &self.readers.cpus;
            let kept = cpu.is_some_and(|cpu| cpus.pin_to_cpu(cpu));
            if !kept && self.kept_on.get().is_some() {
                cpus.set_free();
            }
            self.kept_on.set(cpu.filter(|_| kept));
        }
    }

    /// Waits until others than the first are to read.
    fn park(&self) {
        let mut state = self.readers.lock();
        while state.policy.way != Way::All {
            state = self.readers.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Looks where a client is, and goes there if this is the only thread that it has. Returns whether it was here.
    fn meets(&self, client: u32) -> Option<bool> {
        let cpu = last_cpu(client).ok()?;
        let met = cpu == rustix::thread::sched_getcpu();
        if self.readers.way() == Way::Beside {
            self.keep_on(Some(cpu));
        }
        Some(met)
    }
}

impl Turns for Reader<'_> {
    fn may_read(&self) -> bool {
        let way = self.readers.way();
        if self.is_first() {
            self.take_place(way);
        } else if way != Way::All {
            self.park();
        }
        true
    }

    fn has_read(&self, thread: u32) {
        let readers = self.readers;
        if self.is_first() {
            readers.watch.begin(FIRST);
        }
        // Whoever cannot note a request at once lets it be.
        let Ok(mut state) = readers.state.try_lock() else { return };
        let before = state.policy.way;
        if self.is_first() && readers.watch.has_starved(FIRST) {
            state.policy.has_starved();
        }
        let calm = || readers.watch.may_be_idle() && readers.watch.is_calm();
        state.policy.note(thread, || self.meets(thread), calm);
        if state.policy.way != before {
            readers.publish(&mut state);
        }
    }

    fn has_served(&self) {
        if self.is_first() {
            self.readers.watch.end(FIRST);
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        state.over = true;
        self.readers.publish(&mut state);
        self.readers.watch.finish();
    }
}

/// The number of the thread that reads alone where one does.
const FIRST: usize = 0;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Readers of which only the first is to read, and that is watched in a thread of the test.
    fn with_one_of(threads: usize, way: Way, test: impl FnOnce(&Readers)) {
        let readers = Readers::new(threads);
        let (other, _channel) = std::os::unix::net::UnixStream::pair().unwrap();
        let other = OwnedFd::from(other);
        std::thread::scope(|scope| {
            scope.spawn(|| readers.watch(&other));
            let mut state = readers.lock();
            state.policy.way = way;
            readers.publish(&mut state);
            drop(state);
            let end = Ending(&readers);
            test(&readers);
            drop(end);
        });
    }

    /// Lets the watching thread end, whatever a test comes to.
    struct Ending<'a>(&'a Readers);

    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            self.0.finish();
        }
    }

    #[test]
    fn a_parked_thread_takes_over_from_one_that_waits_for_something() {
        for way in [Way::One, Way::Beside] {
            with_one_of(3, way, |readers| {
                let (first, last) = (readers.reader(FIRST), readers.reader(2));
                first.has_read(0);
                // Whichever it is.
                last.park();
                assert!(readers.way() == Way::All && !readers.lock().over);
            });
        }
    }

    #[test]
    fn a_parked_thread_ends_with_the_first() {
        with_one_of(2, Way::One, |readers| {
            let first = readers.reader(FIRST);
            std::thread::scope(|scope| {
                let second = scope.spawn(|| readers.reader(1).park());
                for _ in 0..3 {
                    first.has_read(0);
                    first.has_served();
                    // Long enough for the watching thread to rest.
                    std::thread::sleep(2 * PATIENCE);
                }
                assert!(first.may_read());
                let begun = Instant::now();
                drop(first);
                second.join().unwrap();
                assert!(begun.elapsed() < 100 * PATIENCE);
            });
        });
    }
}
