//! `strata load`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use strata_engine::{Input, LoadOptions, Platform};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::progress::Bars;

/// Load images from a tar archive, an OCI layout or standard input
#[derive(Debug, Args)]
#[command(after_long_help = "\
The kind of the input is detected by its content: an archive of 'docker save' (old or new), or an OCI image layout as \
a tar or a folder, with layers uncompressed or compressed by gzip or zstd.

Examples:
  strata load -i debian.tar
  docker save debian:12 | strata load")]
pub(crate) struct Load {
    /// Read from FILE or folder instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Choose the images for this platform, os/architecture[/variant], and refuse others
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Loads images and prints their names.
pub(crate) fn run(context: &Context, load: &Load, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let progress = Bars::new(load.quiet);
    let stdin = io::stdin();
    let input = match &load.input {
        Some(path) => Input::Path(path.clone()),
        None if stdin.is_terminal() => {
            let failure = Failure::from(anyhow!("requested load from stdin, but stdin is empty"));
            return Err(failure.hint("name the archive with -i FILE"));
        }
        // The file itself, as a redirected one can be read at any position.
        None => Input::File(File::from(stdin.as_fd().try_clone_to_owned()?)),
    };
    let options = LoadOptions { platform: load.platform.clone(), ..LoadOptions::default() };
    let loaded = engine.images().load(input, &options, &progress);
    // The library names members and entries; which archive they are of only we know.
    let loaded = match &load.input {
        Some(path) => loaded.with_context(|| path.display().to_string())?,
        None => loaded?,
    };
    drop(progress);
    for image in loaded {
        writeln!(out, "{image}")?;
    }
    Ok(0)
}
