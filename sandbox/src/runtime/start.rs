//! `start`: the program of a created container.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, unlinkat};

use super::{Container, RuntimeError, Status, hooks};
use crate::create::{ANSWERS, WORD};
use crate::{StartError, create};

impl Container {
    /// Starts the program and returns once it has been executed, the container then open to others again.
    ///
    /// # Errors
    /// [`RuntimeError::WrongStatus`] when it does not wait for that; [`RuntimeError::Start`] when it cannot be executed,
    /// [`RuntimeError::Hook`] when a `poststart` hook fails: the container has ended then.
    pub fn start(self) -> Result<Self, RuntimeError> {
        let container = self.lock()?;
        let refusal = match container.status() {
            Status::Created => None,
            Status::Stopped => Some("cannot start a container that has stopped".to_owned()),
            Status::Running => Some("cannot start an already running container".to_owned()),
            status @ (Status::Creating | Status::Paused) => {
                Some(format!("cannot start a container in the {status} state"))
            }
        };
        if let Some(refusal) = refusal {
            return Err(RuntimeError::WrongStatus(refusal));
        }
        let spec = container.spec()?;
        let init = container.record.init.as_ref().ok_or(RuntimeError::NotRunning)?;
        // Raced with its end.
        let ended = || RuntimeError::WrongStatus("cannot start a container that has stopped".into());
        let process = init.open().ok_or_else(ended)?;
        match create::start(container.folder.as_fd(), process.as_fd(), init.pid, spec) {
            Ok(()) => {}
            Err(StartError::NotWaiting) => return Err(ended()),
            Err(error @ StartError::Connect(_)) => return Err(RuntimeError::Start(error)),
            Err(error) => {
                // It was told to go on: what is said to have failed must not run.
                container.end()?;
                return Err(RuntimeError::Start(error));
            }
        }
        // Nobody reads there any more, which says the same; only quicker without it.
        for name in [WORD, ANSWERS] {
            let _ = unlinkat(&container.folder, name, AtFlags::empty());
        }
        let poststart = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
        let state = container.hook_state().json("running", Some(init.pid));
        if let Err(error) = hooks::run_all("poststart", poststart, &state) {
            container.end()?;
            return Err(error.into());
        }
        container.unlock();
        Ok(container)
    }
}
