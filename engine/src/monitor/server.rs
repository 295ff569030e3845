//! The monitor itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use strata_imagestore::Timestamp;
use strata_sandbox::audit::Audit;

use super::allowance::{Allowance, cpu_time};
use super::connection::{Connection, Role};
use super::frame::{Frame, Kind};
use super::protocol::{Refusal, Reply, Request, Task};
use super::streams::{Member, timeout_until};
use super::{SOCKET, requests};
use crate::channel;
use crate::container::{Container, ContainerId, Containers, Ended, Event, Locked, RecordError, StartFailure};
use crate::durable::Durability;
use crate::filesystem::{FilesystemProcess, SpareProcess};
use crate::launch::{self, Layers, StartError, Started};
use crate::log::{LogStream, LogWriter};
use crate::process::Process;

/// Why a monitor ended early.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It was not started by strata.
    #[error("the verb \"monitor\" is only for strata itself: standard input is no socket of a strata command")]
    NotStarted(#[source] io::Error),
    /// It cannot wait for anything.
    #[error("wait for events")]
    Poll(#[source] io::Error),
    /// The end of the container cannot be written down. The next command finds that out by itself.
    #[error("write the record of the container")]
    Record(#[from] RecordError),
}

/// Runs a monitor: takes its task from standard input, starts the container, stays until that has ended.
///
/// # Errors
/// [`MonitorError`]; a container that does not start is none, the command hears of it.
pub fn watch() -> Result<(), MonitorError> {
    // Fails only for a process that leads its group already, which then has no terminal to lose.
    let _ = rustix::process::setsid();
    // Executed through /proc/self/exe, it would be called `exe` in `ps` and `top`. Nothing depends on the name.
    let _ = rustix::thread::set_name(c"strata-monitor");
    let stdin = rustix::stdio::stdin();
    let control = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(|error| MonitorError::NotStarted(error.into()))?;
    // Ready by the time the task comes; without one, another is started then. Nobody else needs it: it ends with us.
    let spare = SpareProcess::spawn().ok();
    let (task, held) = match channel::receive::<Task>(control.as_fd()) {
        // The command found that it has nothing for us to do, or is gone.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        received => received.map_err(MonitorError::NotStarted)?,
    };
    let null: OwnedFd = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| MonitorError::NotStarted(error.into()))?;
    rustix::stdio::dup2_stdin(null).map_err(|error| MonitorError::NotStarted(error.into()))?;
    let hold = held.into_iter().next().ok_or_else(|| MonitorError::NotStarted(io::ErrorKind::InvalidData.into()))?;

    let Task { root, id, lower, index, size, attach } = task;
    let mut connection = Connection::new(control).map_err(MonitorError::NotStarted)?;
    let mut server = Server {
        containers: Containers::new(&root),
        id,
        layers: Layers { lower, index, hold },
        main: None,
        others: Vec::new(),
        next_key: 0,
        connections: Vec::new(),
        listener: None,
        by_user: false,
        restarts_at_once: false,
        kill_at: None,
        restart: None,
        allowance: Allowance::new(),
        buffer: vec![0; 64 << 10],
    };
    match server.start(spare, size) {
        Ok(warnings) => {
            connection.reply(&Reply::Warned(warnings));
            let key = server.main.as_ref().map_or(0, |main| main.member.key);
            connection.role = attach.map_or(Role::Done, |attach| Role::Attached(key, attach));
            server.connections.push(connection);
            server.run()
        }
        Err(refusal) => {
            connection.conclude(&Reply::Refused(refusal));
            Ok(())
        }
    }
}

/// A monitor with its container.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) containers: Containers,
    pub(super) id: ContainerId,
    layers: Layers,
    pub(super) main: Option<Main>,
    /// Processes that were added.
    pub(super) others: Vec<Member>,
    next_key: u32,
    pub(super) connections: Vec<Connection>,
    listener: Option<UnixListener>,
    /// The user asked for the end that comes next.
    pub(super) by_user: bool,
    /// After that end it is started again at once, since the user asked for that.
    pub(super) restarts_at_once: bool,
    /// When a process that was asked to end is killed.
    pub(super) kill_at: Option<Instant>,
    pub(super) restart: Option<Restart>,
    /// For output that nobody watches.
    allowance: Allowance,
    buffer: Vec<u8>,
}

