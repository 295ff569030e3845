//! `delete`: everything that `create` has made.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::container::open_folder;
use super::record::RECORD;
use super::{Container, RuntimeError, Status, hooks};
use crate::cgroup::systemd::Unit;

/// Whether a container is removed that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delete {
    /// Only what never was started.
    Stopped,
    /// It is killed.
    Any,
}

impl Container {
    /// Removes the container: one that has ended, or was never started. With [`Delete::Any`], any, by killing it. Returns
    /// what `poststop` hooks failed with.
    ///
    /// # Errors
    /// [`RuntimeError::NotStopped`], [`RuntimeError::StillRunning`], [`RuntimeError::Cgroup`]. It can be tried again.
    pub fn delete(self, which: Delete) -> Result<Vec<String>, RuntimeError> {
        if which == Delete::Any && self.record.complete {
            // Its end is what whoever has the lock may be waiting for. That it has ended already is no error.
            let _ = self.signal(libc::SIGKILL);
        }
        let container = self.lock()?;
        match (container.status(), which) {
            (Status::Stopped, _) => {}
            // Raced with nobody: we have the lock. It has not run anything of its own.
            (Status::Created | Status::Creating, _) | (_, Delete::Any) => {}
            (status, Delete::Stopped) => return Err(RuntimeError::NotStopped { id: container.id.to_string(), status }),
        }
        container.destroy()
    }

    /// Ends what is left of a container whose making was cut off.
    pub(super) fn destroy_locked(&self) -> Result<(), RuntimeError> {
        self.destroy().map(drop)
    }

    /// Every step can be repeated: whoever is killed here leaves a stopped container.
    fn destroy(&self) -> Result<Vec<String>, RuntimeError> {
        self.end()?;
        if let Some(cgroup) = self.cgroup()? {
            cgroup.remove()?;
        }
        // Without its processes the unit goes by itself. Waiting for that is all that is left, and no systemd no reason to stay.
        let stopped = self.record.unit.as_ref().map_or(Ok(()), Unit::stop);
        let mut warnings: Vec<String> = stopped.err().map(|error| error.to_string()).into_iter().collect();
        // Without its spec it has no hooks that we could know of.
        if let Ok(spec) = self.spec() {
            let poststop = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref());
            warnings.extend(hooks::run_each("poststop", poststop, &self.hook_state().json("stopped", None)));
        }
        remove_folder(&self.path)?;
        Ok(warnings)
    }
}

/// Removes a folder without a record that nobody is at work on.
pub(super) fn sweep(path: &Path) -> Result<(), RuntimeError> {
    let Ok(folder) = open_folder(path) else { return Ok(()) };
    if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() || path.join(RECORD).exists() {
        return Ok(());
    }
    remove_folder(path)
}

/// Removes the folder of a container; the record last, so that what is cut off is found again.
pub(super) fn remove_folder(path: &Path) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Folder { path: path.to_owned(), source };
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(path) {
        Err(error) if is_gone(&error) => return Ok(()),
        result => result.map_err(failed)?,
    };
    let record = path.join(RECORD);
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    names.sort_by_key(|name| *name == record);
    for name in names {
        match fs::remove_file(&name) {
            Err(error) if !is_gone(&error) => return Err(failed(error)),
            _ => {}
        }
    }
    match fs::remove_dir(path) {
        Err(error) if !is_gone(&error) => Err(failed(error)),
        _ => Ok(()),
    }
}
