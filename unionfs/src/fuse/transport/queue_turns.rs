//! When the thread of a queue of an io_uring has idle priority: while the machine is calm, and it does not starve.
//!
//! It is kept on the CPU of its clients anyway, so there is nobody to follow and nobody else who could read ([`idle`](super::idle)).

use std::cell::{Cell, RefCell};

use super::calm::Calmness;
use super::idle::{Care, Entered, Watch};

/// How one queue's thread takes its turns.
#[derive(Debug)]
pub(super) struct QueueTurns<'a> {
    watch: &'a Watch,
    number: usize,
    /// Requests in this window.
    seen: Cell<u32>,
    calmness: RefCell<Calmness>,
    is_idle: Cell<bool>,
    _watched: Entered<'a>,
}

impl<'a> QueueTurns<'a> {
    /// Makes the calling thread the one of this number.
    pub(super) fn new(watch: &'a Watch, number: usize) -> QueueTurns<'a> {
        let seen = Cell::new(0);
        let (calmness, is_idle) = (RefCell::default(), Cell::new(false));
        QueueTurns { watch, number, seen, calmness, is_idle, _watched: watch.enter(number) }
    }

    /// Notes that it begins a request.
    pub(super) fn begin(&self) {
        self.watch.begin(self.number);
        let mut idle = self.is_idle.get();
        if self.watch.has_starved(self.number) {
            self.calmness.borrow_mut().gone_wrong();
            idle = false;
        }
        self.seen.set(self.seen.get() + 1);
        if self.seen.get() == WINDOW {
            self.seen.set(0);
            idle = self.calmness.borrow_mut().note(|| self.watch.may_be_idle() && self.watch.is_calm());
        }
        if self.is_idle.replace(idle) != idle {
            self.watch.set(self.number, if idle { Care::Idle } else { Care::No });
        }
    }

    /// Notes that what it does next is to answer, or to wait.
    pub(super) fn end(&self) {
        self.watch.end(self.number);
    }
}

/// After so many requests it is looked whether the machine is calm.
const WINDOW: u32 = 64;

#[cfg(test)]
mod tests {
    use super::super::idle::tests::{becomes, is_idle, starve, watching};
    use super::*;

    /// The number of the calling thread.
    fn own() -> u32 {
        rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
    }

    fn serve(turns: &QueueTurns<'_>, requests: u32) {
        for _ in 0..requests {
            turns.begin();
            turns.end();
        }
    }

    /// Windows that pass until the queue's thread is to have idle priority.
    fn windows_until_idle(turns: &QueueTurns<'_>) -> Option<u32> {
        (1..100).find(|_| {
            serve(turns, WINDOW);
            turns.is_idle.get()
        })
    }

    #[test]
    fn a_queue_has_idle_priority_after_a_calm_window_until_it_starves() {
        watching(usize::MAX, |watch| {
            let turns = QueueTurns::new(watch, 0);
            serve(&turns, WINDOW - 1);
            assert!(!turns.is_idle.get(), "before the window is over");
            serve(&turns, 1);
            assert!(turns.is_idle.get());
            becomes("it is not idle", || {
                serve(&turns, 1);
                is_idle(own())
            });
            // Ever longer until it is tried again.
            for expected in [4, 8, 16] {
                starve(watch, 0);
                serve(&turns, 1);
                assert!(!turns.is_idle.get());
                becomes("it is not ordinary", || !is_idle(own()));
                turns.seen.set(0);
                assert_eq!(windows_until_idle(&turns), Some(expected));
            }
            becomes("it is not idle again", || {
                serve(&turns, 1);
                is_idle(own())
            });
            drop(turns);
            assert!(!is_idle(own()), "it ends as an ordinary one");
        });
    }

    #[test]
    fn a_queue_stays_ordinary_on_a_machine_that_is_not_calm() {
        watching(0, |watch| {
            let turns = QueueTurns::new(watch, 0);
            assert_eq!(windows_until_idle(&turns), None);
            assert!(!is_idle(own()));
        });
    }
}
