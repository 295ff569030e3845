//! The cgroups of containers.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use strata_layer::Digest;
use strata_sandbox::cgroup::systemd::{self, Unit};
use strata_sandbox::cgroup::{Cgroup, CgroupError, CgroupManager, CgroupName, Hierarchies, Layout};

use super::{Config, Containers};

/// Chooses who makes cgroups where nobody has said, and says why: as Docker does, systemd where it runs and cgroups are of
/// version 2 alone, since it is the one writer of that tree then. Unlike Docker, only if it can be reached.
pub(crate) fn choose_manager() -> (CgroupManager, String) {
    if !Path::new("/run/systemd/system").is_dir() {
        return (CgroupManager::Cgroupfs, "systemd does not run".to_owned());
    }
    if Hierarchies::detect().map_or(Layout::Absent, |hierarchies| hierarchies.layout()) != Layout::V2 {
        return (CgroupManager::Cgroupfs, "cgroups are not of version 2 alone".to_owned());
    }
    match systemd::is_reachable() {
        Ok(()) => (CgroupManager::Systemd, "systemd runs, and cgroups are of version 2".to_owned()),
        Err(error) => (CgroupManager::Cgroupfs, crate::error_chain(&error)),
    }
}

/// How the cgroups of the containers of one root begin: two roots must never meet in one.
pub(super) fn prefix(root: &Path) -> String {
    let digest = Digest::of(root.as_os_str().as_bytes());
    format!("strata-{}", &digest.hex()[..12])
}

impl Containers {
    /// The unit that systemd makes for a container, if that is who makes its cgroup.
    pub(crate) fn unit(&self, config: &Config) -> Result<Option<Unit>, CgroupError> {
        let id = config.id.as_str();
        match config.cgroup_manager {
            CgroupManager::Cgroupfs => Ok(None),
            // In the slice of the system, or of the user, as Docker's.
            CgroupManager::Systemd => Unit::new(Some(&format!(":{}:{id}", self.cgroup_prefix)), id).map(Some),
        }
    }

    /// The cgroup of a container. It has no parent of ours, which nobody would ever remove.
    pub(crate) fn cgroup_name(&self, config: &Config) -> Result<CgroupName, CgroupError> {
        match self.unit(config)? {
            Some(unit) => unit.cgroup(),
            None => CgroupName::new(&format!("{}-{}", self.cgroup_prefix, config.id)),
        }
    }

    /// The cgroup that a container has while it runs.
    pub(crate) fn cgroup(&self, config: &Config) -> Result<Cgroup, CgroupError> {
        Cgroup::open(&self.cgroup_name(config)?)
    }

    /// Removes the cgroup that a container has while it runs, with whatever is in it.
    pub(crate) fn remove_cgroup(&self, config: &Config) {
        if let Err(error) = self.cgroup(config).and_then(|group| group.remove()) {
            tracing::warn!(id = %config.id, error = %crate::error_chain(&error), "cgroup not removed");
        }
        self.stop_unit(config);
    }

    /// Waits until systemd has let go of a container whose processes have ended, which it does by itself: its next start has a unit
    /// of the same name.
    pub(crate) fn stop_unit(&self, config: &Config) {
        let unit = self.unit(config);
        if let Err(error) = unit.and_then(|unit| unit.map_or(Ok(()), |unit| unit.stop())) {
            tracing::warn!(id = %config.id, error = %crate::error_chain(&error), "scope not stopped");
        }
    }

    /// Lets the processes of a container go on: those that are stopped cannot be killed.
    pub(crate) fn thaw(&self, config: &Config) {
        if let Err(error) = self.cgroup(config).and_then(|group| group.thaw()) {
            tracing::warn!(id = %config.id, error = %crate::error_chain(&error), "cgroup not thawed");
        }
    }
}
