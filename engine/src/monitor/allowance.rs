//! How much of the machine the output of a container may cost while nobody watches it.
//!
//! The monitor is not in the container's cgroups, so what it does for the container is charged to nobody. A container that writes all
//! it can would have it write a log all the time, beside and on top of what the container's own limits give it. So the monitor
//! measures the CPU time that the output takes. Beyond its share it lets the output lie, the pipe is full, and the container waits.
//! What is shown to somebody is bounded by how fast they read.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time that is left.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Negative: more was used than there was.
    left: i64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self { left: MOST, at: Instant::now() }
    }

    /// Takes away what was used until `now`. That may be more than was left.
    pub(super) fn charge(&mut self, now: Instant, used: Duration) {
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let earned = nanoseconds(now.saturating_duration_since(self.at)) / PARTS;
        self.left = self.left.saturating_add(earned).min(MOST).saturating_sub(nanoseconds(used));
        self.at = now;
    }

    /// Until when nothing may be spent; `None` when there is something left.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        let missing = u64::try_from(self.left.checked_neg()?).ok().filter(|missing| *missing > 0)?;
        // More than that is waited for, or it would be used up by one read.
        let time = Duration::from_nanos((missing + LEAST).saturating_mul(PARTS.unsigned_abs()));
        Some(self.at + time)
    }
}

/// What this thread has used so far.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// One part in so many of one processor.
const PARTS: i64 = 8;
/// What can be saved up, in nanoseconds: a burst of a tenth of a second is not slowed down.
const MOST: i64 = 100_000_000;
/// With how much one goes on, in nanoseconds.
const LEAST: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_more_is_waited_for() {
        let mut allowance = Allowance::new();
        let start = allowance.at;
        let milliseconds = Duration::from_millis;
        allowance.charge(start, milliseconds(99));
        assert_eq!(allowance.wait_until(), None);
        allowance.charge(start, milliseconds(3));
        assert_eq!(allowance.wait_until(), Some(start + milliseconds(8 * (2 + 1))));
        // What was waited for is there, and no more.
        allowance.charge(start + milliseconds(24), Duration::ZERO);
        assert_eq!((allowance.wait_until(), allowance.left), (None, 1_000_000));
        allowance.charge(start + Duration::from_secs(3600), Duration::ZERO);
        assert_eq!(allowance.left, MOST);
    }
}