/// The first process, with what goes with it.
#[derive(Debug)]
pub(super) struct Main {
    pub(super) member: Member,
    pub(super) container: Container,
    filesystem: FilesystemProcess,
    /// What observes it.
    pub(super) audit: Option<Audit>,
    log: Option<LogWriter>,
    started: Instant,
    /// What strata itself did wrong, if that will be why it ends.
    error: String,
    previous_delay: Duration,
}

/// A process that will be started again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    at: Instant,
    delay: Duration,
}

/// What became ready.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Listener,
    MainEnded,
    FilesystemEnded,
    OtherEnded(u32),
    Output(u32, LogStream),
    InputRoom(u32),
    ConnectionIn(usize),
    ConnectionOut(usize),
}

impl Server {
    fn run(&mut self) -> Result<(), MonitorError> {
        while self.main.is_some() || self.restart.is_some() || !self.connections.is_empty() {
            for ready in self.wait().map_err(MonitorError::Poll)? {
                self.handle(ready)?;
            }
            let now = Instant::now();
            if self.kill_at.is_some_and(|at| at <= now) {
                self.kill_at = None;
                self.kill_main();
            }
            if let Some(restart) = self.restart.filter(|restart| restart.at <= now) {
                self.start_again(restart)?;
            }
            self.drop_finished_connections();
        }
        Ok(())
    }

    /// Starts the first process and writes that down; if that fails, writes that down.
    fn start(&mut self, spare: Option<SpareProcess>, size: Option<(u16, u16)>) -> Result<Vec<String>, Refusal> {
        let refuse = |error: &dyn std::error::Error| Refusal::of(error);
        let container = self.containers.find(self.id.as_str()).map_err(|error| refuse(&error))?;
        let started = LogWriter::open(&container).map_err(StartError::Log).and_then(|log| {
            let started = launch::start(&self.containers, &container, &self.layers, spare, size)?;
            Ok((started, log))
        });
        let (started, log) = match started {
            Ok(started) => started,
            Err(error) => {
                let refusal = error.refusal();
                self.give_up(&container, &refusal);
                return Err(refusal);
            }
        };
        let started = self.started(&container, started, log);
        if let Err(refusal) = &started {
            self.give_up(&container, refusal);
        }
        started
    }

    fn started(
        &mut self,
        container: &Container,
        started: Started,
        log: Option<LogWriter>,
    ) -> Result<Vec<String>, Refusal> {
        let Started { running, pipes, filesystem, audit } = started;
        let pid = i32::try_from(running.pid()).unwrap_or(0);
        // A process that has ended meanwhile cannot be found any more: its number is still ours until it is reaped.
        let init = Process::with_pid(pid).unwrap_or(Process { pid, start: 0, boot: String::new() });
        let warnings = running.warnings().to_vec();
        let config = &container.config;
        let durability = durability(container);
        let key = self.next_key;
        self.next_key += 1;
        let member = Member::new(key, running, pipes, config.open_stdin, config.stdin_once);
        let recorded = member.map_err(|error| Refusal::of(&error)).and_then(|member| {
            let event = Event::Started { init, at: Timestamp::now() };
            // The socket is there before the record says that the container runs.
            let listener = match self.listener.take() {
                Some(listener) => Ok(listener),
                None => listen(container).map_err(|error| Refusal::of(&StartError::Socket(error))),
            };
            let written = listener.and_then(|listener| {
                let mut locked = lock(container).map_err(|error| Refusal::of(&error))?;
                locked.apply(event, durability).map_err(|error| Refusal::of(&error))?;
                Ok((listener, locked.unlock()))
            });
            match written {
                Ok((listener, container)) => Ok((member, listener, container)),
                Err(refusal) => {
                    // Nobody would know of the process: it must not go on.
                    member.kill();
                    let _ = member.reap();
                    Err(refusal)
                }
            }
        });
        match recorded {
            Ok((member, listener, container)) => {
                self.listener = Some(listener);
                let previous_delay = self.restart.take().map_or(Duration::ZERO, |restart| restart.delay);
                let started = Instant::now();
                let error = String::new();
                self.main = Some(Main { member, container, filesystem, audit, log, started, error, previous_delay });
                Ok(warnings)
            }
            Err(refusal) => {
                filesystem.kill();
                Err(refusal)
            }
        }
    }

