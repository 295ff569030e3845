//! The wait between the two halves of a start: everything is made, and the program waits for somebody to start it.
//!
//! Who waits has become what its program will be: ids, capabilities, limits and walls are in place, so that whoever gets hold
//! of it in a shared pid namespace has gained nothing. The filter is among them, and may forbid much. What is left to do needs
//! `read`, `write`, `close` and `execve`, without which no program runs; hooks need more.
//!
//! As in its parent module, nothing here allocates, locks or logs.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, stat};
use rustix::io::Errno;
use strata_sys::process;

use super::hooks::StartHooks;
use super::report::{At, Failure, Step, receive_go, send_ready, takes_ready_back, write_executing};
use super::{Never, Walls, confine, execute};
use crate::plan::process::ProgramPlan;
use crate::plan::{GatePlan, Plan};

/// Becomes all that the program will be, says so, and waits to be started.
pub(super) fn wait<'a>(plan: &'a Plan, gate: &'a GatePlan) -> Result<StartHooks<'a>, Failure> {
    check(&plan.process.program)?;
    let parent = plan.parent.as_fd();
    let hooks = StartHooks::prepare(&gate.hooks)?;
    let (word, answers, output) = (gate.word.as_fd(), gate.answers.as_fd(), gate.hooks.output.as_fd());
    let first = plan.process.preserved.end.unsigned_abs();
    let questions = confine(parent, &plan.process, Walls::of(plan), || {
        // Only for people who look at a list of processes.
        let _ = rustix::thread::set_name(c"strata:init");
        // Nothing of the host's stays open while we wait, and nothing that keeps a mount busy.
        let kept = [parent, word, answers, output, hooks.state().unwrap_or(output)];
        process::close_from_except(first, kept).at(Step::Descriptors, 1)
    })?;
    // Whoever was sent it answers. With ours open, nobody would notice their end.
    drop::<Option<OwnedFd>>(questions);
    send_ready(parent).at(Step::Parent, 7)?;
    match receive_go(parent) {
        // Until the parent has written down that we are here, nobody would find us: then we had better be gone with it.
        Err(Errno::PIPE) if !takes_ready_back(answers) => return Err(Failure::new(Step::Parent, 8, libc::EPIPE)),
        Err(Errno::PIPE) => {}
        result => result.at(Step::Parent, 8)?,
    }
    process::close_fd(parent);
    receive_go(word).at(Step::Gate, 0)?;
    // From now on the question whether we wait is answered with no.
    process::close_fd(word);
    Ok(hooks)
}

/// Runs what comes before the program, and becomes it.
pub(super) fn pass(plan: &Plan, gate: &GatePlan, hooks: StartHooks<'_>) -> Result<Never, Failure> {
    hooks.run(gate.answers.as_fd(), !plan.process.preserved.is_empty())?;
    write_executing(gate.answers.as_fd()).at(Step::Parent, 1)?;
    execute(&plan.process.program)
}

/// Looks whether there is such a program: better said when a container is created than when it is started.
fn check(program: &ProgramPlan) -> Result<(), Failure> {
    for (index, candidate) in program.candidates.iter().enumerate() {
        let found = match stat(candidate.as_c_str()) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) if program.searched => continue,
            Err(Errno::NOENT | Errno::NOTDIR) => break,
            Err(_) if program.searched => continue,
            Err(errno) => return Err(errno).at(Step::Exec, index),
        };
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if !is_directory && found.st_mode & 0o111 != 0 {
            return Ok(());
        }
        if !program.searched {
            let errno = if is_directory { libc::EISDIR } else { libc::EACCES };
            return Err(Failure::new(Step::Exec, index, errno));
        }
    }
    Err(Failure::new(Step::ExecNotFound, 0, libc::ENOENT))
}
