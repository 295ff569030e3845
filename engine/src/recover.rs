//! Dealing with what commands left that were killed: every verb that looks at all containers does this first.

use std::collections::HashSet;
use std::time::Duration;

use strata_imagestore::Timestamp;

use crate::container::{Container, ContainerId, Ended, Event, RecordError, StartFailure, State, random_bytes};
use crate::durable::Durability;
use crate::engine::{Engine, LEASE_PREFIX, image_id, lease_name};

/// What is shown for a process whose end nobody saw: it was killed with its monitor.
const KILLED: i32 = 128 + 9;

/// How many containers a start looks at, besides its own.
const SAMPLE: usize = 16;

impl Engine {
    /// Finishes or removes what killed commands left.
    pub(crate) fn recover(&self) -> Result<(), RecordError> {
        self.recover_and_list().map(drop)
    }

    /// As [`recover`](Self::recover); returns the containers that are left, the newest first.
    pub(crate) fn recover_and_list(&self) -> Result<Vec<Container>, RecordError> {
        let ids = self.registry().sweep()?;
        self.registry().sweep_names()?;
        self.release_lost_leases(&ids.into_iter().collect())?;
        // Each record is read once: most of the time nothing is abandoned.
        let listed = self.registry().list()?;
        let mut recovered = false;
        for container in listed.iter().filter(|container| container.is_abandoned()) {
            self.recover_one(container)?;
            recovered = true;
        }
        if recovered { self.registry().list() } else { Ok(listed) }
    }

    /// As [`recover`](Self::recover), for what is half made or half deleted and for a few containers, others each time: so that
    /// starting a container does not take longer the more there are.
    pub(crate) fn recover_some(&self) -> Result<(), RecordError> {
        let ids = self.registry().sweep()?;
        let first = random_bytes().map_or(0, usize::from_ne_bytes) % ids.len().max(1);
        let some = ids.iter().cycle().skip(first).take(SAMPLE.min(ids.len()));
        self.registry().abandoned(some).iter().try_for_each(|container| self.recover_one(container))
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
                self.registry().thaw(&locked.config);
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
        self.registry().remove_cgroup(&locked.config);
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
    fn release_lost_leases(&self, known: &HashSet<ContainerId>) -> Result<(), RecordError> {
        let Ok(leases) = self.images().leases() else { return Ok(()) };
        for lease in leases {
            if let Some(id) = lease.strip_prefix(LEASE_PREFIX)
                && let Ok(id) = id.parse::<ContainerId>()
                && !known.contains(&id)
                // It may be younger than the list.
                && !self.registry().contains(&id)
            {
                self.release(&lease);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    /// Writes `count` containers whose starts were cut off.
    fn abandon(engine: &Engine, count: usize) {
        let owner = Process { pid: i32::MAX, start: 1, boot: "another".to_owned() };
        for _ in 0..count {
            let state = State::Starting { owner: owner.clone(), before: None };
            drop(engine.registry().create_for_test(state));
        }
    }

    #[test]
    fn a_start_deals_with_a_few_of_what_is_left_and_a_list_with_all() {
        let root = tempfile::tempdir().unwrap();
        let engine = Engine::open(root.path()).unwrap();
        let left = || engine.registry().list().unwrap().iter().filter(|container| container.is_abandoned()).count();
        engine.recover_some().unwrap();
        abandon(&engine, SAMPLE - 1);
        engine.recover_some().unwrap();
        assert_eq!(left(), 0);
        abandon(&engine, 2 * SAMPLE);
        engine.recover_some().unwrap();
        assert!((SAMPLE..2 * SAMPLE).contains(&left()), "{}", left());
        assert_eq!(engine.containers().unwrap().len(), 3 * SAMPLE - 1);
        assert_eq!(left(), 0);
    }
}
