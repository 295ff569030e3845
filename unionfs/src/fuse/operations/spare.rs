//! Memory that came free when the kernel forgot nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fuse::cpus::Cpus;
use crate::survive::Memory;

/// Gives memory back to the system once many nodes have been forgotten and no more are: the C library would keep what lies
/// between others, and so would the memory that servers share.
#[derive(Debug)]
pub(super) struct Spare {
    /// Nodes forgotten since a thread was last started for that.
    forgotten: Arc<AtomicU64>,
    shared: Option<Arc<Memory>>,
    /// Not those of the serving thread that happens to start the one that gives back.
    cpus: Cpus,
}

impl Spare {
    /// `shared` is the memory that outlives this server, if there is such.
    pub(super) fn new(shared: Option<Arc<Memory>>) -> Spare {
        Spare { forgotten: Arc::default(), shared, cpus: Cpus::allowed() }
    }

    /// Notes that the kernel has forgotten a node.
    pub(super) fn one_forgotten(&self) {
        if self.forgotten.fetch_add(1, Ordering::Relaxed) + 1 == MANY {
            let (forgotten, shared, cpus) = (Arc::clone(&self.forgotten), self.shared.clone(), self.cpus.clone());
            let thread = std::thread::Builder::new().name("give-back".to_owned());
            let work = move || {
                cpus.disinherit();
                give_back(&forgotten, shared.as_deref());
            };
            if thread.spawn(work).is_err() {
                self.forgotten.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Waits until few are forgotten compared to what has been, and gives back; and that again until none is.
fn give_back(forgotten: &AtomicU64, shared: Option<&Memory>) {
    let (mut done, mut before) = (0, forgotten.load(Ordering::Relaxed));
    loop {
        std::thread::sleep(LOOK_EVERY);
        let now = forgotten.load(Ordering::Relaxed);
        let recent = now - before;
        before = now;
        if recent * 16 > now - done {
            continue;
        }
        done = now;
        if let Some(shared) = shared {
            shared.give_back();
        }
        strata_sys::heap::trim();
        // What was forgotten meanwhile is to be given back as well.
        if recent == 0 && forgotten.compare_exchange(now, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            break;
        }
    }
}

/// Nodes worth the trouble.
const MANY: u64 = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(250);
