//! `strata umount`

use std::path::PathBuf;

use clap::Args;

use super::{Context, Outcome, for_each};

/// Unmount what 'strata mount' mounted
#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// Where it was mounted
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
}

/// Unmounts folders.
pub(crate) fn run(_: &Context, umount: &Umount) -> Outcome {
    for_each(&umount.directories, |directory| Ok(strata_engine::unmount(directory)?))
}
