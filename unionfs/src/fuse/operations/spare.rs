//! Memory that came free when the kernel forgot nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::survive::Memory;

/// Gives memory back to the system once many nodes have been forgotten and no more are: the C library would keep what lies
/// between others, and so would the memory that servers share.
#[derive(Debug)]
pub(super) struct Spare {
    /// Nodes forgotten since a thread was last started for that.
    forgotten: Arc<AtomicU64>,
    shared: Option<Arc<Memory>>,
}

impl Spare {
    /// `shared` is the memory that outlives this server, if there is such.
    pub(super) fn new(shared: Option<Arc<Memory>>) -> Spare {
        Spare { forgotten: Arc::default(), shared }
    }

    /// Notes that the kernel has forgotten a node.
    pub(super) fn one_forgotten(&self) {
        if self.forgotten.fetch_add(1, Ordering::Relaxed) + 1 == MANY {
            let (forgotten, shared) = (Arc::clone(&self.forgotten), self.shared.clone());
            let thread = std::thread::Builder::new().name("give-back".to_owned());
            if thread.spawn(move || give_back(&forgotten, shared.as_deref())).is_err() {
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
        if recent == 0 {
            break;
        }
    }
    forgotten.store(0, Ordering::Relaxed);
}

/// Nodes worth the trouble.
const MANY: u64 = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(250);
