//! Adding a process to a running container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use strata_sys::clone::{Announcement, CLONE_FOR_PARENT};
use strata_sys::pidfd::wait_for_end;

use crate::cgroup::CgroupName;
use crate::child::join::{self, Birth, JoinPlan};
use crate::landlock::LandlockPlan;
use crate::notify::Destination;
use crate::plan::mounts::console_size;
use crate::plan::process::ProcessPlan;
use crate::plan::tuning::Affinity;
use crate::plan::{ConsolePlan, SeccompPlan, StdioPlan};
use crate::spawn::{Starting, Told, clone_process, compile_filter, profile_of};
use crate::{Identity, Inherited, Landlock, Listener, Running, Seccomp, SpawnError, Stdio, userns};

/// A process to add.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The spec of the container, with the `process` that is to run. Its namespaces say which ones are joined.
    pub spec: &'a Spec,
    /// The container's first process.
    pub init: &'a Running,
    /// As in [`Launch`](crate::Launch).
    pub user: Option<&'a str>,
    /// As in [`Launch`](crate::Launch).
    pub groups: &'a [String],
    /// Where the process reads and writes.
    pub stdio: Stdio,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// Whether landlock is put up as a second wall.
    pub landlock: Landlock,
    /// As in [`Launch`](crate::Launch).
    pub listener: Listener<'a>,
    /// As in [`Launch`](crate::Launch).
    pub identity: Identity<'a>,
    /// As in [`Launch`](crate::Launch).
    pub inherited: Inherited,
    /// A cgroup that the container has made below its own; the process goes there where it exists.
    pub cgroup: Option<CgroupName>,
}

/// Starts a process in a running container and returns once its program has been executed.
///
/// It ends with the container's first process at the latest, whoever started it. It gets the container's namespaces, cgroups and walls, and the capabilities and limits of the spec. The cgroup stays
/// the container's: waiting for the process does not remove it.
///
/// # Errors
/// [`SpawnError`]; nothing of the process is left then.
pub fn exec(exec: Exec<'_>) -> Result<Running, SpawnError> {
    let spec = exec.spec;
    strata_sys::process::keep_exit_codes_of_children();
    let pid = exec.init.pid();
    let failed = |what, source: io::Error| SpawnError::Parent { what, source };
    // Through the process, whatever it did to its root; openat2 keeps what is looked up there inside.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty())
        .map_err(|errno| failed("open the root of the container", errno.into()))?;
    let init = exec.init.pidfd().try_clone_to_owned().map_err(|error| failed("hold the container", error))?;
    if has_ended(init.as_fd()) {
        return Err(failed("join the container", io::Error::from_raw_os_error(libc::ESRCH)));
    }
    let mut warnings = Vec::new();
    let may_set_groups = userns::may_set_groups();
    let mut process = ProcessPlan::new(spec, root.as_fd(), exec.user, exec.groups, may_set_groups)?;
    process.inherit(exec.inherited);
    if !may_set_groups && process.has_groups() {
        warnings.push("supplementary groups are left out: this user namespace forbids setgroups".to_owned());
    }
    let seccomp = compile_filter(spec, &exec.seccomp, process.capabilities.bounding)?;
    let notify = match seccomp.as_ref().is_some_and(SeccompPlan::notifies) {
        true => Some(Destination::new(spec, exec.listener, exec.identity, Some(pid))?),
        false => None,
    };
    let landlock = LandlockPlan::of(&exec.landlock, spec, process.capabilities.bounding, seccomp.as_ref())?;
    let (parent_end, child_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failed("make a socket pair", errno.into()))?;
    let (stdio, console) = match exec.stdio {
        Stdio::Inherit => (StdioPlan::Inherit, None),
        Stdio::Fds { stdin, stdout, stderr } => (StdioPlan::Fds([stdin, stdout, stderr]), None),
        Stdio::Terminal { size } => {
            let size = size.or_else(|| console_size(spec));
            (StdioPlan::Terminal, Some(ConsolePlan { size }))
        }
    };
    let (namespaces, joins_pids) = namespaces(spec);
    // In a user namespace of its own nobody may trace who is from outside of it.
    let may_be_traced = joins_pids && !namespaces.contains(ThreadNameSpaceType::USER);
    let birth = match may_be_traced {
        true => birth(spec, &exec.seccomp, &process, seccomp.as_ref(), console.is_some())?,
        false => Birth::First,
    };
    let plan = JoinPlan {
        parent: child_end,
        init,
        namespaces,
        cgroups: match (exec.init.cgroup(), &exec.cgroup) {
            (None, _) => Vec::new(),
            (Some(group), None) => group.doors_beside(pid)?,
            (Some(group), Some(below)) => group.doors_at(below)?,
        },
        affinity: Affinity::new(spec)?,
        process,
        stdio,
        console,
        landlock,
        seccomp,
        birth,
        successor: Announcement::new().map_err(|error| failed("share memory with the process", error))?,
    };
    let begin = Begin { plan: &plan, other_end: parent_end.as_fd() };
    let (pid, pidfd) =
        clone_child(&begin, joins_pids && birth == Birth::First).map_err(|source| SpawnError::Clone { source })?;
    let JoinPlan { parent, process, cgroups, successor, .. } = plan;
    // The child has its own copy; ours would hide its death from us.
    drop(parent);
    let mut starting = Starting { pid, pidfd: Some(pidfd), socket: parent_end, successor: Some(successor) };
    let told = Told { rootfs: None, process: &process, cgroups: &cgroups, notify: notify.as_ref() };
    let released = starting.score_and_release(&process);
    let console = starting.after_help(told, released, None)?;
    Ok(Running {
        pid: starting.pid,
        pidfd: starting.started(),
        console,
        cgroup: None,
        warnings,
        ended: OnceLock::new(),
        reaping: Mutex::new(()),
    })
}

