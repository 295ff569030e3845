//! Serving threads at idle priority, and who watches that none of them starves.
//!
//! Where nothing but a thread of idle priority (`SCHED_IDLE`) runs, the scheduler takes the CPU for idle when it wakes
//! another. So a client that is answered goes on where it was, in place of the thread that answers, instead of being
//! moved to an idle CPU; and when it asks again, that thread goes on. Nobody is woken on another CPU, which would take
//! longer than to serve the request.
//!
//! Beside anything else that runs on its CPU such a thread gets next to nothing. So a thread of ordinary priority looks
//! every few milliseconds whether those that serve move on. One that does not, for whatever reason, is ordinary until its
//! next request, and if it starved for longer. While there are no requests there are no looks, and nobody has idle priority.
//!
//! Only the watching thread changes priorities, and it takes no lock before, as a starving thread might hold it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Thread, park, park_timeout};
use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};
use strata_sys::process_stat::time_in_line;
use strata_sys::scheduling::{Share, set_share, share};

use super::calm::Running;

/// Serving threads that are watched.
#[derive(Debug)]
pub(super) struct Watch {
    threads: Box<[Watched]>,
    running: Running,
    watcher: OnceLock<Thread>,
    /// A thread here can become one of idle priority, and ordinary again.
    may_be_idle: AtomicBool,
    /// The watching thread waits until a thread that is watched has something to do.
    rests: AtomicBool,
    over: AtomicBool,
}

/// One of the serving threads, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Watched {
    /// Its number in the system while it is there. Nobody keeps this lock for longer than a system call, and the watching
    /// thread does not wait for it.
    id: Mutex<Option<u32>>,
    /// How often it has begun or ended a request: odd while it is at one.
    steps: AtomicU64,
    /// What it wishes.
    watched: AtomicBool,
    idle: AtomicBool,
    /// It did not move on, and has to look whether the machine is calm before it has idle priority again.
    paused: AtomicBool,
    starved: AtomicBool,
}

/// What becomes of a serving thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Nobody looks.
    No,
    /// It is looked whether it is held up.
    Ordinary,
    /// And it has idle priority while there are requests.
    Idle,
}

/// What the watching thread has seen of another.
#[derive(Clone, Copy, Debug)]
struct Seen {
    steps: u64,
    /// When it was seen to have moved last.
    since: Instant,
    idle: bool,
    /// How long it had been in line for its CPU then.
    in_line: Option<Duration>,
    /// Its steps when there was a request that it had not read.
    unread: Option<u64>,
}

