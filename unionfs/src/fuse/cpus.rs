//! Keeping serving threads on CPUs.
//!
//! A request is answered fastest on the CPU that asked; threads that wander make every answer wait for a wake-up across
//! CPUs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use strata_sys::scheduling::{Share, set_share, share};

/// The CPUs that this process may use, and how it shares them.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    all: Option<CpuSet>,
    numbers: Vec<usize>,
    is_ordinary: bool,
}

impl Cpus {
    /// Returns those that the calling thread may use, and its way to share them.
    pub(super) fn allowed() -> Cpus {
        let all = sched_getaffinity(None).ok();
        let numbers = all.iter().flat_map(|all| (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu))).collect();
        let is_ordinary = share().is_ok_and(|share| share == Some(Share::Ordinary));
        Cpus { all, numbers, is_ordinary }
    }

    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Returns the number of one of the CPUs; `turn` chooses.
    pub(super) fn number(&self, turn: usize) -> Option<usize> {
        self.numbers.get(turn % self.numbers.len().max(1)).copied()
    }

    /// Keeps this thread on the CPU of this number; returns whether it may go there. Only speed is at stake.
    pub(super) fn pin_to_cpu(&self, cpu: usize) -> bool {
        let mut set = CpuSet::new();
        self.numbers.binary_search(&cpu).is_ok() && {
            set.set(cpu);
            sched_setaffinity(None, &set).is_ok()
        }
    }

    /// Lets this thread go wherever the process may.
    pub(super) fn set_free(&self) {
        if let Some(all) = &self.all {
            let _ = sched_setaffinity(None, all);
        }
    }

    /// Takes from this thread what it has inherited from the serving thread that started it: its CPU and its priority.
    pub(super) fn disinherit(&self) {
        self.set_free();
        if self.is_ordinary {
            // It is already, where it could not become so again.
            let _ = set_share(0, Share::Ordinary);
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
            assert!(!cpus.pin_to_cpu(CpuSet::MAX_CPU));
            assert!(cpus.pin_to_cpu(cpus.number(cpus.count() + 1).unwrap()));
            assert_eq!(Cpus::allowed().count(), 1);
            cpus.set_free();
            assert_eq!(Cpus::allowed().numbers, cpus.numbers);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_was_started_by_one_of_idle_priority_becomes_ordinary() {
        std::thread::spawn(|| {
            let cpus = Cpus::allowed();
            set_share(0, Share::Idle).unwrap();
            let child = move || {
                cpus.disinherit();
                share().unwrap()
            };
            assert_eq!(std::thread::spawn(child).join().unwrap(), Some(Share::Ordinary));
        })
        .join()
        .unwrap();
    }
}
