//! The child's side, from `clone3` to `execve`.
//!
//! Nothing here allocates, locks or logs: everything it needs is in the [`Plan`], and every call is a system call by
//! rustix's raw backend or `strata_sys`, given C strings. A failure travels to the parent as a step and an errno.

mod console;
mod gate;
pub(crate) mod hooks;
mod identity;
pub(crate) mod join;
pub(crate) mod report;
mod rootfs;
mod tuning;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use strata_sys::clone::unshare;
use strata_sys::process;

use crate::landlock::{self, LandlockPlan};
use crate::plan::process::{ProcessPlan, ProgramPlan};
use crate::plan::{Plan, SeccompPlan, StdioPlan};
pub(crate) use identity::become_root;
use report::{At, Failure, Step, receive_go, send_executing, send_failure, send_listener};

/// Walks through the plan and becomes the program; never returns.
pub(crate) fn run(plan: &Plan) -> ! {
    let parent = plan.parent.as_fd();
    if let Err(failure) = prepare(plan) {
        give_up(parent, failure)
    }
    let Some(gate) = &plan.gate else {
        let walls = Walls::of(plan);
        match become_program(parent, &plan.process, walls, plan.dies_with_parent) {
            Ok(never) => match never {},
            Err(failure) => give_up(parent, failure),
        }
    };
    let hooks = match gate::wait(plan, gate) {
        Ok(hooks) => hooks,
        Err(failure) => give_up(parent, failure),
    };
    // From here whoever starts us is told.
    match gate::pass(plan, gate, hooks) {
        Ok(never) => match never {},
        Err(failure) => give_up(gate.answers.as_fd(), failure),
    }
}

fn give_up(parent: BorrowedFd<'_>, failure: Failure) -> ! {
    send_failure(parent, failure);
    // Only seen when the report did not get through, as below a filter that forbids sending.
    process::exit_now(match failure.step {
        Step::ExecNotFound => 127,
        Step::Exec => 126,
        _ => 125,
    })
}

enum Never {}

/// Makes everything that the program will find, up to its standard streams.
fn prepare(plan: &Plan) -> Result<(), Failure> {
    let parent = plan.parent.as_fd();
    process::close_on_exec_from(3).at(Step::Descriptors, 0)?;
    tuning::set_labels(&plan.process.labels)?;
    if plan.namespaces.has_new(LinuxNamespaceType::User) {
        // The parent writes the maps; before that no id here means anything.
        receive_go(parent).at(Step::Parent, 0)?;
        identity::become_root().at(Step::RootIds, 0)?;
    }
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().at(Step::Session, 0)?;
    if let Some(name) = &plan.process.session_keyring {
        // The caller's keys must not be reachable. No key support, or no quota left, is no reason not to start.
        let _ = process::new_session_keyring(name);
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).at(Step::Hostname, 0)?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).at(Step::Domainname, 0)?;
    }
    if plan.namespaces.has_new(LinuxNamespaceType::Time) {
        enter_time_namespace(plan)?;
    }

    let terminal = rootfs::build(plan)?;
    rootfs::enter_working_directory(&plan.process.cwd)?;
    attach_stdio(&plan.stdio, &plan.process, terminal.as_ref().map(AsFd::as_fd))?;
    drop(terminal);
    take_terminal(&plan.stdio)?;
    if plan.namespaces.has_new(LinuxNamespaceType::Network) {
        // Any socket will do; a kernel without this kind has nothing to switch on either.
        if let Ok(socket) = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)
        {
            strata_sys::network::loopback_up(socket.as_fd()).at(Step::Loopback, 0)?;
        }
    }
    Ok(())
}

/// What is put up around the process before it executes its program.
#[derive(Clone, Copy)]
struct Walls<'a> {
    landlock: Option<&'a LandlockPlan>,
    seccomp: Option<&'a SeccompPlan>,
}

impl<'a> Walls<'a> {
    fn of(plan: &'a Plan) -> Self {
        Self { landlock: plan.landlock.as_ref(), seccomp: plan.seccomp.as_ref() }
    }
}

