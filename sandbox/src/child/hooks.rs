//! Hooks that run in the container's namespaces, as children of its first process.
//!
//! As in its parent module, nothing here allocates, locks or logs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use strata_sys::process;

use super::execute;
use super::report::{At, Failure, Step, receive_go, send_hook_output, send_mounted, write_hook_text};
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
    let Some(state) = write_state(&hooks.create_container, &hooks.creating)? else { return Ok(()) };
    let start = Start { state: state.as_fd(), output: hooks.output.as_fd(), kind: Kind::CreateContainer };
    run_all(&hooks.create_container, start).inspect_err(|_| send_hook_output(parent, hooks.output.as_fd()))
}

/// The hooks of `startContainer`, with what they need that the container's walls may forbid.
#[derive(Debug)]
pub(super) struct StartHooks<'a> {
    hooks: &'a HooksPlan,
    state: Option<OwnedFd>,
}

impl<'a> StartHooks<'a> {
    pub(super) fn prepare(hooks: &'a HooksPlan) -> Result<Self, Failure> {
        Ok(Self { hooks, state: write_state(&hooks.start_container, &hooks.created)? })
    }

    /// What they read, if there are any.
    pub(super) fn state(&self) -> Option<BorrowedFd<'_>> {
        self.state.as_ref().map(AsFd::as_fd)
    }

    /// Runs them. These are programs of the container: they have its user and walls, and no more. If one fails, `answers` is
    /// told what it wrote. `has_preserved` says whether descriptors are open that are for the program alone.
    pub(super) fn run(&self, answers: BorrowedFd<'_>, has_preserved: bool) -> Result<(), Failure> {
        let Some(state) = self.state() else { return Ok(()) };
        let kind = Kind::StartContainer { has_preserved };
        let start = Start { state, output: self.hooks.output.as_fd(), kind };
        run_all(&self.hooks.start_container, start).inspect_err(|_| write_hook_text(answers, self.hooks.output.as_fd()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    CreateContainer,
    StartContainer { has_preserved: bool },
}

/// What a hook begins with.
#[derive(Clone, Copy)]
struct Start<'a> {
    state: BorrowedFd<'a>,
    output: BorrowedFd<'a>,
    kind: Kind,
}

fn run_all(hooks: &[HookPlan], start: Start<'_>) -> Result<(), Failure> {
    let first = match start.kind {
        Kind::CreateContainer => 0,
        Kind::StartContainer { .. } => FIRST_START_CONTAINER,
    };
    hooks.iter().enumerate().try_for_each(|(index, hook)| run(hook, start, first + index))
}

/// Runs one hook to its end.
fn run(hook: &HookPlan, start: Start<'_>, number: usize) -> Result<(), Failure> {
    // The one before has read it.
    seek(start.state, SeekFrom::Start(0)).at(Step::Hook, number)?;
    let (failed, fails) = pipe_with(PipeFlags::CLOEXEC).at(Step::Hook, number)?;
    let (_, pidfd) = clone_process(0, None, &(hook, start, fails.as_fd()), become_hook).at(Step::Hook, number)?;
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

/// The hook's side. The last of the three is where it says that it could not be executed.
fn become_hook((hook, start, fails): &(&HookPlan, Start<'_>, BorrowedFd<'_>)) -> ! {
    // It must not outlive us; where that cannot be had, the pid namespace sees to it.
    let _ = process::set_parent_death_signal(libc::SIGKILL);
    let streams = [(start.state, 0), (start.output, 1), (start.output, 2)];
    let placed = streams
        .into_iter()
        .enumerate()
        .try_for_each(|(index, (fd, number))| process::place_fd(fd, number).at(Step::Stdio, index));
    let became = placed.and_then(|()| {
        match start.kind {
            Kind::CreateContainer => {
                process::reset_signals();
                // What it makes is on the host, where ours was of no concern so far.
                rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o022));
            }
            Kind::StartContainer { has_preserved: true } => {
                process::close_on_exec_from(3).at(Step::Descriptors, 0)?;
            }
            Kind::StartContainer { has_preserved: false } => {}
        }
        execute(&hook.program)
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

/// Makes a file with the state that `hooks` read, which none of them can change; nothing if there are none.
fn write_state(hooks: &[HookPlan], (before, after): &(Vec<u8>, Vec<u8>)) -> Result<Option<OwnedFd>, Failure> {
    if hooks.is_empty() {
        return Ok(None);
    }
    let write = || -> Result<_, Errno> {
        let file = memfd_create(c"state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        write_all(file.as_fd(), before)?;
        let mut digits = [0; 10];
        write_all(file.as_fd(), decimal(rustix::process::getpid().as_raw_pid().unsigned_abs(), &mut digits))?;
        write_all(file.as_fd(), after)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Some(file))
    };
    write().at(Step::Hook, 0)
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
