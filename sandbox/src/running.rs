//! A container's first process, seen from outside.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::cgroup::Cgroup;

/// A container whose program has been executed.
///
/// Dropping it neither ends the process nor waits for it; only [`wait`](Running::wait) reaps it and removes its cgroup.
#[derive(Debug)]
#[must_use = "the process stays a zombie and its cgroup stays until it is waited for"]
pub struct Running {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) warnings: Vec<String>,
    pub(crate) ended: OnceLock<ExitStatus>,
    /// Serialises reaping between threads; guards nothing but the call.
    pub(crate) reaping: Mutex<()>,
}

impl Running {
    /// Takes a process that somebody else has started. It can be signalled and joined; only its parent can wait for it.
    pub fn adopt(pid: u32, pidfd: OwnedFd, cgroup: Option<Cgroup>) -> Self {
        Self {
            pid,
            pidfd,
            console: None,
            cgroup,
            warnings: Vec::new(),
            ended: OnceLock::new(),
            reaping: Mutex::new(()),
        }
    }

    /// Returns the process id in the caller's pid namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the descriptor of the process: readable once it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns the caller's end of the container's terminal, if it has one.
    #[must_use]
    pub fn console(&self) -> Option<BorrowedFd<'_>> {
        self.console.as_ref().map(AsFd::as_fd)
    }

    /// Returns the container's cgroup, if one was made.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Returns what was asked for and left out because this host cannot do it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Waits for the end of the process, ends what it left in its cgroup, and removes the cgroup.
    ///
    /// # Errors
    /// The errno of `waitid`; `ECHILD` when somebody else reaped the process.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(WaitIdOptions::EXITED)? {
                return Ok(status);
            }
        }
    }

    /// Waits at most `timeout`; `None` when the process goes on.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout))?;
        self.try_wait()
    }

    /// Returns how the process ended, or `None` while it runs.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Sends signal number `signal`. A process that has ended is no error.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal, `EPERM`.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match strata_sys::pidfd::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Sets the size of the container's terminal, if it has one.
    ///
    /// # Errors
    /// The errno of the ioctl.
    pub fn resize(&self, size: crate::WindowSize) -> io::Result<()> {
        let Some(console) = &self.console else { return Ok(()) };
        crate::console::set_size(console.as_fd(), size)?;
        Ok(())
    }

    fn reap(&self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.ended.get() {
            return Ok(Some(*status));
        }
        let _one_at_a_time = if options.contains(WaitIdOptions::NOHANG) {
            match self.reaping.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Another thread waits and will say.
                Err(TryLockError::WouldBlock) => return Ok(None),
            }
        } else {
            self.reaping.lock().unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(status) = self.ended.get() {
            return Ok(Some(*status)); // another thread was faster
        }
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => ExitStatus::from_wait(&status),
            Ok(None) => return Ok(None),
            Err(rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The cgroup may have noted an OOM kill: ask before it goes.
        let status = ExitStatus { out_of_memory: self.cgroup.as_ref().is_some_and(Cgroup::had_oom_kill), ..status };
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.remove()
        {
            tracing::warn!(%error, "cgroup not removed");
        }
        Ok(Some(*self.ended.get_or_init(|| status)))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    end: End,
    out_of_memory: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited(u8),
    Signaled(i32),
}

impl ExitStatus {
    /// Returns the exit code, 128+n when signal n ended it.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self.end {
            End::Exited(code) => code,
            End::Signaled(signal) => 128_u8.wrapping_add(u8::try_from(signal).unwrap_or(0)),
        }
    }

    /// Returns the signal that ended the process.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        match self.end {
            End::Exited(_) => None,
            End::Signaled(signal) => Some(signal),
        }
    }

    /// Tells whether the kernel killed a process of the container for its memory limit.
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    pub(crate) fn from_wait(status: &WaitIdStatus) -> Self {
        let end = if let Some(signal) = status.terminating_signal() {
            End::Signaled(signal)
        } else {
            // Only the low eight bits of an exit code ever arrive here.
            End::Exited(u8::try_from(status.exit_status().unwrap_or(0) & 0xff).unwrap_or(0))
        };
        Self { end, out_of_memory: false }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            End::Exited(code) => write!(formatter, "exit code {code}"),
            End::Signaled(signal) => write!(formatter, "signal {signal}"),
        }
    }
}
