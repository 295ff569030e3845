//! Staying with a process until it ends: signals go to it, and its terminal is ours.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use strata_engine::oci::Running;

use crate::relay;
use crate::terminal::{self, RawTerminal};

/// Signals kept from their default action and read one by one instead.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Begins to collect signals: before there is a process, so that none is lost.
    pub(super) fn collect() -> io::Result<Signals> {
        let mut set = SigSet::all();
        // These are about ourselves.
        for own in [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE] {
            set.remove(own);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// Waits for the end of the process and returns its exit code.
pub(super) fn stay(process: &Running, console: Option<OwnedFd>, signals: &Signals) -> Result<i32> {
    let stdin = io::stdin();
    let _raw = match &console {
        Some(console) => {
            resize(console.as_fd());
            terminal::stdin_is_terminal().then(|| RawTerminal::enter(stdin.as_fd())).transpose()?
        }
        None => None,
    };
    let mut reads_input = console.is_some();
    // What was typed and not yet taken: a program that does not read must not keep us from its output.
    let mut typed: Vec<u8> = Vec::new();
    if let Some(console) = &console {
        rustix::io::ioctl_fionbio(console, true)?;
    }
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(process.pidfd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN),
        ];
        if let Some(console) = &console {
            let wants = if typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            fds.push(PollFd::new(console, wants));
            if reads_input && typed.len() < INPUT_LIMIT {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        while let Some(signal) = signals.0.read_signal()? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match (&console, Signal::try_from(number)) {
                (Some(console), Ok(Signal::SIGWINCH)) => resize(console.as_fd()),
                _ => process.signal(number)?,
            }
        }
        if let Some(console) = &console {
            if !ready[2].is_empty() {
                write_some(console.as_fd(), &mut typed);
                show(console.as_fd());
            }
            if ready.get(3).is_some_and(|ready| !ready.is_empty()) {
                reads_input = read_some(stdin.as_fd(), &mut typed);
            }
        }
        if !ready[0].is_empty() {
            let status = process.wait()?;
            // What it wrote last is in the terminal still.
            if let Some(console) = &console {
                show(console.as_fd());
            }
            return Ok(status.code().into());
        }
    }
}

fn resize(console: BorrowedFd<'_>) {
    if let Some((rows, columns)) = terminal::size() {
        // Of a terminal that has been hung up nobody sees the size.
        let _ = tcsetwinsize(console, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
    }
}

/// Moves what the terminal has to standard output. Whoever has closed that does not want it.
fn show(console: BorrowedFd<'_>) {
    let mut buffer = [0; 16 << 10];
    // It fails when there is nothing, and when nobody has the other end any more.
    while let Ok(count @ 1..) = rustix::io::read(console, &mut buffer) {
        relay::show(rustix::stdio::stdout(), buffer.get(..count).unwrap_or_default());
    }
}

fn write_some(console: BorrowedFd<'_>, typed: &mut Vec<u8>) {
    if let Ok(count @ 1..) = rustix::io::write(console, typed) {
        typed.drain(..count);
    }
}

/// Whether there may be more.
fn read_some(stdin: BorrowedFd<'_>, typed: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4 << 10];
    match rustix::io::read(stdin, &mut buffer) {
        Ok(0) => {
            // The end of input, as a terminal says it.
            typed.push(4);
            false
        }
        Ok(count) => {
            typed.extend_from_slice(buffer.get(..count).unwrap_or_default());
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => false,
    }
}

/// How much may wait for a program that does not read.
const INPUT_LIMIT: usize = 64 << 10;
