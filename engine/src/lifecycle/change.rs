//! Changing what may change of a container's configuration.

use std::time::Duration;

use super::LifecycleError;
use crate::container::{ContainerName, CreateError, RecordError};
use crate::engine::Engine;
use crate::monitor::{Request, Update};

impl Engine {
    /// Gives a container another name.
    pub fn rename(&self, name: &str, new: &ContainerName) -> Result<(), LifecycleError> {
        let container = self.container(name)?;
        if container.config.name == *new {
            return Err(LifecycleError::SameName);
        }
        let busy = || RecordError::Busy(container.config.name.clone());
        let mut locked = container.lock(Duration::from_secs(10))?.ok_or_else(busy)?;
        locked.change(self.registry(), |config| config.name = new.clone()).map_err(LifecycleError::Name)
    }

    /// Changes limits and the restart policy, of a running container at once. Returns what was left out.
    pub fn update(&self, name: &str, update: &Update) -> Result<Vec<String>, LifecycleError> {
        let container = self.container(name)?;
        match self.ask_running(&container, &Request::Update(Box::new(update.clone()))) {
            Err(LifecycleError::NotRunning(_)) => {}
            result => return result.map(|(_, warnings)| warnings),
        }
        let busy = || RecordError::Busy(container.config.name.clone());
        let mut locked = container.lock(Duration::from_secs(10))?.ok_or_else(busy)?;
        update.limits_over(&locked.config.limits)?;
        match locked.change(self.registry(), |config| update.apply(config)) {
            Ok(()) => Ok(Vec::new()),
            Err(CreateError::Record(error)) => Err(error.into()),
            Err(error) => Err(LifecycleError::Name(error)),
        }
    }
}