impl Watch {
    /// Prepares for so many serving threads on a machine of so many CPUs.
    pub(super) fn new(threads: usize, cpus: usize) -> Watch {
        Watch {
            threads: (0..threads).map(|_| Watched::default()).collect(),
            running: Running::new(cpus),
            watcher: OnceLock::new(),
            may_be_idle: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Makes the calling thread the one of this number, until it drops what is returned.
    pub(super) fn enter(&self, number: usize) -> Entered<'_> {
        let watched = &self.threads[number];
        *watched.id() = Some(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
        Entered(self, number)
    }

    /// Says what is to become of a thread.
    pub(super) fn set(&self, number: usize, care: Care) {
        let watched = &self.threads[number];
        watched.idle.store(care == Care::Idle, Ordering::SeqCst);
        watched.watched.store(care != Care::No, Ordering::SeqCst);
        self.call();
    }

    /// Notes that the calling thread, which is the one of this number, begins a request.
    pub(super) fn begin(&self, number: usize) {
        let watched = &self.threads[number];
        watched.steps.fetch_add(1, Ordering::SeqCst);
        if watched.paused.load(Ordering::Relaxed) && watched.idle.load(Ordering::Relaxed) && self.running.is_calm() {
            watched.paused.store(false, Ordering::SeqCst);
        }
        if self.rests.load(Ordering::SeqCst)
            && watched.watched.load(Ordering::Relaxed)
            && self.rests.swap(false, Ordering::SeqCst)
        {
            self.call();
        }
    }

    /// Notes that what the thread does next is to answer, or to wait.
    pub(super) fn end(&self, number: usize) {
        self.threads[number].steps.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns whether a thread has starved since this was asked last.
    pub(super) fn has_starved(&self, number: usize) -> bool {
        let starved = &self.threads[number].starved;
        starved.load(Ordering::Relaxed) && starved.swap(false, Ordering::SeqCst)
    }

    /// Returns whether there can be threads of idle priority here.
    pub(super) fn may_be_idle(&self) -> bool {
        self.may_be_idle.load(Ordering::Relaxed)
    }

    /// Returns whether little runs on the machine besides the calling thread.
    pub(super) fn is_calm(&self) -> bool {
        self.running.is_calm()
    }

    /// Lets the watching thread end.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.call();
    }

    fn call(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }

    /// Watches until all is over. `waits` tells whether there are requests that a thread has not read, if that can be known,
    /// and `held_up` hears of one that has not moved on for so long although it has something to do.
    pub(super) fn run(&self, waits: impl Fn(usize) -> Option<bool>, held_up: impl Fn(usize, Duration)) {
        // In a thread of its own, which may come back with less than it had.
        let may_come_back = std::thread::Builder::new().spawn(may_come_back);
        let may_come_back = may_come_back.is_ok_and(|thread| thread.join().unwrap_or(false));
        self.may_be_idle.store(may_come_back, Ordering::SeqCst);
        let _ = self.watcher.set(std::thread::current());
        let seen = Seen { steps: 0, since: Instant::now(), idle: false, in_line: None, unread: None };
        let mut seen = vec![seen; self.threads.len()];
        while !self.over.load(Ordering::SeqCst) {
            let looks =
                seen.iter_mut().enumerate().filter_map(|(number, seen)| self.look(number, seen, &waits, &held_up));
            match looks.min() {
                Some(time) => park_timeout(time),
                None => self.rest(&seen),
            }
        }
        for (watched, seen) in self.threads.iter().zip(&mut seen) {
            self.set_idle(watched, seen, false);
        }
    }

    /// Looks after a thread; returns when to look again if it need not call.
    fn look(
        &self,
        number: usize,
        seen: &mut Seen,
        waits: impl Fn(usize) -> Option<bool>,
        held_up: impl Fn(usize, Duration),
    ) -> Option<Duration> {
        let watched = &self.threads[number];
        let steps = watched.steps.load(Ordering::SeqCst);
        let now = Instant::now();
        let moves = steps != seen.steps;
        if moves {
            (seen.steps, seen.since) = (steps, now);
        }
        let to_be_idle = watched.idle.load(Ordering::SeqCst) && self.may_be_idle();
        let every = if to_be_idle { LOOK_EVERY } else { PATIENCE };
        let still = now - seen.since;
        let was_idle = seen.idle;
        self.set_idle(watched, seen, to_be_idle && still < every && !watched.paused.load(Ordering::SeqCst));
        if !watched.watched.load(Ordering::SeqCst) {
            return None;
        }
        if still < every {
            if seen.idle && moves {
                seen.in_line = watched.time_in_line();
            }
            // Whoever is met leaves nothing unread for long: another waits while that one computes.
            if seen.idle && waits(number) == Some(true) {
                if seen.unread.replace(steps) != Some(steps) {
                    return Some(GLANCE);
                }
                watched.starved.store(true, Ordering::SeqCst);
                held_up(number, still);
            }
            seen.unread = None;
            return Some(every - still);
        }
        watched.paused.store(true, Ordering::SeqCst);
        let waits = waits(number);
        let has_work = steps % 2 == 1 || waits == Some(true);
        if was_idle && (has_work || waits.is_none()) && starves(seen.in_line, watched.time_in_line(), still) {
            watched.starved.store(true, Ordering::SeqCst);
        }
        if !has_work {
            return None;
        }
        held_up(number, still);
        Some(every)
    }

    /// Sets the priority of a thread, if that is still there and not just about to leave.
    fn set_idle(&self, watched: &Watched, seen: &mut Seen, idle: bool) {
        if idle == seen.idle {
            return;
        }
        let Ok(id) = watched.id.try_lock() else { return };
        let Some(id) = *id else {
            seen.idle = false;
            return;
        };
        let share = if idle { Share::Idle } else { Share::Ordinary };
        match set_share(id, share) {
            Ok(()) => seen.idle = idle,
            Err(error) => {
                if self.may_be_idle.swap(false, Ordering::SeqCst) {
                    tracing::warn!(%error, ?share, "cannot set the priority of a serving thread");
                }
            }
        }
    }

    /// Waits until a thread calls.
    fn rest(&self, seen: &[Seen]) {
        self.rests.store(true, Ordering::SeqCst);
        // Who began before that has not seen it.
        let moved = |(watched, seen): (&Watched, &Seen)| {
            watched.watched.load(Ordering::SeqCst) && watched.steps.load(Ordering::SeqCst) != seen.steps
        };
        if !self.threads.iter().zip(seen).any(moved) {
            park();
        }
        self.rests.store(false, Ordering::SeqCst);
    }
}

impl Watched {
    fn id(&self) -> MutexGuard<'_, Option<u32>> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how long it has been in line for its CPU so far.
    fn time_in_line(&self) -> Option<Duration> {
        let id = *self.id.try_lock().ok()?;
        time_in_line(id?).ok()
    }
}

/// A thread that can be watched. Dropped, it is an ordinary one again, whose priority nobody changes.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a Watch, usize);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Entered(watch, number) = *self;
        *watch.threads[number].id() = None;
        if watch.may_be_idle() {
            // It is already, where it could not become so again.
            let _ = set_share(0, Share::Ordinary);
        }
    }
}

