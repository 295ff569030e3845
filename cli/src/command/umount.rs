//! `strata umount`

use std::path::{Path, PathBuf};

use clap::Args;
use strata_engine::Force;

use super::{Context, Outcome, for_each};
use crate::failure::Failure;

/// Unmount what 'strata mount' mounted, and wait until everything is on the disk
#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// Let those who use it go on, and hide it from all others
    #[arg(short, long)]
    lazy: bool,
    /// Abort what is waiting for it
    #[arg(short, long, conflicts_with = "lazy")]
    force: bool,
    /// Where it was mounted
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
}

/// Unmounts folders.
pub(crate) fn run(_: &Context, umount: &Umount) -> Outcome {
    let force = match (umount.lazy, umount.force) {
        (true, _) => Force::Detach,
        (false, true) => Force::Abort,
        (false, false) => Force::No,
    };
    for_each(&umount.directories, |directory| unmount(directory, force))
}

/// Unmounts one folder, or says why not and what to do.
pub(crate) fn unmount(directory: &Path, force: Force) -> Result<(), Failure> {
    strata_engine::unmount(directory, force).map_err(|error| {
        let hint = error.hint().map(str::to_owned);
        Failure { hint, ..Failure::from(error) }
    })
}
