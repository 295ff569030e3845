//! Dying on purpose, for tests: at any step of a request.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::{Header, Memory};

/// Where a request is. `Step` is anywhere in the middle of executing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Read = 1,
    Begun = 2,
    Step = 3,
    Executed = 4,
    Replied = 5,
}

/// Lets this thread die at the points that it passes from now on, if the memory says so.
pub(crate) fn expose(memory: &Arc<Memory>) {
    let exposed = memory.read_header(Header::KillOneIn) != 0;
    EXPOSED.set(exposed.then(|| Arc::clone(memory)));
}

/// Passes a step in the middle of a request.
pub(crate) fn step() {
    pass(Point::Step);
}

/// Passes a point, or dies there.
pub(crate) fn pass(point: Point) {
    EXPOSED.with_borrow(|memory| {
        let Some(memory) = memory else { return };
        let at = memory.read_header(Header::KillAt);
        if at != 0 && at != point as u64 {
            return;
        }
        let sides = memory.read_header(Header::KillOneIn);
        let dice = memory.header(Header::Dice).fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // One round of a mixing function: what matters is only that the points are met evenly.
        let mixed = (dice ^ dice >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        if sides != 0 && (mixed ^ mixed >> 31) % sides == 0 {
            memory.count(Header::Kills);
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way.
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    });
}

thread_local! {
    static EXPOSED: RefCell<Option<Arc<Memory>>> = const { RefCell::new(None) };
}
