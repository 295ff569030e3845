//! The wait between the two halves of a start: everything is made, and the program waits for somebody to start it.
//!
//! As in its parent module, nothing here allocates, locks or logs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, stat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketFlags, accept_with};
use strata_sys::process;

use super::report::{At, Failure, Step, receive_go, send_ready};
use crate::plan::process::ProgramPlan;
use crate::plan::{GatePlan, Plan};

/// Says that all is made, and returns the connection of whoever starts the container.
pub(super) fn wait(plan: &Plan, gate: &GatePlan) -> Result<OwnedFd, Failure> {
    check(&plan.process.program)?;
    let parent = plan.parent.as_fd();
    send_ready(parent).at(Step::Parent, 7)?;
    // Until the parent has written down that we are here, nobody would find us: then we had better be gone with it.
    receive_go(parent).at(Step::Parent, 8)?;
    // Nothing of the host's stays open while we wait, and nothing that keeps a mount busy.
    let first = plan.process.preserved.end.unsigned_abs();
    process::close_from_except(first, [gate.listener.as_fd(), gate.hooks.output.as_fd()]).at(Step::Descriptors, 1)?;
    // Only for people who look at a list of processes.
    let _ = rustix::thread::set_name(c"strata:init");
    loop {
        let starter = match accept_with(&gate.listener, SocketFlags::CLOEXEC) {
            Ok(starter) => starter,
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(errno) => return Err(errno).at(Step::Gate, 0),
        };
        // Who says nothing only wanted to know whether we still wait, and must not keep others from starting us by being
        // stopped before it hangs up.
        let _ = set_socket_timeout(&starter, Timeout::Recv, Some(PATIENCE));
        if receive_go(starter.as_fd()).is_ok() {
            // From now on that is answered with no.
            process::close_fd(gate.listener.as_fd());
            return Ok(starter);
        }
    }
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

/// How long a connection may say nothing: `start` speaks right after it connects.
const PATIENCE: Duration = Duration::from_secs(2);
