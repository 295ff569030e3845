//! The command's side: starting monitors, and talking to them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use strata_sandbox::cgroup::systemd;

use super::frame::{self, Decoder, InvalidFrame, Kind};
use super::protocol::{Refusal, Reply, Request, Task};
use super::{SOCKET, VERB};
use crate::channel;
use crate::container::{Container, ContainerId};
use crate::fetcher::ENVIRONMENT;
use crate::process::Process;

/// A monitor that has no container yet. Dropped, it ends.
#[derive(Debug)]
pub struct Monitor {
    process: Process,
    socket: UnixStream,
    _child: Child,
}

impl Monitor {
    /// Starts one. The earlier, the better: it gets ready while the caller does other things.
    ///
    /// # Errors
    /// Those of making a process.
    pub fn spawn() -> io::Result<Monitor> {
        let (ours, theirs) = UnixStream::pair()?;
        // Its children become the first processes of containers, and those that are added: none of these may write to our file.
        let own = strata_sandbox::runtime::protected_program()?;
        let mut command = Command::new(format!("/proc/self/fd/{}", own.as_raw_fd()));
        command.arg0("strata").arg(VERB).current_dir("/").env_clear();
        // Its filesystem process may have to start the process that fetches, and systemd to make a scope.
        let kept = ENVIRONMENT.iter().chain(&systemd::ENVIRONMENT);
        command.envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))));
        // What its own filesystem process looks up by name.
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        drop(command);
        let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
        // Not reaped by anybody before this value is dropped, so the number is its own.
        let process = Process::with_pid(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Monitor { process, socket: ours, _child: child })
    }

    /// Which process it is.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Gives it a container to start, and waits until that runs.
    pub(crate) fn start(self, task: &Task, hold: BorrowedFd<'_>) -> Result<(Session, Vec<String>), AskError> {
        channel::send(self.socket.as_fd(), task, &[hold])?;
        let mut session = Session::new(task.id.clone(), self.socket);
        match session.reply()? {
            Reply::Done => Ok((session, Vec::new())),
            Reply::Warned(warnings) => Ok((session, warnings)),
            Reply::Refused(refusal) => Err(AskError::Refused(refusal)),
        }
    }
}

/// A monitor that does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It says why not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is not there any more.
    #[error("the container's monitor is gone")]
    Gone,
    /// It cannot be talked to.
    #[error("talk to the container's monitor")]
    Talk(#[from] io::Error),
}

impl From<InvalidFrame> for AskError {
    fn from(error: InvalidFrame) -> AskError {
        AskError::Talk(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A connection to the monitor of a container, and through it to a process.
#[derive(Debug)]
pub struct Session {
    container: ContainerId,
    socket: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
}

/// What comes from the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It wrote.
    Output(Vec<u8>),
    /// It complained.
    Error(Vec<u8>),
    /// What the audit of its policy found.
    Audit(String),
    /// It ended, with this exit code. Nothing follows.
    Ended(i32),
    /// The monitor is gone without a word. Nothing follows.
    Lost,
}

impl Session {
    fn new(container: ContainerId, socket: UnixStream) -> Session {
        Session { container, socket, decoder: Decoder::default(), out: Vec::new() }
    }

    /// The container.
    pub fn container(&self) -> &ContainerId {
        &self.container
    }

    /// Becomes readable when there are events, and writable when there is room for what is pending.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How much has not been sent yet.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Sends input to the process, as far as there is room; the rest waits for [`Session::flush`].
    pub fn send_input(&mut self, bytes: &[u8]) -> io::Result<()> {
        frame::encode(Kind::Input, bytes, &mut self.out);
        self.flush()
    }

    /// Says that there is no more input.
    pub fn end_input(&mut self) -> io::Result<()> {
        frame::encode(Kind::InputEnd, &[], &mut self.out);
        self.flush()
    }

    /// Sends a signal to the process.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        frame::encode(Kind::Signal, &signal.to_le_bytes(), &mut self.out);
        self.flush()
    }

    /// Sets the size of the process's terminal.
    pub fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
        frame::encode(Kind::Size, &[a, b, c, d], &mut self.out);
        self.flush()
    }

    /// Sends what is pending, as far as there is room. A monitor that is gone takes it all.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.out.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &self.out[sent..], flags) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // It is heard of by reading.
                Err(Errno::PIPE | Errno::CONNRESET) => sent = self.out.len(),
                Err(error) => return Err(error.into()),
            }
        }
        self.out.drain(..sent);
        Ok(())
    }

    /// Waits for the next event.
    pub fn next_event(&mut self) -> io::Result<SessionEvent> {
        loop {
            if let Some(event) = self.pending_event()? {
                return Ok(event);
            }
            if !self.receive()? {
                return Ok(SessionEvent::Lost);
            }
        }
    }

    /// Returns an event that has been received already.
    pub fn pending_event(&mut self) -> io::Result<Option<SessionEvent>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        while let Some(frame) = self.decoder.next().map_err(invalid)? {
            return Ok(Some(match frame.kind {
                Kind::Output => SessionEvent::Output(frame.payload),
                Kind::ErrorOutput => SessionEvent::Error(frame.payload),
                Kind::Audit => SessionEvent::Audit(String::from_utf8_lossy(&frame.payload).into_owned()),
                Kind::Ended => SessionEvent::Ended(frame.number().map_err(invalid)?),
                _ => continue,
            }));
        }
        Ok(None)
    }

    /// Receives once, waiting if need be; `false` at the end of the stream.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(false),
                Ok(count) => {
                    self.decoder.push(&buffer[..count]);
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the end of the process and throws away what it writes; `None` when the monitor is gone before.
    pub fn wait(mut self) -> io::Result<Option<i32>> {
        loop {
            match self.next_event()? {
                SessionEvent::Ended(code) => return Ok(Some(code)),
                SessionEvent::Lost => return Ok(None),
                SessionEvent::Output(_) | SessionEvent::Error(_) | SessionEvent::Audit(_) => {}
            }
        }
    }

    fn reply(&mut self) -> Result<Reply, AskError> {
        loop {
            while let Some(frame) = self.decoder.next()? {
                if frame.kind == Kind::Reply {
                    return Ok(frame.json()?);
                }
            }
            if !self.receive()? {
                return Err(AskError::Gone);
            }
        }
    }
}

/// Asks the monitor of a container for something, and waits for the answer.
pub(crate) fn ask(container: &Container, request: &Request) -> Result<(Session, Vec<String>), AskError> {
    let socket = match connect(container) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(AskError::Gone);
        }
        Err(error) => return Err(error.into()),
    };
    let mut session = Session::new(container.config.id.clone(), socket);
    frame::encode_json(Kind::Request, request, &mut session.out);
    while session.pending() > 0 {
        session.flush()?;
        if session.pending() > 0 {
            let mut fds = [rustix::event::PollFd::new(&session.socket, rustix::event::PollFlags::OUT)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(AskError::Talk(error.into())),
            }
        }
    }
    match session.reply()? {
        Reply::Done => Ok((session, Vec::new())),
        Reply::Warned(warnings) => Ok((session, warnings)),
        Reply::Refused(refusal) => Err(AskError::Refused(refusal)),
    }
}

fn connect(container: &Container) -> io::Result<UnixStream> {
    // The path of the socket may be longer than an address can hold.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, container.folder(), flags, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}
