//! Which threads read requests, so that a request is answered on the CPU that asked.
//!
//! With a thread on each CPU the kernel wakes the one that has waited longest, wherever it is. While CPUs are idle that is
//! the right one: the scheduler moves a client that is answered to an idle CPU, and so client and threads go round in step.
//! While the CPUs are busy nobody is moved, and every second request goes to a CPU where it has to wait for others; then
//! one thread that may go everywhere does far better, as the scheduler keeps it beside its only client. So it is looked
//! now and then on which CPU the client was, and the other way is taken when this one does not meet it. Several clients at
//! once have all threads.
//!
//! A thread that does not read is parked. One of those that are watches the reader, who may have to wait for a disk.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strata_sys::process_stat::last_cpu;

use super::device::Turns;
use crate::fuse::cpus::Cpus;

/// Who reads, shared by the serving threads.
#[derive(Debug)]
pub(super) struct Readers {
    cpus: Cpus,
    /// Whether there may be one reader instead of one on each CPU.
    may_be_one: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// As in the policy, to look at without the lock.
    one: AtomicBool,
    /// How often the first thread has begun or ended a request: odd while it is at one.
    steps: AtomicU64,
    /// The watching thread has found the first one idle, and waits until that has something to do.
    resting: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    policy: Policy,
    /// A thread has ended, as the connection is gone or it failed. The others find out for themselves.
    over: bool,
    /// One of the parked threads watches the first.
    watched: bool,
}

/// One of the serving threads.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    number: usize,
    /// Whether it is kept on its CPU.
    pinned: Cell<bool>,
}

impl Readers {
    /// Prepares for so many threads. Fewer than there are CPUs go where they want.
    pub(super) fn new(threads: usize) -> Readers {
        let cpus = Cpus::allowed();
        let may_be_one = threads > 1 && threads >= cpus.count();
        Readers {
            cpus,
            may_be_one,
            state: Mutex::default(),
            changed: Condvar::new(),
            one: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            resting: AtomicBool::new(false),
        }
    }

