//! `kill`: signals.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use strata_sys::pidfd::wait_for_end;

use super::{Container, RuntimeError, Status};

impl Container {
    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        // Whether a complete one has ended is seen when its process is opened.
        if !self.record.complete && self.status() == Status::Stopped {
            return Err(RuntimeError::NotRunning);
        }
        let init = self.process()?;
        init.signal(signal).map_err(RuntimeError::io(format!("send signal {signal}")))?;
        if signal == libc::SIGKILL
            && let Some(cgroup) = self.cgroup()?.filter(|cgroup| cgroup.is_frozen())
        {
            // A frozen process of version 1 dies only when it is let go.
            cgroup.thaw()?;
        }
        Ok(())
    }

    /// Sends a signal to every process of the container, also those that its first one has left behind.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when there is none.
    pub fn signal_all(&self, signal: i32) -> Result<(), RuntimeError> {
        let Some(cgroup) = self.cgroup()? else { return self.signal(signal) };
        let was_frozen = cgroup.is_frozen();
        // So that none escapes by being born meanwhile. Where that cannot be had, they are asked twice.
        let stands_still = was_frozen || (cgroup.can_freeze() && cgroup.freeze().is_ok());
        let mut signalled = Vec::new();
        for _ in 0..if stands_still { 1 } else { 2 } {
            for pid in cgroup.all_processes() {
                if !signalled.contains(&pid) && send(pid, signal) {
                    signalled.push(pid);
                }
            }
        }
        if stands_still && (!was_frozen || signal == libc::SIGKILL) {
            cgroup.thaw()?;
        }
        if signalled.is_empty() { Err(RuntimeError::NotRunning) } else { Ok(()) }
    }

    /// Kills the first process and waits until it has ended.
    pub(super) fn end(&self) -> Result<(), RuntimeError> {
        let Ok(init) = self.process() else { return Ok(()) };
        init.signal(libc::SIGKILL).map_err(RuntimeError::io("kill the first process"))?;
        if let Some(cgroup) = self.cgroup()?.filter(|cgroup| cgroup.is_frozen()) {
            cgroup.thaw()?;
        }
        let ended = wait_for_end(init.pidfd(), PATIENCE).map_err(RuntimeError::io("wait for the first process"))?;
        if ended { Ok(()) } else { Err(RuntimeError::StillRunning) }
    }
}

/// Tells whether there was a process to send it to.
fn send(pid: u32, signal: i32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    strata_sys::pidfd::send_signal(pidfd.as_fd(), signal).is_ok()
}

/// Reads a signal as `kill` takes it: `9`, `KILL`, `SIGKILL`, `RTMIN+3`, in any case.
///
/// # Errors
/// [`RuntimeError::InvalidArgument`].
pub fn parse_signal(text: &str) -> Result<i32, RuntimeError> {
    let unknown = || RuntimeError::InvalidArgument(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(position) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(position + 1).map_err(|_| unknown());
    }
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text[1..].parse::<i32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+'))
    {
        offset(rest).map(|offset| 34 + offset)
    } else if let Some(rest) = name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-')) {
        offset(rest).map(|offset| 64 - offset)
    } else {
        match name {
            "IOT" => Some(libc::SIGABRT),
            "CLD" => Some(libc::SIGCHLD),
            "POLL" => Some(libc::SIGIO),
            _ => None,
        }
    };
    number.filter(|number| (34..=64).contains(number) || *number < 32).ok_or_else(unknown)
}

/// By number, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let cases = [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("RTMIN", 34), ("SIGRTMIN+3", 37)];
        for (text, number) in cases.into_iter().chain([("RTMAX", 64), ("RTMAX-2", 62), ("0", 0), ("SYS", 31)]) {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "SIG", "65", "-1", "KILL9", "RTMIN+31", "RTMIN3", "RTMAX-31"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
