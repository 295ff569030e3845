//! Dealing with what commands left that were killed: every verb that looks at containers does this first.

use std::time::Duration;

use strata_imagestore::Timestamp;
use strata_sandbox::cgroup::{Cgroup, CgroupName};

use crate::container::{Container, ContainerId, Event, RecordError, State};
use crate::durable::Durability;
use crate::engine::{Engine, LEASE_PREFIX, image_id, lease_name};

/// What is shown for a process whose end nobody saw: it was killed with its command.
const KILLED: i32 = 128 + 9;

impl Engine {
    /// Finishes or removes what killed commands left.
    pub(crate) fn recover(&self) -> Result<(), RecordError> {
        self.registry().sweep()?;
        for container in self.registry().abandoned()? {
            self.recover_one(&container)?;
        }
        self.release_lost_leases()
    }

    fn recover_one(&self, container: &Container) -> Result<(), RecordError> {
        // Raced with another command that recovers it: then that does it.
        let Some(mut locked) = container.lock(Duration::from_millis(500))? else { return Ok(()) };
        if !locked.is_abandoned() {
            return Ok(());
        }
        tracing::info!(id = %locked.config.id, "the command of a container is gone");
        let event = match &locked.state {
            State::Running { init, .. } => {
                if let Err(error) = init.kill() {
                    tracing::warn!(id = %locked.config.id, %error, "process not killed");
                    return Ok(());
                }
                Event::Ended { code: KILLED, at: Timestamp::now() }
            }
            _ => Event::StartFailed,
        };
        self.remove_cgroup(&locked);
        if locked.config.auto_remove {
            let lease = lease_name(&locked);
            locked.delete(self.registry())?;
            self.release(&lease);
            return Ok(());
        }
        // Killed between its record and its lease.
        if event == Event::StartFailed
            && let Some(image) = image_id(&locked)
            && let Err(error) = self.images().lease(&lease_name(&locked), &image)
        {
            tracing::warn!(id = %locked.config.id, error = %crate::error_chain(&error), "layers not kept");
        }
        locked.apply(event, Durability::Synced)
    }

    /// Removes the cgroup that a container has while it runs, with whatever is in it.
    pub(crate) fn remove_cgroup(&self, container: &Container) {
        let removed = self.cgroup_name(container).and_then(|name| Cgroup::open(&name)).and_then(|group| group.remove());
        if let Err(error) = removed {
            tracing::warn!(id = %container.config.id, error = %crate::error_chain(&error), "cgroup not removed");
        }
    }

    /// The cgroup of a container. It has no parent of ours, which nobody would ever remove.
    pub(crate) fn cgroup_name(&self, container: &Container) -> Result<CgroupName, strata_sandbox::cgroup::CgroupError> {
        CgroupName::new(&format!("{}-{}", self.cgroup_prefix(), container.config.id))
    }

    /// A lease is taken after the container's record is there and given back after it is gone, so one without a
    /// container is always lost.
    fn release_lost_leases(&self) -> Result<(), RecordError> {
        let Ok(leases) = self.images().leases() else { return Ok(()) };
        for lease in leases {
            if let Some(id) = lease.strip_prefix(LEASE_PREFIX)
                && let Ok(id) = id.parse::<ContainerId>()
                && !self.registry().contains(&id)
            {
                self.release(&lease);
            }
        }
        Ok(())
    }
}