/// What the child begins with.
struct Begin<'a> {
    plan: &'a JoinPlan,
    /// The parent's end of the socket.
    other_end: BorrowedFd<'a>,
}

/// Makes the child, in the container's pid namespace if it has one of its own.
fn clone_child(begin: &Begin<'_>, joins_pids: bool) -> io::Result<(u32, std::os::fd::OwnedFd)> {
    let clone = || {
        clone_process(0, None, begin, |begin| {
            // Our own copy of the other end would keep us waiting for ever if the parent died.
            strata_sys::process::close_fd(begin.other_end);
            join::run(begin.plan)
        })
    };
    if !joins_pids {
        return clone();
    }
    // This says where children of a thread are born, and only a thread that ends is sure to lose it again: back to a pid
    // namespace of the host a plain user may not go.
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| {
            move_into_thread_name_spaces(begin.plan.init.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
            clone()
        });
        joined.join().unwrap_or_else(|_| Err(io::Error::other("the cloning thread panicked")))
    })
}

/// The namespaces that the container has of its own, and whether the pid namespace is one of them.
fn namespaces(spec: &Spec) -> (ThreadNameSpaceType, bool) {
    let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut joined = ThreadNameSpaceType::empty();
    let mut pids = false;
    for namespace in listed.into_iter().flatten() {
        match namespace.typ() {
            LinuxNamespaceType::Pid => pids = true,
            kind => joined |= ThreadNameSpaceType::from_bits_retain(u32::try_from(kind as u64).unwrap_or(0)),
        }
    }
    (joined, pids)
}

/// Chooses when the process is made that the container sees. Who may trace in there cannot be known: others may have joined its
/// pid namespace. So it is as late as can be.
///
/// Behind the walls, the filter has to let through what making it takes. A filter that asks somebody would ask about the wrong
/// process, and some schedulers let nobody make one.
fn birth(
    spec: &Spec,
    wanted: &Seccomp,
    process: &ProcessPlan,
    seccomp: Option<&SeccompPlan>,
    terminal: bool,
) -> Result<Birth, SpawnError> {
    if process.tuning.scheduling.is_some() || seccomp.is_some_and(SeccompPlan::notifies) {
        return Ok(Birth::First);
    }
    let Some(profile) = profile_of(spec, wanted)? else { return Ok(Birth::BehindWalls) };
    let bounding = process.capabilities.bounding;
    let mut calls = ["setsid", "exit_group", "write"].into_iter().chain(terminal.then_some("ioctl"));
    let lets_through =
        profile.allows_clone(CLONE_FOR_PARENT, bounding) && calls.all(|name| profile.always_allows(name, bounding));
    Ok(match (lets_through, process.no_new_privileges) {
        (true, _) => Birth::BehindWalls,
        (false, true) => Birth::BeforeWalls,
        // The filter needs privileges, and with it none could be made.
        (false, false) => Birth::First,
    })
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    wait_for_end(pidfd, Duration::ZERO).unwrap_or(false)
}
