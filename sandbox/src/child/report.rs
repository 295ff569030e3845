//! What child and parent say to each other over their socket, and child and starter over a pipe, in messages of a fixed size.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// A step of the child's way, for error messages. The index that goes with it counts in the plan's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Step {
    Parent = 1,
    Descriptors,
    RootIds,
    EnterCgroup,
    CgroupNamespace,
    TimeNamespace,
    Session,
    Hostname,
    Domainname,
    PrivateMounts,
    AttachRoot,
    MountTarget,
    MakeMountTarget,
    MountTargetIsNoDirectory,
    NewFilesystem,
    MountOption,
    MountFlags,
    Mount,
    Node,
    DeviceLink,
    DeviceDirectory,
    NoDevpts,
    OpenTerminal,
    BindConsole,
    Sysctl,
    NoProc,
    Mask,
    MaskSource,
    ReadOnly,
    ReadOnlyRoot,
    Propagation,
    PivotRoot,
    LeaveHost,
    WorkingDirectory,
    WorkingDirectoryOutside,
    ControllingTerminal,
    Stdio,
    Loopback,
    Rlimit,
    Personality,
    Scheduler,
    IoPriority,
    MemoryPolicy,
    Affinity,
    Label,
    BoundingSet,
    Groups,
    Gid,
    Uid,
    Capabilities,
    Ambient,
    NoNewPrivileges,
    Landlock,
    Seccomp,
    Join,
    Hook,
    HookEnded,
    HookTimedOut,
    Gate,
    Exec,
    ExecNotFound,
}

impl Step {
    const LAST: u16 = Self::ExecNotFound as u16;

    fn from_number(number: u16) -> Option<Self> {
        const ALL: [Step; Step::LAST as usize] = [
            Step::Parent,
            Step::Descriptors,
            Step::RootIds,
            Step::EnterCgroup,
            Step::CgroupNamespace,
            Step::TimeNamespace,
            Step::Session,
            Step::Hostname,
            Step::Domainname,
            Step::PrivateMounts,
            Step::AttachRoot,
            Step::MountTarget,
            Step::MakeMountTarget,
            Step::MountTargetIsNoDirectory,
            Step::NewFilesystem,
            Step::MountOption,
            Step::MountFlags,
            Step::Mount,
            Step::Node,
            Step::DeviceLink,
            Step::DeviceDirectory,
            Step::NoDevpts,
            Step::OpenTerminal,
            Step::BindConsole,
            Step::Sysctl,
            Step::NoProc,
            Step::Mask,
            Step::MaskSource,
            Step::ReadOnly,
            Step::ReadOnlyRoot,
            Step::Propagation,
            Step::PivotRoot,
            Step::LeaveHost,
            Step::WorkingDirectory,
            Step::WorkingDirectoryOutside,
            Step::ControllingTerminal,
            Step::Stdio,
            Step::Loopback,
            Step::Rlimit,
            Step::Personality,
            Step::Scheduler,
            Step::IoPriority,
            Step::MemoryPolicy,
            Step::Affinity,
            Step::Label,
            Step::BoundingSet,
            Step::Groups,
            Step::Gid,
            Step::Uid,
            Step::Capabilities,
            Step::Ambient,
            Step::NoNewPrivileges,
            Step::Landlock,
            Step::Seccomp,
            Step::Join,
            Step::Hook,
            Step::HookEnded,
            Step::HookTimedOut,
            Step::Gate,
            Step::Exec,
            Step::ExecNotFound,
        ];
        ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// A step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) index: u16,
    pub(crate) errno: i32,
}

/// Adds the step to an errno.
pub(crate) trait At<T> {
    /// Names the step, and which item of its list it was about.
    fn at(self, step: Step, index: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step, index: usize) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(step, index, errno.raw_os_error()))
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, step: Step, index: usize) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, index, error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl Failure {
    pub(crate) fn new(step: Step, index: usize, errno: i32) -> Self {
        Self { step, index: u16::try_from(index).unwrap_or(u16::MAX), errno }
    }
}

/// What the child tells.
#[derive(Debug)]
pub(crate) enum Report {
    /// It failed and is about to exit.
    Failed(Failure),
    /// Here is the terminal's other end.
    Console(OwnedFd),
    /// A process that only came between made the child, which is the receiver's.
    Child {
        /// Its process number.
        pid: u32,
        /// And a descriptor for it.
        pidfd: OwnedFd,
    },
    /// Here is what hooks wrote before one of them failed.
    HookOutput(OwnedFd),
    /// The same as text, in the second half of a start.
    HookText(String),
    /// Everything is mounted, the root not yet switched; it waits for a word.
    Mounted,
    /// It did everything but start; it waits for a word, and then at its gate.
    Ready,
    /// It did everything but the exec. The end of the stream after this is success.
    Executing,
    /// Here is the listener of its filter; it may be waiting for an answer from now on.
    Listener(OwnedFd),
}

const SIZE: usize = 12;

