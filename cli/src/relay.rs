//! Moves bytes and signals between the user and a container's first process, until that ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The signals that are passed on.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// So many requests to end are passed on before the process is killed, as the docker command gives up waiting.
const PATIENCE: u32 = 3;

/// Signals kept from their default action and read one by one instead.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Begins to collect signals; from here on they end nothing by themselves.
    pub(crate) fn collect() -> io::Result<Signals> {
        let set: SigSet = FORWARDED.into_iter().collect();
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// The container's side.
pub(crate) trait Peer {
    /// Becomes readable when the process has ended.
    fn ended(&self) -> BorrowedFd<'_>;
    /// Passes a signal on.
    fn signal(&self, signal: i32) -> io::Result<()>;
    /// Tells the container's terminal the size of the user's.
    fn resize(&self) -> io::Result<()>;
}

/// One direction: what is read here is written there.
#[derive(Debug)]
struct Flow<'a> {
    from: Option<BorrowedFd<'a>>,
    to: Option<OwnedFd>,
    pending: Vec<u8>,
    written: usize,
}

/// The streams of a container.
#[derive(Debug)]
pub(crate) struct Streams<'a> {
    /// Where the user's input goes, if it goes anywhere; closed at the end of the input.
    pub(crate) input: Option<OwnedFd>,
    /// What is shown on standard output.
    pub(crate) output: Option<BorrowedFd<'a>>,
    /// What is shown on standard error; with a terminal there is none.
    pub(crate) error: Option<BorrowedFd<'a>>,
}