/// Judges by its times in line whether a thread that did not move for so long could have.
fn starves(before: Option<Duration>, now: Option<Duration>, still: Duration) -> bool {
    // Where the kernel does not tell, be careful.
    let (Some(before), Some(now)) = (before, now) else { return true };
    now.saturating_sub(before) > still / 2
}

/// Tries whether the calling thread could have idle priority and become ordinary again. The kernel permits that to who
/// may lower a nice value to the one it has (sched(7)), which is tried, as on a busy machine nobody should be idle for it.
fn may_come_back() -> bool {
    let is_ordinary = share().is_ok_and(|share| share == Some(Share::Ordinary));
    is_ordinary
        && getpriority_process(None).is_ok_and(|nice| {
            nice < NICEST && setpriority_process(None, nice + 1).is_ok() && setpriority_process(None, nice).is_ok()
        })
}

/// How often it is looked whether a thread of idle priority moves on.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// How soon it is looked again whether it has read what was there.
const GLANCE: Duration = Duration::from_millis(1);
/// How long an ordinary one may be at one request before others read as well.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// The highest nice value.
const NICEST: i32 = 19;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::fuse::cpus::Cpus;

    /// Looks at the policy in `/proc/PID/stat`.
    pub(in super::super) fn is_idle(thread: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        after_name.split_ascii_whitespace().nth(38) == Some("5")
    }

    pub(in super::super) fn becomes(what: &str, mut is: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs `test` in a thread beside one that watches, on a machine that is calm with less than so many others running.
    pub(in super::super) fn watching(cpus: usize, test: impl FnOnce(&Watch) + Send) {
        watching_and_hearing(cpus, |_, _| {}, test);
    }

    fn watching_and_hearing(cpus: usize, held_up: impl Fn(usize, Duration) + Send, test: impl FnOnce(&Watch) + Send) {
        if !std::thread::spawn(may_come_back).join().unwrap() {
            eprintln!("skipped: no thread may become ordinary again here");
            return;
        }
        let watch = Watch::new(1, cpus);
        std::thread::scope(|scope| {
            scope.spawn(|| watch.run(|_| Some(false), held_up));
            becomes("the watching thread is not there", || watch.may_be_idle() && watch.watcher.get().is_some());
            let result = scope.spawn(|| test(&watch)).join();
            watch.finish();
            result.unwrap();
        });
    }

    /// Makes a thread one that has starved.
    pub(in super::super) fn starve(watch: &Watch, number: usize) {
        watch.threads[number].starved.store(true, Ordering::SeqCst);
    }

    /// Runs `test` in a thread that is watched, and gives it its number and what is heard of its being held up.
    fn watched(test: impl FnOnce(&Watch, u32, &Mutex<Vec<Duration>>) + Send) {
        let held_up = Mutex::new(Vec::new());
        let hear = |_, time| held_up.lock().unwrap().push(time);
        watching_and_hearing(usize::MAX, hear, |watch| {
            let _entered = watch.enter(0);
            let id = watch.threads[0].id().unwrap();
            test(watch, id, &held_up);
        });
    }

    #[test]
    fn a_thread_has_idle_priority_while_there_are_requests() {
        watched(|watch, id, _| {
            watch.set(0, Care::Idle);
            for _ in 0..2 {
                becomes("it is not idle", || {
                    watch.begin(0);
                    watch.end(0);
                    is_idle(id)
                });
                becomes("it is not ordinary", || !is_idle(id));
                becomes("the watching thread does not rest", || watch.rests.load(Ordering::SeqCst));
            }
            watch.set(0, Care::No);
            watch.begin(0);
            watch.end(0);
            becomes("it is not ordinary for good", || !is_idle(id));
        });
    }

    #[test]
    fn a_thread_that_is_held_up_becomes_ordinary() {
        watched(|watch, id, held_up| {
            watch.set(0, Care::Idle);
            becomes("it is not idle", || {
                watch.begin(0);
                watch.end(0);
                is_idle(id)
            });
            watch.begin(0);
            becomes("it is not heard of", || !held_up.lock().unwrap().is_empty());
            assert!(!is_idle(id));
            assert!(held_up.lock().unwrap()[0] >= LOOK_EVERY);
            watch.end(0);
        });
    }

    #[test]
    fn a_thread_that_others_keep_from_its_cpu_is_known_to_starve() {
        watched(|watch, id, _| {
            let cpus = Cpus::allowed();
            let keep = || assert!(cpus.pin_to_cpu(cpus.number(0).unwrap()));
            keep();
            watch.set(0, Care::Idle);
            becomes("it is not idle", || {
                watch.begin(0);
                watch.end(0);
                is_idle(id)
            });
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let busy = || {
                    cpus.disinherit();
                    keep();
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                };
                scope.spawn(busy);
                let begun = Instant::now();
                while !watch.has_starved(0) && begun.elapsed() < Duration::from_secs(20) {
                    watch.begin(0);
                    let begun = Instant::now();
                    while begun.elapsed() < LOOK_EVERY * 2 {
                        std::hint::spin_loop();
                    }
                    watch.end(0);
                }
                over.store(true, Ordering::Relaxed);
                assert!(begun.elapsed() < Duration::from_secs(20), "nobody has noticed");
            });
        });
    }

    #[test]
    fn one_that_runs_or_waits_does_not_starve() {
        let times = |before: u64, now: u64| {
            let [before, now] = [before, now].map(|time| Some(Duration::from_millis(time)));
            starves(before, now, LOOK_EVERY)
        };
        assert!(!times(100, 100));
        assert!(!times(100, 101));
        assert!(times(100, 103));
        assert!(starves(None, Some(LOOK_EVERY), LOOK_EVERY));
    }
}
