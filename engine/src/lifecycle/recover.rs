//! After a restart of the machine, or a kill of everything: back to what the user wanted to be running.

use super::{LifecycleError, RunError, StartOptions};
use crate::container::{Container, RestartPolicy, State};
use crate::engine::Engine;

impl Engine {
    /// Finishes or removes what was left half done, and starts what its restart policy says. Returns each container that
    /// was to be started, with the reason if it was not.
    pub fn recover_all(&self) -> Result<Vec<(Container, Option<RunError>)>, LifecycleError> {
        let containers = self.containers()?;
        let wanted = containers.into_iter().filter(wants_start);
        let started = wanted.map(|container| {
            let result = self.start(container.config.id.as_str(), StartOptions::default());
            (container, result.err())
        });
        Ok(started.collect())
    }
}

/// Whether a container that does not run should, as Docker's daemon decides when it starts.
fn wants_start(container: &Container) -> bool {
    let State::Exited { end } = &container.state else { return false };
    match container.config.restart {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::UnlessStopped => !end.by_user,
        RestartPolicy::OnFailure { .. } => {
            !end.by_user && container.config.restart.wants_restart(end.code, container.restarts)
        }
    }
}
