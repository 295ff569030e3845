//! Keeping each serving thread on a CPU of its own.
//!
//! A request is answered fastest on the CPU that asked; threads that wander make every answer wait for a wake-up across
//! CPUs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may use.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    all: Option<CpuSet>,
    numbers: Vec<usize>,
}

impl Cpus {
    /// Returns those that the calling thread may use.
    pub(super) fn allowed() -> Cpus {
        let all = sched_getaffinity(None).ok();
        let numbers = all.iter().flat_map(|all| (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu))).collect();
        Cpus { all, numbers }
    }

    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Keeps this thread on one CPU; `turn` chooses.
    pub(super) fn pin_to(&self, turn: usize) {
        let Some(cpu) = self.numbers.get(turn % self.numbers.len().max(1)) else { return };
        let mut set = CpuSet::new();
        set.set(*cpu);
        // Only speed is at stake.
        let _ = sched_setaffinity(None, &set);
    }

    /// Keeps this thread on the CPU of this number, if it may go there.
    pub(super) fn pin_to_cpu(&self, cpu: usize) {
        if let Some(turn) = self.numbers.iter().position(|number| *number == cpu) {
            self.pin_to(turn);
        }
    }

    /// Lets this thread go wherever the process may.
    pub(super) fn set_free(&self) {
        if let Some(all) = &self.all {
            let _ = sched_setaffinity(None, all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_on_one_and_set_free_again() {
        std::thread::spawn(|| {
            let cpus = Cpus::allowed();
            cpus.pin_to(cpus.count() + 1);
            assert_eq!(Cpus::allowed().count(), 1);
            cpus.set_free();
            assert_eq!(Cpus::allowed().numbers, cpus.numbers);
        })
        .join()
        .unwrap();
    }
}
