//! The first process of a container, told from others that have had its number.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

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
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_time) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_time, boot: boot()? })
    }

    /// Tells whether the process has not ended. A zombie has.
    pub(super) fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let Some((state, start_time)) = parse_stat(&stat) else { return false };
        !matches!(state, 'Z' | 'X' | 'x') && start_time == self.start_time && boot().is_ok_and(|boot| boot == self.boot)
    }

    /// Opens the process, if it has not ended.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // In this order: what is alive now under this number is what was opened.
        self.is_alive().then_some(pidfd)
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The state letter and the start time of `/proc/PID/stat`, whose second field may have anything in it.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_no_trap() {
        let fields: Vec<String> = (4..=25).map(|number| number.to_string()).collect();
        let stat = format!("7 (a) b (c) S {}\n", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some(('S', 22)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn this_process_is_alive_and_one_of_another_time_is_not() {
        let own = Init::of(std::process::id()).unwrap();
        assert!(own.is_alive() && own.open().is_some());
        assert!(!Init { start_time: own.start_time + 1, ..own.clone() }.is_alive());
        assert!(!Init { boot: "another".into(), ..own }.is_alive());
    }
}