    /// Puts a container back that did not start, or removes it.
    fn give_up(&self, container: &Container, refusal: &Refusal) {
        self.containers.remove_cgroup(&container.config);
        let failure = StartFailure { code: i32::from(refusal.code), error: refusal.text.clone() };
        let event = Event::StartFailed(failure);
        // If this fails, the next command finds and finishes it; what matters to the user is why it did not start.
        let _ = lock(container).and_then(|mut locked| match locked.config.auto_remove {
            true => locked.delete_after(event, &self.containers),
            false => locked.apply(event, durability(container)),
        });
    }

    /// Waits for something to do.
    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut fds = Vec::with_capacity(16);
        let mut tags = Vec::with_capacity(16);
        let mut add = |fd, flags, tag| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            tags.push(tag);
        };
        if let Some(listener) = &self.listener {
            add(listener.as_fd(), PollFlags::IN, Ready::Listener);
        }
        if let Some(main) = &self.main {
            add(main.member.running().pidfd(), PollFlags::IN, Ready::MainEnded);
            if main.error.is_empty() {
                add(main.filesystem.pidfd(), PollFlags::IN, Ready::FilesystemEnded);
            }
        }
        for member in &self.others {
            add(member.running().pidfd(), PollFlags::IN, Ready::OtherEnded(member.key));
        }
        let rest = self.allowance.wait_until().filter(|until| *until > Instant::now());
        let mut rests = false;
        for member in self.members() {
            let key = member.key;
            let lies = rest.is_some() && !self.is_watched(key);
            rests |= lies;
            // Whoever watches must keep up: output is never thrown away.
            if !lies && !self.connections.iter().any(|connection| connection.is_full() && carries(connection, key)) {
                for (stream, fd) in member.outputs() {
                    add(fd, PollFlags::IN, Ready::Output(key, stream));
                }
            }
            if let Some(fd) = member.wants_room() {
                add(fd, PollFlags::OUT, Ready::InputRoom(key));
            }
        }
        for (number, connection) in self.connections.iter().enumerate() {
            let takes_input = match connection.role {
                Role::Attached(key, _) => self.members().all(|member| member.key != key || member.takes_input()),
                _ => true,
            };
            if takes_input {
                add(connection.fd(), PollFlags::IN, Ready::ConnectionIn(number));
            }
            if connection.has_output() {
                add(connection.fd(), PollFlags::OUT, Ready::ConnectionOut(number));
            }
        }
        let deadlines = [self.kill_at, self.restart.map(|restart| restart.at), rest.filter(|_| rests)];
        match poll(&mut fds, timeout_until(deadlines.into_iter().flatten().min()).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(tags).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, tag)| tag);
        Ok(ready.collect())
    }

    fn is_watched(&self, key: u32) -> bool {
        let shows = |role| matches!(role, Role::Attached(attached, attach) if attached == key && (attach.output || attach.error));
        self.connections.iter().any(|connection| shows(connection.role))
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.main.iter().map(|main| &main.member).chain(&self.others)
    }

    pub(super) fn member(&mut self, key: u32) -> Option<&mut Member> {
        let main = self.main.iter_mut().map(|main| &mut main.member);
        main.chain(&mut self.others).find(|member| member.key == key)
    }

    fn handle(&mut self, ready: Ready) -> Result<(), MonitorError> {
        match ready {
            Ready::Listener => self.accept(),
            Ready::Output(key, stream) if self.is_watched(key) => self.read_output(key, stream),
            Ready::Output(key, stream) => {
                let before = cpu_time();
                self.read_output(key, stream);
                self.allowance.charge(Instant::now(), cpu_time().saturating_sub(before));
            }
            Ready::InputRoom(key) => {
                if let Some(member) = self.member(key) {
                    member.flush_input();
                }
            }
            Ready::ConnectionIn(number) => self.receive(number)?,
            Ready::ConnectionOut(number) => self.connections[number].flush(),
            Ready::OtherEnded(key) => self.end_other(key),
            Ready::MainEnded => self.end_main()?,
            Ready::FilesystemEnded => {
                if let Some(main) = &mut self.main
                    && main.error.is_empty()
                {
                    // Every file it had is gone with that process. It may be on its way out just as well.
                    main.error = "the filesystem process of the container ended".to_owned();
                    self.kill_main();
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        // A command that is gone again, or no descriptors left: either way the others go on.
        if let Ok((socket, _)) = listener.accept()
            && let Ok(connection) = Connection::new(socket.into())
        {
            self.connections.push(connection);
        }
    }

    /// Reads output once, keeps it, and passes it on; tells whether there was any.
    fn read_output(&mut self, key: u32, stream: LogStream) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some(count) = self.member(key).and_then(|member| member.read(stream, &mut buffer)) {
            self.pass_on(key, stream, &buffer[..count]);
        }
        self.buffer = buffer;
    }

    fn pass_on(&mut self, key: u32, stream: LogStream, bytes: &[u8]) {
        if let Some(main) = &mut self.main
            && main.member.key == key
            && let Some(log) = &mut main.log
        {
            // A full disk costs the log lines, not the container.
            let _ = log.write(stream, bytes);
        }
        for connection in &mut self.connections {
            let Role::Attached(attached, attach) = connection.role else { continue };
            match stream {
                _ if attached != key => {}
                LogStream::Output if attach.output => connection.send(Kind::Output, bytes),
                LogStream::Error if attach.error => connection.send(Kind::ErrorOutput, bytes),
                _ => {}
            }
        }
    }

    /// Reads all that a process left in its streams. Whoever has them from it may go on writing, and is not waited for:
    /// what was left is never more than a pipe holds.
    fn drain(&mut self, key: u32) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for stream in [LogStream::Output, LogStream::Error] {
            let mut left = DRAIN_LIMIT;
            while left > 0
                && let Some(member) = self.member(key)
            {
                match member.read(stream, &mut buffer) {
                    Some(count) => {
                        left = left.saturating_sub(count);
                        self.pass_on(key, stream, &buffer[..count]);
                    }
                    None if member.wait_for_terminal() => {}
                    None => break,
                }
            }
        }
        self.buffer = buffer;
    }

    fn receive(&mut self, number: usize) -> Result<(), MonitorError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let goes_on = self.connections[number].receive(&mut buffer);
        self.buffer = buffer;
        while let Some(frame) = self.connections[number].next_frame() {
            self.frame(number, &frame)?;
        }
        if !goes_on
            && let Role::Attached(key, attach) = self.connections[number].role
            && attach.input
        {
            self.end_input(key);
        }
        Ok(())
    }

    fn end_input(&mut self, key: u32) {
        if let Some(member) = self.member(key) {
            member.end_input();
        }
    }

    fn frame(&mut self, number: usize, frame: &Frame) -> Result<(), MonitorError> {
        match (self.connections[number].role, frame.kind) {
            (Role::New, Kind::Request) => match frame.json::<Request>() {
                Ok(request) => requests::answer(self, number, request)?,
                Err(error) => self.connections[number].conclude(&Reply::Refused(Refusal::of(&error))),
            },
            (Role::Attached(key, attach), kind) => {
                let Some(member) = self.member(key) else { return Ok(()) };
                match kind {
                    Kind::Input if attach.input => member.write_input(&frame.payload),
                    Kind::InputEnd if attach.input => member.end_input(),
                    Kind::Signal => {
                        if let Ok(signal) = frame.number() {
                            // A process that has ended needs none, and a number that is none is the command's mistake.
                            let _ = member.running().signal(signal);
                        }
                    }
                    Kind::Size => {
                        if let Ok((rows, columns)) = frame.size() {
                            // A process without a terminal has no size.
                            let _ = member.resize(rows, columns);
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn drop_finished_connections(&mut self) {
        self.connections.retain(|connection| !connection.is_over());
    }

    /// Adds a process, and connects a command to it.
    pub(super) fn add(&mut self, member: impl FnOnce(u32) -> io::Result<Member>) -> io::Result<u32> {
        let key = self.next_key;
        self.next_key += 1;
        self.others.push(member(key)?);
        Ok(key)
    }

    /// An added process has ended.
    fn end_other(&mut self, key: u32) {
        let Some(position) = self.others.iter().position(|member| member.key == key) else { return };
        let Ok(Some(status)) = self.others[position].reap() else { return };
        self.drain(key);
        self.others.remove(position);
        self.tell_end(key, i32::from(status.code()));
    }

    fn tell_end(&mut self, key: u32, code: i32) {
        for connection in self.connections.iter_mut().filter(|connection| carries(connection, key)) {
            connection.send(Kind::Ended, &code.to_le_bytes());
            connection.role = Role::Done;
        }
    }

    /// Kills the first process, and with it all others. Processes that are paused do not die.
    pub(super) fn kill_main(&mut self) {
        let Some(main) = &self.main else { return };
        // Fails only for one that is gone.
        let _ = main.member.running().signal(9);
        if let Some(cgroup) = main.member.running().cgroup() {
            // Thawing what is not frozen changes nothing.
            let _ = cgroup.thaw();
        }
    }

    /// The first process has ended: its output is kept and passed on, the end written down, everybody told.
    fn end_main(&mut self) -> Result<(), MonitorError> {
        let Some(main) = &self.main else { return Ok(()) };
        let Ok(Some(status)) = main.member.reap() else { return Ok(()) };
        let key = main.member.key;
        self.drain(key);
        let Some(main) = self.main.take() else { return Ok(()) };
        self.kill_at = None;
        let by_user = std::mem::take(&mut self.by_user);
        let at_once = std::mem::take(&mut self.restarts_at_once);
        let Main { member, container, filesystem, audit, log, started, error, previous_delay } = main;
        // The kernel has killed all others with the first one; where they share the pid namespace of others, its cgroup ends them.
        drop(member);
        for key in self.others.iter().map(|member| member.key).collect::<Vec<_>>() {
            self.end_other(key);
        }
        // So this waits for nobody of them.
        let findings = audit.map(Audit::finish).map(|(policy, report)| report.text(&policy));
        if let Some(mut log) = log {
            // A full disk costs the log lines, not the container. Findings that nobody is here to be told of are kept there.
            if let Some(findings) = &findings
                && !self.connections.iter().any(|connection| carries(connection, key))
            {
                let _ = log.write(LogStream::Error, findings.as_bytes());
            }
            let _ = log.finish();
        }
        let code = i32::from(status.code());
        let out_of_memory = status.out_of_memory();
        let ended = Ended { code, at: Timestamp::now(), out_of_memory, by_user, error };
        if container.config.auto_remove && !at_once {
            filesystem.kill();
            lock(&container)?.delete_after(Event::Ended(ended), &self.containers)?;
        } else {
            // The mount has gone with the container's namespace; what it still held back is written by now or never.
            filesystem.wait(Duration::from_secs(30));
            let mut locked = lock(&container)?;
            let again = at_once || !by_user && locked.config.restart.wants_restart(code, locked.restarts);
            if again {
                locked.apply(Event::EndedToRestart(ended), Durability::Relaxed)?;
                let delay = match started.elapsed() > CALM {
                    _ if at_once => Duration::ZERO,
                    true => FIRST_DELAY,
                    false => (previous_delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY),
                };
                // Whoever comes meanwhile is answered between the two runs, or by the next one.
                self.restart = Some(Restart { at: Instant::now() + delay, delay });
            } else {
                locked.apply(Event::Ended(ended), durability(&container))?;
            }
        }
        if self.restart.is_none() {
            self.listener = None;
        }
        for connection in self.connections.iter_mut().filter(|connection| carries(connection, key)) {
            if let Some(findings) = &findings {
                connection.send(Kind::Audit, findings.as_bytes());
            }
        }
        self.tell_end(key, code);
        if !at_once {
            self.conclude_waiting(&Reply::Done);
        }
        Ok(())
    }

    /// Answers those who wait for the end, or for the start after it.
    pub(super) fn conclude_waiting(&mut self, reply: &Reply) {
        for connection in self.connections.iter_mut().filter(|connection| connection.role == Role::AwaitsEnd) {
            connection.conclude(reply);
        }
    }

    fn start_again(&mut self, restart: Restart) -> Result<(), MonitorError> {
        let Ok(container) = self.containers.find(self.id.as_str()) else {
            self.restart = None;
            return Ok(());
        };
        lock(&container)?.apply(Event::Restart, Durability::Relaxed)?;
        self.restart = Some(restart);
        match self.start(None, None) {
            Ok(_) => self.conclude_waiting(&Reply::Done),
            Err(refusal) => {
                // Written down as how it ended.
                self.restart = None;
                self.listener = None;
                self.conclude_waiting(&Reply::Refused(refusal));
            }
        }
        Ok(())
    }

    /// It is started again without further waiting.
    pub(super) fn restart_now(&mut self) {
        self.restart = self.restart.map(|_| Restart { at: Instant::now(), delay: Duration::ZERO });
    }

    /// It will not be started again.
    pub(super) fn give_up_restart(&mut self) -> Result<(), MonitorError> {
        self.restart = None;
        self.listener = None;
        if let Ok(container) = self.containers.find(self.id.as_str()) {
            lock(&container)?.apply(Event::GiveUp, durability(&container))?;
        }
        self.conclude_waiting(&Reply::Done);
        Ok(())
    }
}

fn carries(connection: &Connection, key: u32) -> bool {
    matches!(connection.role, Role::Attached(attached, _) if attached == key)
}

/// Locks the record. Others hold it only as long as they write.
pub(super) fn lock(container: &Container) -> Result<Locked, RecordError> {
    container.lock(Duration::from_secs(60))?.ok_or_else(|| RecordError::Busy(container.config.name.clone()))
}

/// What goes with its process need not survive a power cut.
pub(super) fn durability(container: &Container) -> Durability {
    if container.config.auto_remove { Durability::Relaxed } else { Durability::Synced }
}

/// Makes the socket for commands; one that a killed monitor left goes.
fn listen(container: &Container) -> io::Result<UnixListener> {
    // The path of the socket may be longer than an address can hold.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, container.folder(), flags, Mode::empty())?;
    match rustix::fs::unlinkat(&folder, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// How much is read of a stream after its process has ended: what the largest pipe holds.
const DRAIN_LIMIT: usize = 1 << 20;
/// The wait before the first restart; it doubles from there.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A process that ran longer begins anew.
const CALM: Duration = Duration::from_secs(10);
