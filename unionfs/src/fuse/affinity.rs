//! Keeping each serving thread on a CPU of its own.
//!
//! A request is answered fastest on the CPU that asked; threads that wander make every answer wait for a wake-up across
//! CPUs. `fuser` starts the threads, so each finds its place at its first request.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Gives this thread the next of the CPUs that the process may use, once.
pub(super) fn pin_this_thread() {
    if PINNED.replace(true) {
        return;
    }
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    let Some(cpu) = cpus.get(turn % cpus.len().max(1)) else { return };
    let mut set = CpuSet::new();
    set.set(*cpu);
    // Only speed is at stake.
    let _ = sched_setaffinity(None, &set);
}

thread_local! {
    static PINNED: Cell<bool> = const { Cell::new(false) };
}

static NEXT: AtomicUsize = AtomicUsize::new(0);
