//! The first process of a container, told from others that have had its number.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use strata_sys::process_stat::{ProcessStat, boot_id};

/// A process by its number, and by what no other process of that number has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Init {
    pub(super) pid: u32,
    /// Clock ticks from the start of the machine to that of the process.
    pub(super) start_time: u64,
    /// Which start of the machine.
    pub(super) boot: String,
}

impl Init {
    /// The process that has the number now.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: ProcessStat::of(pid)?.start_time, boot: boot_id()?.to_owned() })
    }

    /// Tells whether the process has not ended. A zombie has.
    pub(super) fn is_alive(&self) -> bool {
        let same = |stat: ProcessStat| stat.is_alive() && stat.start_time == self.start_time;
        ProcessStat::of(self.pid).is_ok_and(same) && boot_id().is_ok_and(|boot| boot == self.boot)
    }

    /// Opens the process, if it has not ended.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // In this order: what is alive now under this number is what was opened.
        self.is_alive().then_some(pidfd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_one_of_another_time_is_not() {
        let own = Init::of(std::process::id()).unwrap();
        assert!(own.is_alive() && own.open().is_some());
        assert!(!Init { start_time: own.start_time + 1, ..own.clone() }.is_alive());
        assert!(!Init { boot: "another".into(), ..own }.is_alive());
    }
}
