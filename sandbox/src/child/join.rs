//! The child's side of an exec: from `clone3` into a running container to `execve`.
//!
//! As in its parent module, nothing here allocates, locks or logs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{CpuSet, ThreadNameSpaceType};
use strata_sys::clone::Announcement;
use strata_sys::process;

use super::report::{At, Failure, Step, receive_go};
use super::{
    Never, Walls, attach_stdio, become_program, become_user, confine, console, execute, give_up, identity, put_up,
    rootfs, say_executing, take_limits, take_terminal, tuning,
};
use crate::cgroup::Door;
use crate::landlock::LandlockPlan;
use crate::plan::process::ProcessPlan;
use crate::plan::tuning::Affinity;
use crate::plan::{ConsolePlan, SeccompPlan, StdioPlan};
use crate::spawn::clone_successor;

/// Everything the child does, worked out before it exists.
#[derive(Debug)]
pub(crate) struct JoinPlan {
    /// The child's end of the socket to the parent.
    pub(crate) parent: OwnedFd,
    /// The container's first process.
    pub(crate) init: OwnedFd,
    /// Which of its namespaces are joined; its pid namespace is, by the parent.
    pub(crate) namespaces: ThreadNameSpaceType,
    pub(crate) cgroups: Vec<Door>,
    pub(crate) process: ProcessPlan,
    pub(crate) affinity: Affinity,
    pub(crate) stdio: StdioPlan,
    pub(crate) console: Option<ConsolePlan>,
    pub(crate) landlock: Option<LandlockPlan>,
    pub(crate) seccomp: Option<SeccompPlan>,
    /// Whether the program's process is made last, by one that the container does not see.
    pub(crate) birth: Birth,
    /// Where that process is noted.
    pub(crate) successor: Announcement,
}

/// When the process that the container sees is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// First of all.
    First,
    /// When everything has been given up but the walls, which would forbid it.
    BeforeWalls,
    /// Behind the walls: it has nothing to do but to execute its program.
    BehindWalls,
}

/// Walks through the plan and becomes the program; never returns.
pub(crate) fn run(plan: &JoinPlan) -> ! {
    match follow(plan) {
        Ok(never) => match never {},
        Err(failure) => give_up(plan.parent.as_fd(), failure),
    }
}

fn set_affinity(processors: Option<&CpuSet>) -> Result<(), Failure> {
    let Some(processors) = processors else { return Ok(()) };
    rustix::thread::sched_setaffinity(None, processors).at(Step::Affinity, 0)
}

fn follow(plan: &JoinPlan) -> Result<Never, Failure> {
    let parent = plan.parent.as_fd();
    process::close_on_exec_from(3).at(Step::Descriptors, 0)?;
    receive_go(parent).at(Step::Parent, 2)?;
    // The container sees us in its pid namespace already: it must not get hold of our program through /proc.
    process::set_not_dumpable().at(Step::Parent, 4)?;
    tuning::set_labels(&plan.process.labels)?;
    set_affinity(plan.affinity.initial.as_ref())?;
    rustix::process::umask(Mode::empty());
    let is_born = plan.birth == Birth::First;
    if is_born {
        rustix::process::setsid().at(Step::Session, 0)?;
    }
    if let Some(name) = &plan.process.session_keyring {
        // The caller's keys must not be reachable. No key support, or no quota left, is no reason not to start.
        let _ = process::new_session_keyring(name);
    }
    for (index, door) in plan.cgroups.iter().enumerate() {
        door.enter().at(Step::EnterCgroup, index)?;
    }
    set_affinity(plan.affinity.last.as_ref())?;
    // Root and working directory become the root of the container's mount namespace.
    let of_children = if is_born { ThreadNameSpaceType::empty() } else { ThreadNameSpaceType::PROCESS_ID };
    rustix::thread::move_into_thread_name_spaces(plan.init.as_fd(), plan.namespaces | of_children).at(Step::Join, 0)?;
    if plan.namespaces.contains(ThreadNameSpaceType::USER) {
        identity::become_root().at(Step::RootIds, 0)?;
    }
    let terminal = match plan.console {
        Some(wanted) => {
            let devpts = open_devpts().at(Step::NoDevpts, 0)?;
            Some(console::create(parent, plan.process.uid, wanted, devpts.as_fd(), None)?)
        }
        None => None,
    };
    rootfs::enter_existing_directory(&plan.process.cwd)?;
    attach_stdio(&plan.stdio, &plan.process, terminal.as_ref().map(AsFd::as_fd))?;
    drop(terminal);
    let walls = Walls { landlock: plan.landlock.as_ref(), seccomp: plan.seccomp.as_ref() };
    if !is_born {
        return make_confined(plan, walls);
    }
    take_terminal(&plan.stdio)?;
    // Where the container has a pid namespace, the kernel ends it with the container's first process; the thread that made
    // it is gone by now in any case.
    become_program(parent, &plan.process, walls, false)
}

/// Gives up everything and only then makes the process that the container sees, which becomes the program: whoever may trace
/// in there gets hold of nothing that the program would not have had. The parent gets that process for its own.
fn make_confined(plan: &JoinPlan, walls: Walls<'_>) -> Result<Never, Failure> {
    let parent = plan.parent.as_fd();
    // Whoever takes the new process over has no way to it, and cannot name another one there.
    plan.successor.keep_from_children().at(Step::Join, 1)?;
    let ruleset = match plan.birth {
        Birth::BeforeWalls => {
            let ruleset = take_limits(&plan.process, walls)?;
            become_user(&plan.process)?;
            ruleset
        }
        Birth::BehindWalls | Birth::First => {
            // Who is asked about calls is none of this way's.
            confine(parent, &plan.process, walls, || say_executing(parent, false))?;
            None
        }
    };
    let ruleset = ruleset.as_ref().map(AsFd::as_fd);
    // The parent finds it, whatever becomes of us.
    clone_successor(&plan.successor, &(plan, walls, ruleset), |(plan, walls, ruleset)| {
        match finish(plan, *walls, *ruleset) {
            Ok(never) => match never {},
            Err(failure) => give_up(plan.parent.as_fd(), failure),
        }
    })
    .at(Step::Join, 1)?;
    process::exit_now(0)
}

/// What is left to the process that the container sees.
fn finish(plan: &JoinPlan, walls: Walls<'_>, ruleset: Option<BorrowedFd<'_>>) -> Result<Never, Failure> {
    let parent = plan.parent.as_fd();
    rustix::process::setsid().at(Step::Session, 0)?;
    take_terminal(&plan.stdio)?;
    if plan.birth == Birth::BeforeWalls {
        put_up(parent, walls, ruleset, || say_executing(parent, false))?;
    }
    execute(&plan.process.program)
}

/// Opens the container's devpts, and looks at what was opened: it could have put something else in its place.
fn open_devpts() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let devpts = openat(CWD, c"/dev/pts", flags, Mode::empty())?;
    match rustix::fs::fstatfs(&devpts)?.f_type {
        DEVPTS => Ok(devpts),
        _ => Err(Errno::NODEV),
    }
}

/// `DEVPTS_SUPER_MAGIC`
const DEVPTS: rustix::fs::FsWord = 0x1cd1;
