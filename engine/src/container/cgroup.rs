//! The cgroups of containers.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use strata_layer::Digest;
use strata_sandbox::cgroup::{Cgroup, CgroupError, CgroupName};

use super::{ContainerId, Containers};

/// How the cgroups of the containers of one root begin: two roots must never meet in one.
pub(super) fn prefix(root: &Path) -> String {
    let digest = Digest::of(root.as_os_str().as_bytes());
    format!("strata-{}", &digest.hex()[..12])
}

impl Containers {
    /// The cgroup of a container. It has no parent of ours, which nobody would ever remove.
    pub(crate) fn cgroup_name(&self, id: &ContainerId) -> Result<CgroupName, CgroupError> {
        CgroupName::new(&format!("{}-{id}", self.cgroup_prefix))
    }

    /// The cgroup that a container has while it runs.
    pub(crate) fn cgroup(&self, id: &ContainerId) -> Result<Cgroup, CgroupError> {
        Cgroup::open(&self.cgroup_name(id)?)
    }

    /// Removes the cgroup that a container has while it runs, with whatever is in it.
    pub(crate) fn remove_cgroup(&self, id: &ContainerId) {
        if let Err(error) = self.cgroup(id).and_then(|group| group.remove()) {
            tracing::warn!(%id, error = %crate::error_chain(&error), "cgroup not removed");
        }
    }

    /// Lets the processes of a container go on: those that are stopped cannot be killed.
    pub(crate) fn thaw(&self, id: &ContainerId) {
        if let Err(error) = self.cgroup(id).and_then(|group| group.thaw()) {
            tracing::warn!(%id, error = %crate::error_chain(&error), "cgroup not thawed");
        }
    }
}
