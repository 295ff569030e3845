//! A process that the monitor started, and its streams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use strata_sandbox::{ExitStatus, Pipes, Running, WindowSize};

use crate::log::LogStream;

/// A process of the container: the first one, or one that was added.
#[derive(Debug)]
pub(super) struct Member {
    /// Tells it from the others of this monitor.
    pub(super) key: u32,
    running: Running,
    outputs: [Option<OwnedFd>; 2],
    input: Option<Input>,
    /// Whether its input ends with that of the command it was started for.
    input_ends: bool,
}

/// Where a process reads.
#[derive(Debug)]
struct Input {
    fd: OwnedFd,
    pending: Vec<u8>,
    ends: bool,
}

/// How much of a process's input may wait here before no more is taken from the command.
const INPUT_LIMIT: usize = 64 << 10;

impl Member {
    /// Takes a process and our ends of its pipes; without those, it has a terminal.
    pub(super) fn new(
        key: u32,
        running: Running,
        pipes: Option<Pipes>,
        keeps_input: bool,
        input_ends: bool,
    ) -> io::Result<Member> {
        let (input, outputs) = match (pipes, running.console()) {
            (Some(Pipes { stdin, stdout, stderr }), _) => (Some(stdin), [Some(stdout), Some(stderr)]),
            (None, Some(console)) => (Some(console.try_clone_to_owned()?), [Some(console.try_clone_to_owned()?), None]),
            (None, None) => (None, [None, None]),
        };
        for fd in outputs.iter().flatten().chain(&input) {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        }
        // Dropped, it is at its end at once.
        let input = input.filter(|_| keeps_input).map(|fd| Input { fd, pending: Vec::new(), ends: false });
        Ok(Member { key, running, outputs, input, input_ends })
    }

    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// What may be read, and which stream it is.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (LogStream, BorrowedFd<'_>)> {
        let streams = [LogStream::Output, LogStream::Error];
        streams.into_iter().zip(&self.outputs).filter_map(|(stream, fd)| Some((stream, fd.as_ref()?.as_fd())))
    }

    /// Reads once; `None` when there is nothing, for now or for good.
    pub(super) fn read(&mut self, stream: LogStream, buffer: &mut [u8]) -> Option<usize> {
        let source = self.outputs[stream as usize].as_ref()?;
        loop {
            match rustix::io::read(source, &mut *buffer) {
                Ok(0) => break,
                Ok(count) => return Some(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                // A terminal whose last process is gone answers EIO.
                Err(_) => break,
            }
        }
        self.outputs[stream as usize] = None;
        None
    }

    /// Waits a moment for the end of a terminal: the kernel hands on what was written last a little later.
    pub(super) fn wait_for_terminal(&self) -> bool {
        if self.running.console().is_none() {
            return false;
        }
        let Some(source) = &self.outputs[0] else { return false };
        let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        poll(&mut [PollFd::new(source, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// Where there must be room for what is pending.
    pub(super) fn wants_room(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|input| !input.pending.is_empty()).map(|input| input.fd.as_fd())
    }

    pub(super) fn takes_input(&self) -> bool {
        self.input.as_ref().is_none_or(|input| input.pending.len() < INPUT_LIMIT)
    }

    /// Hands input on, as far as there is room. What a process does not read any more is thrown away.
    pub(super) fn write_input(&mut self, bytes: &[u8]) {
        if let Some(input) = &mut self.input
            && !input.ends
        {
            input.pending.extend(bytes);
        }
        self.flush_input();
    }

    pub(super) fn flush_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut written = 0;
        while written < input.pending.len() {
            match rustix::io::write(&input.fd, &input.pending[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.input = None;
                    return;
                }
            }
        }
        input.pending.drain(..written);
        if input.pending.is_empty() {
            input.pending.shrink_to_fit();
            if input.ends {
                self.input = None;
            }
        }
    }

    /// The command's input has ended, or the command itself.
    pub(super) fn end_input(&mut self) {
        if let Some(input) = &mut self.input
            && self.input_ends
            && self.running.console().is_none()
        {
            input.ends = true;
            self.flush_input();
        }
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        self.running.resize(WindowSize { rows, columns })
    }

    /// Kills it and waits for its end, for a while.
    pub(super) fn kill(&self) {
        // Both fail only for a process that is gone.
        let _ = self.running.signal(9);
        let _ = self.running.wait_timeout(Duration::from_secs(10));
    }

    /// Reaps it once it has ended; with the first process goes the cgroup.
    pub(super) fn reap(&self) -> io::Result<Option<ExitStatus>> {
        self.running.try_wait()
    }
}

/// The time left until `deadline`, as `poll` takes it.
pub(super) fn timeout_until(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
    Some(Timespec { tv_sec: seconds, tv_nsec: i64::from(left.subsec_nanos()) })
}