/// Tells of a failure, through a socket or a pipe; who listens may be gone, then nobody wants to know.
pub(crate) fn send_failure(listener: BorrowedFd<'_>, failure: Failure) {
    let mut message = [0; SIZE];
    message[0] = FAILED;
    message[4..6].copy_from_slice(&(failure.step as u16).to_ne_bytes());
    message[6..8].copy_from_slice(&failure.index.to_ne_bytes());
    message[8..12].copy_from_slice(&failure.errno.to_ne_bytes());
    // Not `send`, which a filter is more likely to forbid.
    let _ = rustix::io::write(listener, &message);
}

/// Sends the terminal.
pub(crate) fn send_console(socket: BorrowedFd<'_>, console: BorrowedFd<'_>) -> Result<(), Errno> {
    send_with_fd(socket, CONSOLE, console)
}

/// Sends the listener of the filter that was just loaded: this call must be one that it lets through.
pub(crate) fn send_listener(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> Result<(), Errno> {
    send_with_fd(socket, LISTENER, listener)
}

/// Sends what hooks wrote; the parent may be gone, then nobody wants to know.
pub(crate) fn send_hook_output(socket: BorrowedFd<'_>, output: BorrowedFd<'_>) {
    let _ = send_with_fd(socket, HOOK_OUTPUT, output);
}

/// Writes what hooks wrote into a pipe, up to a length that still is a message.
pub(crate) fn write_hook_text(pipe: BorrowedFd<'_>, output: BorrowedFd<'_>) {
    let mut message = [0; SIZE + HOOK_TEXT_LIMIT];
    let (head, text) = message.split_at_mut(SIZE);
    // What cannot be read or told is not worth another error.
    let Ok(length) = seek(output, SeekFrom::Start(0)).and_then(|_| rustix::io::read(output, text)) else { return };
    head[0] = HOOK_TEXT;
    head[8..12].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_ne_bytes());
    let _ = rustix::io::write(pipe, message.get(..SIZE + length).unwrap_or_default());
}

/// Says through a pipe that nothing but the exec is left.
pub(crate) fn write_executing(pipe: BorrowedFd<'_>) -> Result<(), Errno> {
    write_word(pipe, EXECUTING)
}

fn send_with_fd(socket: BorrowedFd<'_>, kind: u8, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut message = [0; SIZE];
    message[0] = kind;
    send_with(socket, &message, fd)
}

/// Sends the child that was made for the receiver.
pub(crate) fn send_child(socket: BorrowedFd<'_>, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut message = [0; SIZE];
    message[0] = CHILD;
    message[4..8].copy_from_slice(&pid.to_ne_bytes());
    send_with(socket, &message, pidfd)
}

