//! Starting, joining and keeping containers: `strata runtime` beside crun, runc and bubblewrap, `strata run` beside podman.

pub(crate) mod bundle;
mod engine;
pub mod idle;
pub mod neighbours;
mod runtimes;

use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

pub(crate) use engine::podman_options;

use crate::report::Report;

/// Prints the tables of starts and of processes that join.
///
/// This program is in a mount namespace of its own afterwards, in which the v2 tree of a hybrid host is not mounted: crun 1.8
/// refuses such a layout.
pub fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    enter_view().context("get a mount namespace without the v2 tree")?;
    runtimes::figures(strata, work, rounds, report)?;
    engine::figures(strata, work, rounds, report)
}

fn enter_view() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    match rustix::mount::unmount("/sys/fs/cgroup/unified", UnmountFlags::DETACH) {
        // A host that has none.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}
