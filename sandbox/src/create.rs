//! A start in two halves: one process makes the container, another starts its program later.
//!
//! ```text
//! create                                  container's first process            start
//! ──────                                  ─────────────────────────            ─────
//! clone, write the number down   ──go──▶  mounts
//!                       ◀── mounted ────  (only if there are hooks to run)
//! prestart, createRuntime        ──go──▶  createContainer, root, streams
//!                         ◀── ready ────  limits, ids, walls
//! write down that it is created, ──go──▶  waits                     ◀── go ──  told by a client
//! put a word into the pipe                startContainer
//!                                         ── executing, then end of stream ─▶
//!                                         the program
//! ```
//!
//! The pipe for the last go is the truth about the state: whoever can open it for writing alone has a container that is not
//! started, since its only reader is the process that waits. That all is made is said by a word in the pipe for the answers,
//! which stays there until the start. They lie in a folder of the host that the container does not see.
//! If `create` is killed before that, the process ends by itself.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionread};

use crate::child::report::{Report, read_report, send_ready};
use crate::plan::GatePlan;
use crate::plan::hooks::HooksPlan;
use crate::plan::process::ProcessPlan;
use crate::spawn::{Gate, Told, make};
use crate::{HookState, Launch, Running, SpawnError, describe};

/// How a container is made that somebody else will start.
pub struct Creation<'a> {
    /// The folder of the host in which the pipes for the start are made. Nobody but its owner may enter it.
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

/// The pipe at which a created container waits.
pub(crate) const WORD: &str = "start.word";
/// The pipe through which it answers.
pub(crate) const ANSWERS: &str = "start.answers";

/// Makes a container and returns once its first process waits to be started.
///
/// # Errors
/// [`SpawnError`]; nothing of the container is left then, neither process nor cgroup nor mount. The pipes may be.
pub fn create(launch: Launch<'_>, creation: Creation<'_>) -> Result<Running, SpawnError> {
    let hooks = HooksPlan::new(launch.spec, &creation.state)?;
    let pauses_when_mounted = has_runtime_hooks(launch.spec);
    let root_place = if pauses_when_mounted || !hooks.create_container.is_empty() {
        let place = CString::new(creation.root.as_os_str().as_bytes());
        Some(place.map_err(|_| SpawnError::Invalid("NUL in the root path".into()))?)
    } else {
        None
    };
    let pipe = |name| {
        make_pipe(creation.folder, name)
            .map_err(|errno| SpawnError::Parent { what: "make a pipe for the start", source: errno.into() })
    };
    let plan = GatePlan { word: pipe(WORD)?, answers: pipe(ANSWERS)?, pauses_when_mounted, hooks };
    // Writing never waits: there is room for all that is ever said. Nor does the one look that the child takes.
    fcntl_setfl(&plan.answers, OFlags::NONBLOCK)
        .and_then(|()| fcntl_dupfd_cloexec(&plan.answers, 0))
        .map_err(|errno| SpawnError::Parent { what: "make a pipe for the start", source: errno.into() })
        .and_then(|answers| {
            let mut stages = Committing { stages: creation.stages, answers };
            make(launch, Some(Gate { plan, root_place, stages: &mut stages, not_for_child: creation.folder }))
        })
}

/// The caller's stages, and after the last of them a word in the pipe for the answers: from then on the container is made,
/// whatever becomes of us.
struct Committing<'a> {
    stages: &'a mut dyn Stages,
    answers: OwnedFd,
}

