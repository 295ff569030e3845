//! Hooks that run in the container's namespaces, as children of its first process.
//!
//! As in its parent module, nothing here allocates, locks or logs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use strata_sys::process;

use super::report::{At, Failure, Step, receive_go, send_hook_output, send_mounted};
use super::{Walls, become_program, execute};
use crate::plan::Plan;
use crate::plan::hooks::{HookPlan, HooksPlan};
use crate::spawn::clone_process;

/// Lets the parent run its hooks, then runs `createContainer`: all is mounted, the host's root is still ours.
pub(super) fn when_mounted(plan: &Plan) -> Result<(), Failure> {
    let Some(gate) = &plan.gate else { return Ok(()) };
    let parent = plan.parent.as_fd();
    if gate.pauses_when_mounted {
        send_mounted(parent).at(Step::Parent, 5)?;
        receive_go(parent).at(Step::Parent, 6)?;
    }
    let hooks = &gate.hooks;
    run_all(Moment { plan, hooks, list: &hooks.create_container, kind: Kind::CreateContainer, listener: parent })
}

/// Runs `startContainer`. These are programs of the container: they get its user and walls, and no more.
pub(super) fn start_container(plan: &Plan, starter: BorrowedFd<'_>) -> Result<(), Failure> {
    let Some(gate) = &plan.gate else { return Ok(()) };
    let hooks = &gate.hooks;
    run_all(Moment { plan, hooks, list: &hooks.start_container, kind: Kind::StartContainer, listener: starter })
}

/// One of the two moments.
#[derive(Clone, Copy)]
struct Moment<'a> {
    plan: &'a Plan,
    hooks: &'a HooksPlan,
    list: &'a [HookPlan],
    kind: Kind,
    /// Who hears of failures.
    listener: BorrowedFd<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    CreateContainer,
    StartContainer,
}

fn run_all(moment: Moment<'_>) -> Result<(), Failure> {
    for (index, hook) in moment.list.iter().enumerate() {
        let number = match moment.kind {
            Kind::CreateContainer => index,
            Kind::StartContainer => index + FIRST_START_CONTAINER,
        };
        if let Err(failure) = run(moment, hook, number) {
            send_hook_output(moment.listener, moment.hooks.output.as_fd());
            return Err(failure);
        }
    }
    Ok(())
}

/// Runs one hook to its end.
fn run(moment: Moment<'_>, hook: &HookPlan, number: usize) -> Result<(), Failure> {
    let state = write_state(moment).at(Step::Hook, number)?;
    let (failed, fails) = pipe_with(PipeFlags::CLOEXEC).at(Step::Hook, number)?;
    let start = Start { moment, hook, state: state.as_fd(), fails: fails.as_fd() };
    let (_, pidfd) = clone_process(0, None, &start, become_hook).at(Step::Hook, number)?;
    drop(fails);
    let mut errno = [0; 4];
    let not_executed = loop {
        match rustix::io::read(&failed, &mut errno) {
            Err(Errno::INTR) => {}
            result => break result.at(Step::Hook, number)? == errno.len(),
        }
    };
    let in_time = wait_until_ended(pidfd.as_fd(), hook).at(Step::Hook, number)?;
    if !in_time {
        // Fails only when it has ended just now.
        let _ = strata_sys::pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) | Ok(None) => {}
            Ok(Some(status)) => break status,
            Err(errno) => return Err(errno).at(Step::Hook, number),
        }
    };
    if not_executed {
        return Err(Failure::new(Step::Hook, number, i32::from_ne_bytes(errno)));
    }
    if !in_time {
        return Err(Failure::new(Step::HookTimedOut, number, libc::ETIMEDOUT));
    }
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Failure::new(Step::HookEnded, number, code)),
        // As a shell shows it.
        (None, signal) => Err(Failure::new(Step::HookEnded, number, 128 + signal.unwrap_or(0))),
    }
}

/// What the hook begins with.
struct Start<'a> {
    moment: Moment<'a>,
    hook: &'a HookPlan,
    state: BorrowedFd<'a>,
    /// Where it says that it could not be executed.
    fails: BorrowedFd<'a>,
}

fn become_hook(start: &Start<'_>) -> ! {
    let Start { moment, hook, state, fails } = start;
    // It must not outlive us; where that cannot be had, the pid namespace sees to it.
    let _ = process::set_parent_death_signal(libc::SIGKILL);
    let output = moment.hooks.output.as_fd();
    let streams = [(*state, 0), (output, 1), (output, 2)];
    let placed = streams
        .into_iter()
        .enumerate()
        .try_for_each(|(index, (fd, number))| process::place_fd(fd, number).at(Step::Stdio, index));
    let became = placed.and_then(|()| match moment.kind {
        Kind::CreateContainer => {
            process::reset_signals();
            // What it makes is on the host, where ours was of no concern so far.
            rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o022));
            execute(&hook.program)
        }
        Kind::StartContainer => {
            let plan = moment.plan;
            become_program(None, &plan.process, &hook.program, Walls::of(plan), false)
        }
    });
    match became {
        Ok(never) => match never {},
        Err(failure) => {
            // Without this word, the exit code alone has to tell.
            let _ = rustix::io::write(fails, &failure.errno.to_ne_bytes());
            process::exit_now(126)
        }
    }
}

/// Makes a file with the state, from its start.
fn write_state(moment: Moment<'_>) -> Result<OwnedFd, Errno> {
    let (before, after) = match moment.kind {
        Kind::CreateContainer => &moment.hooks.creating,
        Kind::StartContainer => &moment.hooks.created,
    };
    let file = memfd_create(c"state", MemfdFlags::CLOEXEC)?;
    write_all(file.as_fd(), before)?;
    let mut digits = [0; 10];
    write_all(file.as_fd(), decimal(rustix::process::getpid().as_raw_pid().unsigned_abs(), &mut digits))?;
    write_all(file.as_fd(), after)?;
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes a number as text into a buffer of the stack.
fn decimal(number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut rest = number;
    let mut start = digits.len();
    for (position, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        start = position;
        if rest == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// Waits for the end of the hook; `false` when its time is over first.
fn wait_until_ended(pidfd: BorrowedFd<'_>, hook: &HookPlan) -> Result<bool, Errno> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut fds, hook.timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            // No signal that would interrupt this is expected, so starting over with the whole time is good enough.
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// `startContainer` hooks count from here in reports.
pub(crate) const FIRST_START_CONTAINER: usize = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 1, 9, 10, 4321, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
