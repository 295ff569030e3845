//! Starting, joining and keeping containers: `strata runtime` beside crun, runc and bubblewrap, `strata run` beside podman.
//!
//! All of it happens in a mount namespace of this program's own, in which the v2 tree of a hybrid host is not mounted: crun
//! 1.8 refuses such a layout.

mod bundle;
mod engine;
mod idle;
mod runtimes;

use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

pub(crate) use engine::podman_options;

use crate::report::Report;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// How often everything is started.
    pub rounds: usize,
    /// How many containers do nothing at once.
    pub idle: usize,
}

/// Prints the tables.
pub fn figures(strata: &Path, work: &Path, extent: Extent, report: &mut Report) -> Result<()> {
    enter_view().context("get a mount namespace without the v2 tree")?;
    runtimes::figures(strata, work, extent.rounds, report)?;
    engine::figures(strata, work, extent.rounds, report)?;
    idle::figures(strata, work, extent.idle, report)
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