impl Stages for Committing<'_> {
    fn cloned(&mut self, pid: u32) -> Result<(), SpawnError> {
        self.stages.cloned(pid)
    }

    fn mounted(&mut self, pid: u32) -> Result<(), SpawnError> {
        self.stages.mounted(pid)
    }

    fn ready(&mut self, pid: u32, console: Option<BorrowedFd<'_>>) -> Result<(), SpawnError> {
        self.stages.ready(pid, console)?;
        send_ready(self.answers.as_fd())
            .map_err(|errno| SpawnError::Parent { what: "let the first process wait", source: errno.into() })
    }
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
    /// The pipes could not be opened; the container still waits.
    #[error("reach the container's first process")]
    Connect(#[source] io::Error),
    /// What came back was no answer. The container may be on its way to its program, or there.
    #[error("talk to the container's first process")]
    Talk(#[source] io::Error),
    /// The process failed on its way to its program, and has ended.
    #[error(transparent)]
    Failed(#[from] SpawnError),
    /// The process ended without a word.
    #[error("the container's first process has ended")]
    Ended,
}

/// Starts the program of a created container; `folder` is that of its [`Creation`], `init` a pidfd of its first process and
/// `pid` its number.
/// Returns once the program has been executed.
///
/// # Errors
/// [`StartError`]. After any but [`NotWaiting`](StartError::NotWaiting) and [`Connect`](StartError::Connect) the program may
/// run, and is the caller's to end.
pub fn start(folder: BorrowedFd<'_>, init: BorrowedFd<'_>, pid: u32, spec: &Spec) -> Result<(), StartError> {
    let unreachable = |errno| match errno {
        Errno::NOENT | Errno::NXIO => StartError::NotWaiting,
        errno => StartError::Connect(errno.into()),
    };
    let talk = |errno: Errno| StartError::Talk(errno.into());
    let answers = open_pipe(folder, ANSWERS, OFlags::RDONLY).map_err(unreachable)?;
    drop(open_pipe(folder, WORD, OFlags::WRONLY).map_err(unreachable)?);
    let before = program_of(pid);
    // If it ends just now, nobody reads the word. That is not to end us, so we could read it ourselves.
    let word = open_pipe(folder, WORD, OFlags::RDWR).map_err(unreachable)?;
    rustix::io::write(&word, &[1]).map_err(talk)?;
    drop(word);
    let mut answers = Answers { pipe: answers, init, pid, before, executing: false };
    let mut hook_output = String::new();
    for _ in 0..MOST_ANSWERS {
        match read_report(&mut answers).map_err(StartError::Talk)? {
            Some(Report::Executing) => answers.executing = true,
            Some(Report::HookText(text)) => hook_output = text,
            Some(Report::Failed(failure)) => {
                // The plan was another process's. What a message needs of it is in the spec.
                let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(talk)?;
                let process = ProcessPlan::new(spec, root.as_fd(), None, &[], true)?;
                let told = Told { rootfs: None, process: &process, cgroups: &[], notify: None };
                return Err(describe::failure(told, failure, hook_output).into());
            }
            Some(_) => {}
            None if answers.executing => return Ok(()),
            None => return Err(StartError::Ended),
        }
    }
    Err(talk(Errno::PROTO))
}

/// What the first process says, to its end. Somebody who may trace it can hold the pipe open when it is gone or runs its program,
/// so its own end is one as well, and that it has become another program.
struct Answers<'a> {
    /// Not blocking.
    pipe: OwnedFd,
    /// The first process.
    init: BorrowedFd<'a>,
    pid: u32,
    /// What it ran when it was told to go on; nothing where that cannot be seen.
    before: Option<(u64, u64)>,
    /// Whether it has said that it executes its program.
    executing: bool,
}

impl Answers<'_> {
    fn has_executed(&self) -> bool {
        self.before.is_some() && program_of(self.pid).is_some_and(|now| Some(now) != self.before)
    }
}

/// Which file a process runs.
fn program_of(pid: u32) -> Option<(u64, u64)> {
    rustix::fs::stat(format!("/proc/{pid}/exe")).ok().map(|found| (found.st_dev, found.st_ino))
}

impl io::Read for Answers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut ended = false;
        loop {
            match rustix::io::read(&self.pipe, &mut *buffer) {
                Err(Errno::AGAIN) if ended => return Ok(0),
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN), PollFd::from_borrowed_fd(self.init, PollFlags::IN)];
            // Looked at now and then alone: nearly always the pipe says it.
            let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            match poll(&mut fds, Some(&patience)) {
                Ok(0) if self.has_executed() => {
                    // Whatever it has said: somebody else may have read it.
                    self.executing = true;
                    ended = true;
                }
                Ok(0) => {}
                // What it said last is read before its end is believed.
                Ok(_) => ended = !fds[1].revents().is_empty(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// How many answers there can be: ready, what a hook wrote, executing, and a failure.
const MOST_ANSWERS: usize = 4;

/// What there is at the gate of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtGate {
    /// A process that waits to be started.
    Waiting,
    /// A process that ends if whoever makes it is killed now: all is not written down yet.
    Coming,
    /// Nobody, or nobody any more.
    Nobody,
}

/// Looks whether a created container still waits to be started.
#[must_use]
pub fn probe_gate(folder: BorrowedFd<'_>) -> AtGate {
    let (Ok(answers), Ok(_)) = (open_pipe(folder, ANSWERS, OFlags::RDONLY), open_pipe(folder, WORD, OFlags::WRONLY))
    else {
        return AtGate::Nobody;
    };
    // What `create` says last stays there until somebody has started it, and reads.
    if ioctl_fionread(&answers).is_ok_and(|unread| unread > 0) { AtGate::Waiting } else { AtGate::Coming }
}

/// Makes a pipe with a name, open for both, so that neither the end of a reader nor of a writer is seen by the other.
fn make_pipe(folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    mknodat(folder, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

/// Opens a pipe without waiting for anybody: `ENXIO` when it is for writing alone and nobody reads.
fn open_pipe(folder: BorrowedFd<'_>, name: &str, access: OFlags) -> Result<OwnedFd, Errno> {
    openat(folder, name, access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
