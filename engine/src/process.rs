//! Processes named so that a reused number is never mistaken for the one that was meant.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use strata_sys::process_stat::{self, ProcessStat};

/// A process of this host: its number, the moment it started and the boot it belongs to.
///
/// Numbers are reused; the three together are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process number in the namespace strata runs in.
    pub pid: i32,
    /// Clock ticks between boot and the start of the process.
    pub start: u64,
    /// The kernel's identifier of this boot.
    pub boot: String,
}

impl Process {
    /// Returns the calling process.
    pub fn current() -> Process {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Process { pid, start: start_time(pid).unwrap_or_default(), boot: boot_id() }
    }

    /// Returns the process that has this number now, if there is one.
    pub fn with_pid(pid: i32) -> Option<Process> {
        Some(Process { pid, start: start_time(pid)?, boot: boot_id() })
    }

    /// Whether the process still exists and has not become a zombie.
    pub fn is_alive(&self) -> bool {
        self.boot == boot_id() && start_time(self.pid) == Some(self.start)
    }

    /// Opens a descriptor for the process; `None` when it is gone.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the descriptor cannot come to mean another process.
        self.is_alive().then_some(pidfd)
    }

    /// Kills the process and waits until it has ended; a process that is already gone is no error.
    pub fn kill(&self) -> rustix::io::Result<()> {
        let Some(pidfd) = self.open() else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
        wait_for_end(pidfd.as_fd(), std::time::Duration::from_secs(10));
        Ok(())
    }
}

/// Waits until the process behind `pidfd` has ended, at most for `limit`; tells whether it has.
pub(crate) fn wait_for_end(pidfd: std::os::fd::BorrowedFd<'_>, limit: std::time::Duration) -> bool {
    strata_sys::pidfd::wait_for_end(pidfd, limit).unwrap_or(false)
}

/// `None` for a process that is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    let stat = ProcessStat::of(u32::try_from(pid).ok()?).ok()?;
    stat.is_alive().then_some(stat.start_time)
}

fn boot_id() -> String {
    process_stat::boot_id().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_process_is_alive_and_another_start_time_is_not() {
        let current = Process::current();
        assert!(current.is_alive());
        assert!(!Process { start: current.start + 1, ..current.clone() }.is_alive());
        assert!(!Process { boot: "another boot".to_owned(), ..current }.is_alive());
    }

    #[test]
    fn a_killed_child_is_gone_once_kill_returns() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::with_pid(i32::try_from(child.id()).unwrap()).unwrap();
        process.kill().unwrap();
        assert!(!process.is_alive());
        assert!(!child.wait().unwrap().success());
        process.kill().unwrap();
    }
}
