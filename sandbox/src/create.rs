//! A start in two halves: one process makes the container, another starts its program later.
//!
//! ```text
//! create                                  container's first process            start
//! ──────                                  ─────────────────────────            ─────
//! clone, write the number down   ──go──▶  mounts
//!                       ◀── mounted ────  (only if there are hooks to run)
//! prestart, createRuntime        ──go──▶  createContainer, root, streams
//!                         ◀── ready ────
//! write down that it is created  ──go──▶  closes all but the listening socket
//!                                         waits            ◀── connect, go ──  told by a client
//!                                         startContainer, walls, ids
//!                                         ── executing, then end of stream ─▶
//!                                         the program
//! ```
//!
//! The listening socket is the truth about the state: whoever can connect has a container that is not started. It lies in
//! a folder of the host that the container does not see. If `create` is killed before it has written down that the
//! container is there, the process ends by itself.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::child::report::{Report, receive, send_go};
use crate::notify::Destination;
use crate::plan::GatePlan;
use crate::plan::hooks::HooksPlan;
use crate::plan::process::ProcessPlan;
use crate::spawn::{Gate, Told, make};
use crate::{HookState, Identity, Launch, Listener, Running, SpawnError, describe};

/// How a container is made that somebody else will start.
pub struct Creation<'a> {
    /// The folder of the host in which the socket for the start is made, `start.sock`. Nobody but its owner may enter it.
    /// A lock that stands for this descriptor is the caller's alone: the new process closes it at once.
    pub folder: BorrowedFd<'a>,
    /// What hooks in the container read.
    pub state: HookState,
    /// Where the root filesystem is on the host. With hooks, it is attached there while they run.
    pub root: &'a Path,
    /// What is done along the way.
    pub stages: &'a mut dyn Stages,
}

impl fmt::Debug for Creation<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Creation").field("state", &self.state).field("root", &self.root).finish_non_exhaustive()
    }
}

/// What the caller does while a container is made. An error ends the container.
pub trait Stages {
    /// The first process exists, under this number, and has not done anything.
    ///
    /// # Errors
    /// Whatever stands against going on.
    fn cloned(&mut self, pid: u32) -> Result<(), SpawnError>;

    /// All is mounted, and the root not yet switched: the moment of `prestart` and `createRuntime` hooks. Only called
    /// when the spec has such hooks.
    ///
    /// # Errors
    /// Whatever stands against going on.
    fn mounted(&mut self, pid: u32) -> Result<(), SpawnError>;

    /// The container is made, with a terminal if it asked for one. Once this has returned, the process waits to be
    /// started, whatever becomes of the caller.
    ///
    /// # Errors
    /// Whatever stands against going on.
    fn ready(&mut self, pid: u32, console: Option<BorrowedFd<'_>>) -> Result<(), SpawnError>;
}

/// The name of the socket on which a created container waits.
pub(crate) const GATE: &str = "start.sock";

/// Makes a container and returns once its first process waits to be started.
///
/// # Errors
/// [`SpawnError`]; nothing of the container is left then, neither process nor cgroup nor mount. The socket may be.
pub fn create(launch: Launch<'_>, creation: Creation<'_>) -> Result<Running, SpawnError> {
    let hooks = HooksPlan::new(launch.spec, &creation.state)?;
    let pauses_when_mounted = has_runtime_hooks(launch.spec);
    let root_place = if pauses_when_mounted || !hooks.create_container.is_empty() {
        let place = CString::new(creation.root.as_os_str().as_bytes());
        Some(place.map_err(|_| SpawnError::Invalid("NUL in the root path".into()))?)
    } else {
        None
    };
    let listener = open_gate(creation.folder)
        .map_err(|source| SpawnError::Parent { what: "make the socket for the start", source })?;
    let plan = GatePlan { listener, pauses_when_mounted, hooks };
    make(launch, Some(Gate { plan, root_place, stages: creation.stages, not_for_child: creation.folder }))
}

fn has_runtime_hooks(spec: &Spec) -> bool {
    let some = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    spec.hooks().as_ref().is_some_and(|hooks| some(hooks.prestart()) || some(hooks.create_runtime()))
}

/// Why a created container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It does not wait any more: somebody has started it, or it has ended.
    #[error("the container does not wait to be started")]
    NotWaiting,
    /// The socket could not be connected to; the container still waits.
    #[error("connect to the container's first process")]
    Connect(#[source] io::Error),
    /// The connection broke. The container may be on its way to its program, or there.
    #[error("talk to the container's first process")]
    Talk(#[source] io::Error),
    /// The process failed on its way to its program, and has ended.
    #[error(transparent)]
    Failed(#[from] SpawnError),
    /// The process ended without a word.
    #[error("the container's first process has ended")]
    Ended,
}

/// Starts the program of a created container; `folder` is that of its [`Creation`]. Returns once it has been executed.
///
/// # Errors
/// [`StartError`]. After any but [`NotWaiting`](StartError::NotWaiting) and [`Connect`](StartError::Connect) the program may
/// run, and is the caller's to end.
pub fn start(folder: BorrowedFd<'_>, spec: &Spec, identity: Identity<'_>, pid: u32) -> Result<(), StartError> {
    let socket = connect_gate(folder, SocketFlags::empty()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => StartError::NotWaiting,
        _ => StartError::Connect(error),
    })?;
    send_go(socket.as_fd()).map_err(|errno| StartError::Talk(errno.into()))?;
    let mut executing = false;
    let mut hook_output = None;
    loop {
        match receive(socket.as_fd()).map_err(|errno| StartError::Talk(errno.into()))? {
            Some(Report::Executing) => executing = true,
            Some(Report::HookOutput(fd)) => hook_output = Some(fd),
            Some(Report::Listener(listener)) => {
                Destination::new(spec, Listener::Agent, identity, None)?.deliver(listener, pid)?;
            }
            Some(Report::Failed(failure)) => {
                // The plan was another process's. What a message needs of it is in the spec.
                let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| StartError::Talk(errno.into()))?;
                let process = ProcessPlan::new(spec, root.as_fd(), None, &[], true)?;
                let told = Told { rootfs: None, process: &process, cgroups: &[], notify: None };
                return Err(describe::failure(told, failure, hook_output).into());
            }
            Some(Report::Console(_) | Report::Mounted | Report::Ready | Report::Child { .. }) => {}
            None if executing => return Ok(()),
            None => return Err(StartError::Ended),
        }
    }
}

/// Tells whether a created container still waits to be started.
#[must_use]
pub fn probe_gate(folder: BorrowedFd<'_>) -> bool {
    // A queue that is full is one at which somebody listens, and nothing to wait for.
    matches!(
        connect_gate(folder, SocketFlags::NONBLOCK).map_err(|error| error.kind()),
        Ok(_) | Err(io::ErrorKind::WouldBlock)
    )
}

fn open_gate(folder: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &gate_address(folder)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn connect_gate(folder: BorrowedFd<'_>, flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None)?;
    connect(&socket, &gate_address(folder)?)?;
    Ok(socket)
}

/// By the folder's descriptor: the path itself may be longer than an address can be.
fn gate_address(folder: BorrowedFd<'_>) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{GATE}", folder.as_raw_fd()))?)
}

const BACKLOG: i32 = 128;
