//! Dealing with what commands left that were killed: every verb that looks at containers does this first.

use std::time::Duration;

use strata_imagestore::Timestamp;

use crate::container::{Container, ContainerId, Ended, Event, RecordError, StartFailure, State};
use crate::durable::Durability;
use crate::engine::{Engine, LEASE_PREFIX, image_id, lease_name};

/// What is shown for a process whose end nobody saw: it was killed with its monitor.
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
        let id = locked.config.id.clone();
        tracing::info!(%id, "the monitor of a container is gone");
        let event = match &locked.state {
            State::Running { init, .. } | State::Paused { init, .. } => {
                // Processes that are stopped do not die.
                self.registry().thaw(&id);
                if let Err(error) = init.kill() {
                    tracing::warn!(%id, %error, "process not killed");
                    return Ok(());
                }
                let error = "the container's monitor was killed".to_owned();
                let at = Timestamp::now();
                Event::Ended(Ended { code: KILLED, at, out_of_memory: false, by_user: false, error })
            }
            State::Restarting { .. } => Event::GiveUp,
            _ => Event::StartFailed(StartFailure { code: KILLED, error: "the start was interrupted".to_owned() }),
        };
        self.registry().remove_cgroup(&id);
        if locked.config.auto_remove {
            let lease = lease_name(&locked);
            locked.delete_after(event, self.registry())?;
            self.release(&lease);
            return Ok(());
        }
        // Killed between its record and its lease.
        if matches!(event, Event::StartFailed(_))
            && let Some(image) = image_id(&locked)
            && let Err(error) = self.images().lease(&lease_name(&locked), &image)
        {
            tracing::warn!(id = %locked.config.id, error = %crate::error_chain(&error), "layers not kept");
        }
        locked.apply(event, Durability::Synced)
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