/// Relays until the process has ended and all it wrote has been shown.
pub(crate) fn relay(peer: &impl Peer, streams: Streams<'_>, signals: &Signals) -> io::Result<()> {
    let stdin = io::stdin();
    let mut flows = [
        Flow::new(streams.input.is_some().then(|| stdin.as_fd()), streams.input),
        Flow::new(streams.output, Some(io::stdout().as_fd().try_clone_to_owned()?)),
        Flow::new(streams.error, Some(io::stderr().as_fd().try_clone_to_owned()?)),
    ];
    if let Some(input) = &flows[0].to {
        // The container may be waiting for us to read its output before it reads more input.
        let flags = rustix::fs::fcntl_getfl(input)?;
        rustix::fs::fcntl_setfl(input, flags | OFlags::NONBLOCK)?;
    }
    let mut requests_to_end = 0;
    let mut ended = false;
    loop {
        // Once the process has ended, only what it left in its streams is of interest.
        if ended && flows[1..].iter().all(Flow::is_finished) {
            return Ok(());
        }
        let mut polled = Vec::with_capacity(5);
        let mut owners = Vec::with_capacity(5);
        for (number, flow) in flows.iter().enumerate() {
            if let Some((fd, flags)) = flow.interest() {
                polled.push(PollFd::from_borrowed_fd(fd, flags));
                owners.push(Source::Flow(number));
            }
        }
        polled.push(PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN));
        owners.push(Source::Signal);
        if !ended {
            polled.push(PollFd::from_borrowed_fd(peer.ended(), PollFlags::IN));
            owners.push(Source::End);
        }
        match poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let ready: Vec<Source> = polled
            .iter()
            .zip(&owners)
            .filter(|(polled, _)| !polled.revents().is_empty())
            .map(|(_, owner)| *owner)
            .collect();
        drop(polled);
        for source in ready {
            match source {
                Source::Flow(number) => flows[number].advance(number > 0),
                Source::End => {
                    ended = true;
                    flows[0].close();
                }
                Source::Signal => {
                    while let Some(signal) = signals.0.read_signal()? {
                        forward(peer, signal.ssi_signo, &mut requests_to_end)?;
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Source {
    Flow(usize),
    Signal,
    End,
}

fn forward(peer: &impl Peer, number: u32, requests_to_end: &mut u32) -> io::Result<()> {
    let signal = i32::try_from(number).unwrap_or(0);
    match Signal::try_from(signal) {
        Ok(Signal::SIGWINCH) => peer.resize(),
        Ok(Signal::SIGINT | Signal::SIGTERM) => {
            *requests_to_end += 1;
            // A first process that handles no signals ignores them; the user must be able to leave all the same.
            peer.signal(if *requests_to_end >= PATIENCE { Signal::SIGKILL as i32 } else { signal })
        }
        _ => peer.signal(signal),
    }
}

impl<'a> Flow<'a> {
    fn new(from: Option<BorrowedFd<'a>>, to: Option<OwnedFd>) -> Flow<'a> {
        Flow { from, to, pending: Vec::new(), written: 0 }
    }

    fn is_finished(&self) -> bool {
        self.from.is_none() && self.pending.is_empty()
    }

    fn close(&mut self) {
        *self = Flow::new(None, None);
    }

    /// What to wait for: room for what is pending, else something new.
    fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.pending.is_empty() {
            Some((self.from?, PollFlags::IN))
        } else {
            Some((self.to.as_ref()?.as_fd(), PollFlags::OUT))
        }
    }

    /// Reads or writes once; `keep_reading` when the reader's end must be drained even if nobody takes the bytes.
    fn advance(&mut self, keep_reading: bool) {
        if self.pending.is_empty() {
            let Some(from) = self.from else { return };
            let mut buffer = vec![0; 64 << 10];
            match rustix::io::read(from, &mut buffer) {
                Ok(0) => self.end(),
                Ok(count) => {
                    buffer.truncate(count);
                    self.pending = buffer;
                    self.written = 0;
                }
                Err(Errno::INTR | Errno::AGAIN) => return,
                // A terminal whose last process is gone answers EIO.
                Err(_) => self.end(),
            }
        }
        while self.written < self.pending.len() {
            let Some(to) = &self.to else { break };
            match rustix::io::write(to, &self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Whoever read there is gone. The container is not disturbed: its output is thrown away.
                Err(_) => {
                    self.to = None;
                    if !keep_reading {
                        self.from = None;
                    }
                }
            }
        }
        self.pending.clear();
        self.written = 0;
    }

    /// The source has ended: so does the stream it feeds.
    fn end(&mut self) {
        self.from = None;
        self.to = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_flow_keeps_what_could_not_be_written_and_goes_on() {
        let (read_source, write_source) = rustix::pipe::pipe().unwrap();
        let (read_sink, write_sink) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&write_sink, OFlags::NONBLOCK).unwrap();
        let sent: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || {
            let mut rest = copy.as_slice();
            while !rest.is_empty() {
                let count = rustix::io::write(&write_source, rest).unwrap();
                rest = &rest[count..];
            }
        });
        let mut flow = Flow::new(Some(read_source.as_fd()), Some(write_sink));
        // Nobody reads the sink: it fills up, and the flow keeps the rest.
        while flow.pending.is_empty() {
            flow.advance(false);
        }
        for _ in 0..10 {
            flow.advance(false);
        }
        let mut reader = std::fs::File::from(read_sink);
        let collector = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        while !flow.is_finished() {
            flow.advance(false);
        }
        writer.join().unwrap();
        drop(flow);
        assert_eq!(collector.join().unwrap(), sent);
    }

    #[test]
    fn output_nobody_reads_is_drained() {
        let (read_source, write_source) = rustix::pipe::pipe().unwrap();
        let (read_sink, write_sink) = rustix::pipe::pipe().unwrap();
        drop(read_sink);
        let mut flow = Flow::new(Some(read_source.as_fd()), Some(write_sink));
        rustix::io::write(&write_source, b"one").unwrap();
        flow.advance(true);
        rustix::io::write(&write_source, b"two").unwrap();
        flow.advance(true);
        drop(write_source);
        flow.advance(true);
        assert!(flow.is_finished());
    }
}