/// Takes on limits, ids and walls, in the container's root, and executes the program. The parent is told when nothing but
/// filter, ids and the exec is left.
fn become_program(
    parent: BorrowedFd<'_>,
    process_plan: &ProcessPlan,
    walls: Walls<'_>,
    dies_with_parent: bool,
) -> Result<Never, Failure> {
    let questions = confine(parent, process_plan, walls, || say_executing(parent, dies_with_parent))?;
    // Left to the exec: a call more could be one that somebody is asked about.
    std::mem::forget(questions);
    if dies_with_parent {
        // Only now: every change of ids switches it off. A filter may forbid it, and that is not worth a failed start.
        let _ = process::set_parent_death_signal(libc::SIGKILL);
        if is_gone(parent) {
            process::exit_now(125);
        }
    }
    execute(&process_plan.program)
}

fn say_executing(parent: BorrowedFd<'_>, dies_with_parent: bool) -> Result<(), Failure> {
    match send_executing(parent) {
        // Who has told us to go on is gone. That is no reason not to, unless we are to end with them.
        Err(rustix::io::Errno::PIPE) if !dies_with_parent => Ok(()),
        result => result.at(Step::Parent, 1),
    }
}

/// Takes on limits, ids and walls: from here the process is no more than its program will be. Returns the listener of its
/// filter, which the parent has been sent. `before_filter` is called when the filter is all that may be in the way.
fn confine(
    parent: BorrowedFd<'_>,
    process_plan: &ProcessPlan,
    walls: Walls<'_>,
    before_filter: impl Fn() -> Result<(), Failure>,
) -> Result<Option<OwnedFd>, Failure> {
    let ruleset = take_limits(process_plan, walls)?;
    let ruleset = ruleset.as_ref().map(AsFd::as_fd);
    // Without no_new_privs, filters need CAP_SYS_ADMIN, which goes with the ids. With it they come last, and tighter.
    if process_plan.no_new_privileges {
        become_user(process_plan)?;
        put_up(parent, walls, ruleset, before_filter)
    } else {
        let questions = put_up(parent, walls, ruleset, before_filter)?;
        become_user(process_plan)?;
        Ok(questions)
    }
}

/// Takes on what needs privileges: limits, schedulers, the bounding set. Returns the rules of landlock, not yet in force.
fn take_limits(process_plan: &ProcessPlan, walls: Walls<'_>) -> Result<Option<OwnedFd>, Failure> {
    for (index, (resource, limit)) in process_plan.rlimits.iter().enumerate() {
        rustix::process::setrlimit(*resource, *limit).at(Step::Rlimit, index)?;
    }
    tuning::apply(&process_plan.tuning)?;
    if let Some(persona) = process_plan.personality {
        process::personality(persona).at(Step::Personality, 0)?;
    }
    rustix::process::umask(Mode::from_bits_truncate(process_plan.umask));
    let ruleset = walls.landlock.map(landlock::prepare).transpose().at(Step::Landlock, 0)?.flatten();
    process::reset_signals();
    process::keep_on_exec(process_plan.preserved.clone());
    identity::limit_bounding_set(&process_plan.capabilities)?;
    Ok(ruleset)
}

/// Puts up landlock and the filter. Returns the listener of the filter, which the parent has been sent.
fn put_up(
    parent: BorrowedFd<'_>,
    walls: Walls<'_>,
    ruleset: Option<BorrowedFd<'_>>,
    before_filter: impl Fn() -> Result<(), Failure>,
) -> Result<Option<OwnedFd>, Failure> {
    if let Some(ruleset) = ruleset {
        landlock::enforce(ruleset).at(Step::Landlock, 1)?;
    }
    before_filter()?;
    let Some(seccomp) = walls.seccomp else { return Ok(None) };
    let questions = strata_sys::seccomp::load(&seccomp.filter, seccomp.flags).at(Step::Seccomp, 0)?;
    if let Some(questions) = &questions {
        send_listener(parent, questions.as_fd()).at(Step::Seccomp, 1)?;
    }
    Ok(questions)
}

/// Takes on the ids and capabilities, for good where the spec says so.
fn become_user(process_plan: &ProcessPlan) -> Result<(), Failure> {
    identity::change(process_plan)?;
    // That can have made us visible again, with `fs.suid_dumpable`.
    process::set_not_dumpable().at(Step::Parent, 4)?;
    if process_plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivileges, 0)?;
    }
    Ok(())
}

