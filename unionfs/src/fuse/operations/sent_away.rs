//! Callers that were sent to look a name up again.
//!
//! The kernel does that once in a call. So who comes back must be able to open what he finds, even if that is another
//! file by now; and who comes back without having looked up cannot: he has no name, only a descriptor.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::nodes::NodeNumber;

/// The threads that were sent away and have not come back, by their numbers.
#[derive(Debug, Default)]
pub(super) struct SentAway {
    threads: Mutex<HashMap<u32, Sent>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Sent {
    from: NodeNumber,
    looked_up: bool,
    when: Instant,
}

impl SentAway {
    /// Notes that a thread is sent away from a node.
    pub(super) fn add(&self, thread: u32, from: NodeNumber) {
        // Of another PID namespace: there is no telling them apart.
        if thread == 0 {
            return;
        }
        let mut threads = self.lock();
        if threads.len() >= MANY {
            threads.retain(|_, sent| sent.when.elapsed() < LONG);
        }
        threads.insert(thread, Sent { from, looked_up: false, when: Instant::now() });
        self.count.store(threads.len(), Ordering::Release);
    }

    /// Notes that a thread looks a name up; returns whether it was sent to do so.
    pub(super) fn looks_up(&self, thread: u32) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        match self.lock().get_mut(&thread) {
            Some(sent) => {
                sent.looked_up = true;
                true
            }
            None => false,
        }
    }

    /// Notes that a thread has found nothing: if it was sent away, it does not come back for that.
    pub(super) fn finds_nothing(&self, thread: u32) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut threads = self.lock();
        threads.remove(&thread);
        self.count.store(threads.len(), Ordering::Release);
    }

    /// Notes that a thread opens a node; returns whether it was sent away from there and has looked nothing up since.
    pub(super) fn comes_back(&self, thread: u32, node: NodeNumber) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut threads = self.lock();
        let sent = threads.remove(&thread);
        self.count.store(threads.len(), Ordering::Release);
        sent.is_some_and(|sent| sent.from == node && !sent.looked_up)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Sent>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From so many on, those are dropped that were sent away long ago: they have found nothing to open.
const MANY: usize = 1024;
const LONG: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_without_a_look_has_no_name() {
        let sent = SentAway::default();
        assert!(!sent.looks_up(5) && !sent.comes_back(5, 1));
        sent.add(5, 1);
        sent.finds_nothing(6);
        assert!(sent.looks_up(5));
        sent.finds_nothing(5);
        assert!(!sent.looks_up(5));
        sent.add(5, 1);
        assert!(sent.comes_back(5, 1));
        assert!(!sent.comes_back(5, 1), "known once only");
        sent.add(5, 1);
        assert!(sent.looks_up(5) && !sent.looks_up(6));
        assert!(!sent.comes_back(5, 1));
        sent.add(5, 1);
        assert!(!sent.comes_back(5, 2), "another node");
        sent.add(0, 1);
        assert!(!sent.comes_back(0, 1), "anybody");
    }
}
