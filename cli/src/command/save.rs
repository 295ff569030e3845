//! `strata save`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use strata_engine::Platform;

use super::export::Aside;
use super::{Context, Outcome};
use crate::failure::Failure;

/// Save images as a tar archive
#[derive(Debug, Args)]
#[command(after_long_help = "\
The archive is one of 'docker save' and an OCI image layout at once; docker, podman, skopeo, umoci and strata load it, and \
the images keep their IDs. A name without a tag saves all tags of the repository.

Examples:
  strata save -o debian.tar debian:12
  strata save app:1 app:2 | zstd > app.tar.zst")]
pub(crate) struct Save {
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Refuse images for other platforms than this one, os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Saves images.
pub(crate) fn run(context: &Context, save: &Save) -> Outcome {
    let engine = context.engine()?;
    for name in &save.images {
        super::pull::complete(&engine, &engine.images().resolve(name)?)?;
    }
    let platform = save.platform.as_ref();
    let names: Vec<&str> = save.images.iter().map(String::as_str).collect();
    match &save.output {
        None if io::stdout().is_terminal() => {
            let failure = Failure::from(anyhow!("cowardly refusing to save to a terminal"));
            return Err(failure.hint("use the -o flag or redirect"));
        }
        None => {
            let mut out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
            engine.images().save(&names, platform, &mut out)?;
        }
        // Something like a pipe or /dev/null is written as it is.
        Some(path) if path.exists() && !path.is_file() && !path.is_dir() => {
            engine.images().save(&names, platform, &mut File::options().write(true).open(path)?)?;
        }
        Some(path) => {
            let mut aside = Aside::create(path)?;
            engine.images().save(&names, platform, &mut aside.file)?;
            aside.finish(path)?;
        }
    }
    Ok(0)
}
