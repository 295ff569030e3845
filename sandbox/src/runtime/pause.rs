//! `pause` and `resume`.

use super::{Container, RuntimeError, Status};
use crate::cgroup::Cgroup;

impl Container {
    /// Stops every process of the container where it is.
    ///
    /// # Errors
    /// [`RuntimeError::WrongStatus`] when it neither runs nor waits for its start.
    pub fn pause(self) -> Result<(), RuntimeError> {
        let container = self.lock()?;
        match container.status() {
            Status::Running | Status::Created => Ok(container.freezable()?.freeze()?),
            status => Err(RuntimeError::WrongStatus(format!("container not running or created: {status}"))),
        }
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`RuntimeError::WrongStatus`] when it is not paused.
    pub fn resume(self) -> Result<(), RuntimeError> {
        let container = self.lock()?;
        match container.status() {
            Status::Paused => Ok(container.freezable()?.thaw()?),
            _ => Err(RuntimeError::WrongStatus("container not paused".into())),
        }
    }

    fn freezable(&self) -> Result<&Cgroup, RuntimeError> {
        self.cgroup()?
            .filter(|cgroup| cgroup.can_freeze())
            .ok_or_else(|| RuntimeError::WrongStatus("the container has no cgroup that can be frozen".into()))
    }
}
