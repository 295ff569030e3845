//! Removing containers.

use std::time::{Duration, Instant};

use crate::container::{Container, FindError, RecordError, RemoveError, State, Use};
use crate::engine::{Engine, lease_name};
use crate::monitor::{AskError, Request, ask};

/// A container that was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveContainerError {
    /// It was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It stays.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// Its files are not accessible.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its monitor does not end it.
    #[error(transparent)]
    Monitor(#[from] AskError),
}

impl RemoveContainerError {
    /// Whether there is no such container.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RemoveContainerError::Find(error) if error.is_not_found())
    }
}

/// How long a start that is under way may take before it is cut off.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Removes a container; with `force` even one that runs.
    pub fn remove_container(&self, name: &str, force: bool) -> Result<(), RemoveContainerError> {
        let found = self.container(name)?;
        let name = found.config.name.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // One that is removed with its process may be gone as soon as that is.
            let container = match self.container(found.config.id.as_str()) {
                Err(error) if error.is_not_found() => return Ok(()),
                result => result?,
            };
            match &container.state {
                State::Paused { .. } if !force => return Err(RemoveError::Paused(name).into()),
                State::Restarting { .. } if !force => return Err(RemoveError::Restarting(name).into()),
                State::Running { .. } if !force => return Err(RemoveError::Running(name).into()),
                State::Starting { owner, .. } => {
                    if Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                    } else if force {
                        owner.kill().map_err(|error| RemoveError::Kill(error.into()))?;
                    } else {
                        return Err(RemoveError::Busy(name).into());
                    }
                    continue;
                }
                State::Running { .. } | State::Paused { .. } | State::Restarting { .. } => {
                    match ask(&container, &Request::Kill) {
                        // Ended meanwhile, or dead: then looking again says so.
                        Err(AskError::Gone) if Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        result => drop(result?),
                    }
                    continue;
                }
                State::Created { .. } | State::Exited { .. } | State::Removing | State::Dead => {}
            }
            let Some(locked) = container.lock(Duration::from_secs(2))? else {
                if self.registry().contains(&found.config.id) {
                    return Err(RemoveError::Busy(name).into());
                }
                return Ok(());
            };
            // Started again meanwhile.
            if locked.state.owner().is_some() {
                continue;
            }
            let Some(_unused) = locked.use_files(Use::Alone, Duration::from_secs(2))? else {
                return Err(RemoveError::Mounted(name).into());
            };
            self.registry().remove_cgroup(&locked.config);
            let lease = lease_name(&locked);
            locked.delete(self.registry()).map_err(RemoveError::from)?;
            self.release(&lease);
            return Ok(());
        }
    }

    /// Removes all containers that do not run and fit, and returns them with the bytes they had.
    pub fn prune_containers(
        &self,
        fits: impl Fn(&Container) -> bool,
    ) -> Result<(Vec<Container>, u64), RemoveContainerError> {
        let mut removed = Vec::new();
        let mut bytes = 0;
        for container in self.containers()? {
            let idle = matches!(container.state, State::Created { .. } | State::Exited { .. } | State::Dead);
            if !idle || !fits(&container) {
                continue;
            }
            let size = crate::disk_use::of(&container.upper());
            match self.remove_container(container.config.id.as_str(), false) {
                Ok(()) => {
                    bytes += size;
                    removed.push(container);
                }
                // Started, mounted or removed by another command meanwhile: then it is not idle.
                Err(RemoveContainerError::Remove(_) | RemoveContainerError::Find(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((removed, bytes))
    }
}
