//! What child and parent say to each other over their socket, in messages of a fixed size.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

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

/// Sends a failure; the parent may be gone, then nobody wants to know.
pub(crate) fn send_failure(socket: BorrowedFd<'_>, failure: Failure) {
    let mut message = [0; SIZE];
    message[0] = FAILED;
    message[4..6].copy_from_slice(&(failure.step as u16).to_ne_bytes());
    message[6..8].copy_from_slice(&failure.index.to_ne_bytes());
    message[8..12].copy_from_slice(&failure.errno.to_ne_bytes());
    let _ = rustix::net::send(socket, &message, SendFlags::NOSIGNAL);
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

/// Says that nothing but the start is left.
pub(crate) fn send_ready(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send_word(socket, READY)
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

/// Waits for the other side's word; `EPIPE` when it died.
pub(crate) fn receive_go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::net::recv(socket, &mut byte, RecvFlags::empty()) {
            Ok((_, 1)) => return Ok(()),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
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
        FAILED => {
            let step = Step::from_number(u16::from_ne_bytes([message[4], message[5]])).ok_or(Errno::PROTO)?;
            let index = u16::from_ne_bytes([message[6], message[7]]);
            let errno = i32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
            Ok(Some(Report::Failed(Failure { step, index, errno })))
        }
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
}
