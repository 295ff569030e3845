//! Moves bytes and signals between the user and a container's process, until that ends or the user leaves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use strata_engine::{Attach, Session, SessionEvent};

use crate::detach_keys::{DetachKeys, Scanner};
use crate::terminal::{self, RawTerminal};

/// The signals that are passed on.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// So many requests to end are passed on before the process is killed: the user must be able to get out.
const PATIENCE: u32 = 3;

/// Signals kept from their default action and read one by one instead.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Begins to collect signals; from here on they end nothing by themselves. Without `proxy`, only the size of the
    /// terminal is of interest.
    pub(crate) fn collect(proxy: bool) -> io::Result<Signals> {
        let forwarded = FORWARDED.into_iter().filter(|_| proxy);
        let set: SigSet = forwarded.chain([Signal::SIGWINCH]).collect();
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// How the user is connected.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    /// To what.
    pub(crate) attach: Attach,
    /// The process has a terminal.
    pub(crate) tty: bool,
    /// How the user leaves.
    pub(crate) detach_keys: DetachKeys,
}

/// How it came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended, with this exit code.
    Ended(i32),
    /// The user left, the process goes on.
    Detached,
    /// The monitor is gone without a word.
    Lost,
}

/// How much input may wait for a process that does not read.
const INPUT_LIMIT: usize = 64 << 10;

impl Relay {
    /// Relays until the process has ended and all it wrote has been shown, or the user leaves. What an audit has found is
    /// added to `findings`: shown now, it would be in the midst of what the process wrote to a raw terminal.
    pub(crate) fn run(&self, session: &mut Session, signals: &Signals, findings: &mut String) -> io::Result<Outcome> {
        let stdin = io::stdin();
        let _raw = match self.tty && self.attach.input && terminal::stdin_is_terminal() {
            true => Some(RawTerminal::enter(stdin.as_fd())?),
            false => None,
        };
        let mut scanner = self.detach_keys.scanner();
        let mut reads_input = self.attach.input;
        let mut requests_to_end = 0;
        loop {
            while let Some(event) = session.pending_event()? {
                match event {
                    SessionEvent::Output(bytes) => show(io::stdout().as_fd(), &bytes),
                    SessionEvent::Error(bytes) => show(io::stderr().as_fd(), &bytes),
                    SessionEvent::Audit(text) => *findings += &text,
                    SessionEvent::Ended(code) => return Ok(Outcome::Ended(code)),
                    SessionEvent::Lost => return Ok(Outcome::Lost),
                }
            }
            let wants = if session.pending() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let takes_input = reads_input && session.pending() < INPUT_LIMIT;
            let mut fds = vec![
                PollFd::from_borrowed_fd(session.fd(), wants),
                PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN),
            ];
            if takes_input {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if ready[0].intersects(PollFlags::OUT) {
                session.flush()?;
            }
            if ready[0].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !session.receive()? {
                return Ok(Outcome::Lost);
            }
            if !ready[1].is_empty() {
                while let Some(signal) = signals.0.read_signal()? {
                    forward(session, signal.ssi_signo, &mut requests_to_end)?;
                }
            }
            if ready.get(2).is_some_and(|ready| !ready.is_empty()) {
                match self.read_input(session, &mut scanner)? {
                    Input::More => {}
                    Input::End => reads_input = false,
                    Input::Detach => return Ok(Outcome::Detached),
                }
            }
        }
    }

    fn read_input(&self, session: &mut Session, scanner: &mut Scanner<'_>) -> io::Result<Input> {
        let mut buffer = vec![0; INPUT_LIMIT];
        let count = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Input::More),
            // A terminal that was hung up has no more input than one at its end.
            Err(_) | Ok(0) => {
                session.end_input()?;
                return Ok(Input::End);
            }
            Ok(count) => count,
        };
        if !self.tty {
            session.send_input(&buffer[..count])?;
            return Ok(Input::More);
        }
        let (passed, detach) = scanner.scan(&buffer[..count]);
        if !passed.is_empty() {
            session.send_input(&passed)?;
        }
        Ok(if detach { Input::Detach } else { Input::More })
    }
}

enum Input {
    More,
    End,
    Detach,
}

fn forward(session: &mut Session, number: u32, requests_to_end: &mut u32) -> io::Result<()> {
    let signal = i32::try_from(number).unwrap_or(0);
    match Signal::try_from(signal) {
        Ok(Signal::SIGWINCH) => match terminal::size() {
            Some((rows, columns)) => session.resize(rows, columns),
            None => Ok(()),
        },
        Ok(Signal::SIGINT | Signal::SIGTERM) => {
            *requests_to_end += 1;
            // A first process that handles no signals ignores them.
            session.signal(if *requests_to_end >= PATIENCE { Signal::SIGKILL as i32 } else { signal })
        }
        _ => session.signal(signal),
    }
}

/// Writes all of it. If whoever read there is gone, the container is not disturbed: its output is thrown away.
pub(crate) fn show(to: BorrowedFd<'_>, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                // If even that fails, the next write says so.
                let _ = poll(&mut fds, None);
            }
            Err(_) => return,
        }
    }
}