    /// Returns the part of the calling thread, which is the one of this number. There must be a first, 0.
    pub(super) fn reader(&self, number: usize) -> Reader<'_> {
        let reader = Reader { readers: self, number, pinned: Cell::new(false) };
        reader.keep_to_cpu(self.may_be_one);
        reader
    }

    /// Lets the others know what the policy says now.
    fn publish(&self, state: &mut State) {
        state.policy.one &= !state.over;
        self.one.store(state.policy.one, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader<'_> {
    fn is_first(&self) -> bool {
        self.number == 0
    }

    fn keep_to_cpu(&self, pinned: bool) {
        if self.pinned.replace(pinned) != pinned {
            if pinned { self.readers.cpus.pin_to(self.number) } else { self.readers.cpus.set_free() }
        }
    }

    /// Waits until others than the first are to read.
    fn park(&self) {
        let readers = self.readers;
        let mut state = readers.lock();
        let mut watches = false;
        while state.policy.one {
            if !watches && state.watched {
                state = readers.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            (watches, state.watched) = (true, true);
            let before = readers.steps.load(Ordering::SeqCst);
            let waited = readers.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if !waited.1.timed_out() || readers.steps.load(Ordering::SeqCst) != before {
                continue;
            }
            if before % 2 == 1 {
                state.policy.set_all();
                readers.publish(&mut state);
                break;
            }
            readers.resting.store(true, Ordering::SeqCst);
            // What began before that has not seen it.
            while state.policy.one && readers.steps.load(Ordering::SeqCst) == before {
                state = readers.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            readers.resting.store(false, Ordering::SeqCst);
        }
        if watches {
            state.watched = false;
        }
    }
}

impl Turns for Reader<'_> {
    fn may_read(&self) -> bool {
        let readers = self.readers;
        let one = readers.one.load(Ordering::SeqCst);
        if !self.is_first() {
            if one {
                self.park();
            }
        } else if readers.may_be_one {
            if readers.steps.load(Ordering::Relaxed) % 2 == 1 {
                readers.steps.fetch_add(1, Ordering::SeqCst);
            }
            self.keep_to_cpu(!one);
        }
        true
    }

    fn has_read(&self, thread: u32) {
        let readers = self.readers;
        if !readers.may_be_one {
            return;
        }
        if self.is_first() {
            readers.steps.fetch_add(1, Ordering::SeqCst);
            if readers.resting.load(Ordering::SeqCst) {
                let _state = readers.lock();
                readers.changed.notify_all();
            }
        }
        // Whoever cannot note a request at once lets it be.
        let Ok(mut state) = readers.state.try_lock() else { return };
        let meets = || Some(last_cpu(thread).ok()? == rustix::thread::sched_getcpu());
        if state.policy.note(thread, meets).is_some() {
            readers.publish(&mut state);
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        state.over = true;
        self.readers.publish(&mut state);
    }
}

/// Decides who reads, by what the requests are like.
#[derive(Debug, Default)]
struct Policy {
    one: bool,
    /// The thread that asked last.
    last: u32,
    /// Requests in this window, and how often another thread asked than before.
    seen: u32,
    changes: u32,
    /// How often it was looked where the client was, and how often it was where it is served.
    looks: u32,
    met: u32,
    /// Windows in which it need not be looked.
    rest: u32,
    /// How many it is after one reader has turned out worse.
    doubt: u32,
}

impl Policy {
    /// Notes a request of a thread of a client; `meets` looks whether its CPU is this one. Returns whether there is to be
    /// one reader, if that changes.
    fn note(&mut self, thread: u32, meets: impl FnOnce() -> Option<bool>) -> Option<bool> {
        // What nobody waits for has no client.
        if thread == 0 {
            return None;
        }
        self.seen += 1;
        self.changes += u32::from(std::mem::replace(&mut self.last, thread) != thread);
        if self.rest == 0
            && self.seen.is_multiple_of(LOOK_EVERY)
            && let Some(met) = meets()
        {
            self.looks += 1;
            self.met += u32::from(met);
        }
        if self.seen < WINDOW {
            return None;
        }
        let several = self.changes > WINDOW / 4;
        let looked = self.looks >= WINDOW / LOOK_EVERY / 2;
        let beside = self.met * 8 > self.looks * 5;
        (self.seen, self.changes, self.looks, self.met) = (0, 0, 0, 0);
        let one = !several && if self.one { !looked || beside } else { looked && !beside };
        if !looked {
            self.rest = self.rest.saturating_sub(1);
        } else if one == self.one {
            self.rest = SETTLED;
        }
        if one == self.one {
            return None;
        }
        self.one = one;
        if one {
            self.rest = 0;
        } else {
            self.doubt = if several { 1 } else { (self.doubt * 2).clamp(1, MOST_DOUBT) };
            self.rest = self.doubt;
        }
        Some(one)
    }

    /// Begins anew with all readers.
    fn set_all(&mut self) {
        *self = Policy { doubt: self.doubt, rest: SETTLED, ..Policy::default() };
    }
}

/// So many requests are looked at together.
const WINDOW: u32 = 64;
/// One in so many is one to look where its client is.
const LOOK_EVERY: u32 = 8;
/// So many windows pass until it is looked again whether all is still well.
const SETTLED: u32 = 4;
/// And at most so many until one reader is tried again.
const MOST_DOUBT: u32 = 64;
/// How long the only reader may be at one request before others read as well.
const PATIENCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Notes so many requests of the threads in turn and returns what was decided.
    fn after(policy: &mut Policy, requests: u32, threads: &[u32], mut meets: impl FnMut(bool) -> bool) -> Vec<bool> {
        let mut decided = Vec::new();
        for (_, thread) in (0..requests).zip(threads.iter().cycle()) {
            let one = policy.one;
            decided.extend(policy.note(*thread, || Some(meets(one))));
        }
        decided
    }

    #[test]
    fn clients_that_are_met_keep_all_readers() {
        assert_eq!(after(&mut Policy::default(), 100_000, &[7], |_| true), []);
    }

    #[test]
    fn one_client_that_is_missed_has_one_reader_as_long_as_that_meets_it() {
        let mut policy = Policy::default();
        let mut turn = false;
        let busy = |one: bool| {
            turn = !turn;
            one || turn
        };
        assert_eq!(after(&mut policy, 100_000, &[7], busy), [true]);
        // From now on all would meet it.
        let decided = after(&mut policy, 1_000_000, &[7], |one| !one);
        assert_eq!(decided, [false]);
    }

    #[test]
    fn where_neither_meets_one_reader_is_tried_ever_more_seldom() {
        let mut policy = Policy::default();
        let first = after(&mut policy, 10_000, &[7], |_| false).len();
        after(&mut policy, 100_000, &[7], |_| false);
        let later = after(&mut policy, 10_000, &[7], |_| false).len();
        assert!(first >= 10 && later <= 6, "{first}, {later}");
    }

    #[test]
    fn several_clients_have_all_readers() {
        let mut policy = Policy::default();
        assert_eq!(after(&mut policy, 100_000, &[7, 8], |_| false), []);
        assert_eq!(after(&mut policy, 10_000, &[7], |one| one), [true]);
        assert_eq!(after(&mut policy, 10_000, &[7, 0, 8], |_| true), [false]);
        // One after the other is one at a time.
        let turns: Vec<u32> = (1..200).flat_map(|thread| [thread; 30]).collect();
        assert_eq!(after(&mut policy, 10_000, &turns, |one| one), [true]);
    }

    #[test]
    fn what_cannot_be_looked_at_changes_nothing() {
        let mut policy = Policy::default();
        for _ in 0..100_000 {
            assert_eq!(policy.note(7, || None), None);
            assert_eq!(policy.note(0, || Some(false)), None);
        }
    }

    /// Readers of which only the first is to read.
    fn readers() -> Readers {
        let readers = Readers { may_be_one: true, ..Readers::new(3) };
        readers.lock().policy.one = true;
        readers.publish(&mut readers.lock());
        readers
    }

    #[test]
    fn a_parked_thread_takes_over_from_one_that_waits_for_something() {
        let readers = readers();
        let first = readers.reader(0);
        first.has_read(0);
        // Whichever it is.
        readers.reader(2).park();
        assert!(!readers.one.load(Ordering::SeqCst));
    }

    #[test]
    fn a_parked_thread_rests_with_the_first_and_ends_with_it() {
        let readers = readers();
        let first = readers.reader(0);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| readers.reader(1).park());
            let begun = Instant::now();
            while !readers.resting.load(Ordering::SeqCst) {
                assert!(begun.elapsed() < Duration::from_secs(20), "it does not rest");
                std::thread::sleep(Duration::from_millis(1));
            }
            first.has_read(0);
            while readers.resting.load(Ordering::SeqCst) {
                assert!(begun.elapsed() < Duration::from_secs(20), "it is not woken");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(first.may_read());
            drop(first);
            second.join().unwrap();
        });
    }
}