fn send_with(socket: BorrowedFd<'_>, message: &[u8; SIZE], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Says that nothing but the exec is left.
pub(crate) fn send_executing(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send_word(socket, EXECUTING)
}

/// Says that everything is mounted.
pub(crate) fn send_mounted(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send_word(socket, MOUNTED)
}

/// Tells whether a pipe that does not make its reader wait has the word of [`send_ready`], which stays in it.
pub(crate) fn takes_ready_back(pipe: BorrowedFd<'_>) -> bool {
    let mut message = [0; SIZE];
    rustix::io::read(pipe, &mut message) == Ok(SIZE) && rustix::io::write(pipe, &message) == Ok(SIZE)
}

/// Says that nothing but the start is left, through a socket or a pipe.
pub(crate) fn send_ready(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    // Below the filter already: see `send_failure`.
    write_word(listener, READY)
}

fn write_word(listener: BorrowedFd<'_>, word: u8) -> Result<(), Errno> {
    let mut message = [0; SIZE];
    message[0] = word;
    rustix::io::write(listener, &message)?;
    Ok(())
}

fn send_word(socket: BorrowedFd<'_>, word: u8) -> Result<(), Errno> {
    let mut message = [0; SIZE];
    message[0] = word;
    rustix::net::send(socket, &message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Lets the other side go on.
pub(crate) fn send_go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::send(socket, &[1], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for a word from the other side, of a socket or a pipe; `EPIPE` when it died.
pub(crate) fn receive_go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the next report of a process that was told to start; `None` when it executed its program or died.
///
/// Whoever is in the container may have written it: nothing but bytes comes this way, and no more than a message holds.
pub(crate) fn read_report(pipe: &mut impl Read) -> io::Result<Option<Report>> {
    let mut message = [0_u8; SIZE];
    match pipe.read(&mut message)? {
        0 => return Ok(None),
        read => pipe.read_exact(&mut message[read..])?,
    }
    match message[0] {
        FAILED => Ok(Some(Report::Failed(parse_failure(&message)?))),
        READY => Ok(Some(Report::Ready)),
        EXECUTING => Ok(Some(Report::Executing)),
        HOOK_TEXT => {
            let length = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(HOOK_TEXT_LIMIT);
            let mut text = vec![0; length];
            pipe.read_exact(&mut text)?;
            Ok(Some(Report::HookText(String::from_utf8_lossy(&text).into_owned())))
        }
        _ => Err(Errno::PROTO.into()),
    }
}

fn parse_failure(message: &[u8; SIZE]) -> Result<Failure, Errno> {
    let step = Step::from_number(u16::from_ne_bytes([message[4], message[5]])).ok_or(Errno::PROTO)?;
    let index = u16::from_ne_bytes([message[6], message[7]]);
    let errno = i32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
    Ok(Failure { step, index, errno })
}

/// Waits for the child's next report; `None` when it executed its program or died.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    let mut message = [0_u8; SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut message)];
        match recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            // The other side ended with a word of ours unread. The error shows once, before what it had sent.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.bytes != SIZE {
        return Err(Errno::PROTO);
    }
    match message[0] {
        FAILED => Ok(Some(Report::Failed(parse_failure(&message)?))),
        kind @ (CONSOLE | LISTENER | CHILD | HOOK_OUTPUT) => {
            let pid = u32::from_ne_bytes([message[4], message[5], message[6], message[7]]);
            let fd = ancillary.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            let report = |fd| match kind {
                CONSOLE => Report::Console(fd),
                LISTENER => Report::Listener(fd),
                HOOK_OUTPUT => Report::HookOutput(fd),
                _ => Report::Child { pid, pidfd: fd },
            };
            fd.map(|fd| Some(report(fd))).ok_or(Errno::PROTO)
        }
        MOUNTED => Ok(Some(Report::Mounted)),
        READY => Ok(Some(Report::Ready)),
        EXECUTING => Ok(Some(Report::Executing)),
        _ => Err(Errno::PROTO),
    }
}

const FAILED: u8 = 1;
const CONSOLE: u8 = 2;
const EXECUTING: u8 = 3;
const LISTENER: u8 = 4;
const CHILD: u8 = 5;
const HOOK_OUTPUT: u8 = 6;
const MOUNTED: u8 = 7;
const READY: u8 = 8;
const HOOK_TEXT: u8 = 9;

/// So much of what hooks wrote is a message still.
pub(crate) const HOOK_TEXT_LIMIT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn every_step_survives_the_wire() {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for number in 1..=Step::LAST {
            let step = Step::from_number(number).unwrap();
            assert_eq!(step as u16, number);
            let failure = Failure { step, index: 7, errno: libc::EPERM };
            send_failure(one.as_fd(), failure);
            let Some(Report::Failed(received)) = receive(other.as_fd()).unwrap() else { panic!("no failure") };
            assert_eq!(received, failure);
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(Step::LAST + 1), None);
        send_console(one.as_fd(), one.as_fd()).unwrap();
        assert!(matches!(receive(other.as_fd()).unwrap(), Some(Report::Console(_))));
        send_listener(one.as_fd(), one.as_fd()).unwrap();
        assert!(matches!(receive(other.as_fd()).unwrap(), Some(Report::Listener(_))));
        send_hook_output(one.as_fd(), one.as_fd());
        assert!(matches!(receive(other.as_fd()).unwrap(), Some(Report::HookOutput(_))));
        send_mounted(one.as_fd()).unwrap();
        assert!(matches!(receive(other.as_fd()).unwrap(), Some(Report::Mounted)));
        send_ready(one.as_fd()).unwrap();
        assert!(matches!(receive(other.as_fd()).unwrap(), Some(Report::Ready)));
        drop(one);
        assert!(receive(other.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_starter_takes_words_and_text_from_a_pipe_and_nothing_else() {
        let read = |bytes: &[u8]| {
            let mut pipe = bytes;
            let mut reports = Vec::new();
            while let Some(report) = read_report(&mut pipe).map_err(|error| error.to_string())? {
                reports.push(format!("{report:?}"));
            }
            Ok::<_, String>(reports)
        };
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        let output = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&output, b"said").unwrap();
        write_hook_text(theirs.as_fd(), output.as_fd());
        send_failure(theirs.as_fd(), Failure { step: Step::Exec, index: 3, errno: 13 });
        send_ready(theirs.as_fd()).unwrap();
        write_executing(theirs.as_fd()).unwrap();
        drop(theirs);
        let mut sent = Vec::new();
        std::fs::File::from(ours).read_to_end(&mut sent).unwrap();
        let told = ["HookText(\"said\")", "Failed(Failure { step: Exec, index: 3, errno: 13 })", "Ready", "Executing"];
        assert_eq!(read(&sent).unwrap(), told);

        // What a hostile process could write instead.
        for kind in (0..=u8::MAX).filter(|kind| ![FAILED, READY, EXECUTING, HOOK_TEXT].contains(kind)) {
            assert!(read(&[kind; SIZE]).is_err(), "{kind}");
        }
        assert!(read(&[FAILED; SIZE]).is_err(), "a step that does not exist");
        assert!(read(&sent[..sent.len() - 1]).is_err(), "cut off");
        let mut endless = vec![HOOK_TEXT];
        endless.resize(SIZE, 0xff);
        endless.resize(3 * HOOK_TEXT_LIMIT, b'x');
        assert!(read(&endless).is_err(), "no more than a message holds");
    }
}