/// Tells whether the parent has ended: it keeps its end of the socket until the program runs.
fn is_gone(parent: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(parent, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Tries the candidates in order. What exists and is refused stops a search only at its end, as in Go's `LookPath`.
fn execute(program: &ProgramPlan) -> Result<Never, Failure> {
    for (index, candidate) in program.candidates.iter().enumerate() {
        let error = strata_sys::process::execve(candidate, &program.arguments, &program.environment);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let exists = || rustix::fs::stat(candidate.as_c_str());
        match errno {
            libc::ENOENT | libc::ENOTDIR if exists().is_err() => {
                if !program.searched {
                    return Err(Failure::new(Step::ExecNotFound, index, errno));
                }
            }
            libc::EACCES if program.searched => {}
            libc::EACCES => {
                let is_directory = exists().is_ok_and(|found| {
                    rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory
                });
                let errno = if is_directory { libc::EISDIR } else { errno };
                return Err(Failure::new(Step::Exec, index, errno));
            }
            // It exists, so a missing file is its interpreter.
            _ => return Err(Failure::new(Step::Exec, index, errno)),
        }
    }
    Err(Failure::new(Step::ExecNotFound, 0, libc::ENOENT))
}

/// Makes the namespace, sets its clocks, and enters it. An exec does that only since Linux 6.3.
fn enter_time_namespace(plan: &Plan) -> Result<(), Failure> {
    unshare(LinuxNamespaceType::Time as u64).at(Step::TimeNamespace, 0)?;
    if let Some(offsets) = &plan.time_offsets {
        let file = rustix::fs::open(c"/proc/self/timens_offsets", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .at(Step::TimeNamespace, 1)?;
        rustix::io::write(&file, offsets.as_bytes()).at(Step::TimeNamespace, 2)?;
    }
    // Until here it is that of children yet to be born.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace =
        rustix::fs::open(c"/proc/self/ns/time_for_children", flags, Mode::empty()).at(Step::TimeNamespace, 3)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time)).at(Step::TimeNamespace, 4)
}

/// Moves into the cgroups, once the parent has done what it has to, and makes them the root of what we see.
pub(super) fn enter_cgroup(plan: &Plan) -> Result<(), Failure> {
    receive_go(plan.parent.as_fd()).at(Step::Parent, 2)?;
    // From here the parent needs nothing below our /proc entry, and soon we are no stranger to a container whose pid
    // namespace we joined: it must not get hold of our program through it.
    process::set_not_dumpable().at(Step::Parent, 4)?;
    for (index, door) in plan.cgroups.iter().enumerate() {
        door.enter().at(Step::EnterCgroup, index)?;
    }
    if plan.namespaces.has_new(LinuxNamespaceType::Cgroup) {
        unshare(LinuxNamespaceType::Cgroup as u64).at(Step::CgroupNamespace, 0)?;
    }
    Ok(())
}

fn attach_stdio(
    stdio: &StdioPlan,
    process_plan: &ProcessPlan,
    terminal: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    match stdio {
        StdioPlan::Inherit => {
            for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
                give_pipe(fd, process_plan);
            }
        }
        StdioPlan::Fds(fds) => {
            for (number, fd) in (0..).zip(fds) {
                let position = usize::try_from(number).unwrap_or(0);
                give_pipe(fd.as_fd(), process_plan);
                process::place_fd(fd.as_fd(), number).at(Step::Stdio, position)?;
            }
        }
        StdioPlan::Terminal => {
            let terminal = terminal.ok_or(Failure::new(Step::NoDevpts, 0, libc::ENODEV))?;
            for number in 0..3 {
                process::place_fd(terminal, number).at(Step::Stdio, 0)?;
            }
        }
    }
    Ok(())
}

/// Makes the terminal that of the session, which the calling process leads.
fn take_terminal(stdio: &StdioPlan) -> Result<(), Failure> {
    match stdio {
        StdioPlan::Terminal => {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).at(Step::ControllingTerminal, 0)
        }
        StdioPlan::Inherit | StdioPlan::Fds(_) => Ok(()),
    }
}

/// Lets the user of the container open `/dev/stdout` and its kin again. Files of the host keep their owner.
fn give_pipe(fd: BorrowedFd<'_>, process_plan: &ProcessPlan) {
    let is_pipe = rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
    if is_pipe {
        // A pipe of somebody else stays theirs; writing to the descriptor works either way.
        let _ = rustix::fs::fchown(fd, Some(process_plan.uid), None);
    }
}

/// The terminal's end for the container, kept open until it is the standard streams.
type Terminal = Option<OwnedFd>;
