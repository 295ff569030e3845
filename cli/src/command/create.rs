//! `strata create`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::container_options::{self, ContainerOptions};
use super::run::{check_cidfile, explain, write_cidfile};
use super::{Context, Outcome};
use crate::failure::Failure;

/// Create a new container without starting it
#[derive(Debug, Args)]
#[command(override_usage = "strata create [OPTIONS] IMAGE [COMMAND] [ARG...]", disable_help_flag = true)]
pub(crate) struct Create {
    #[command(flatten)]
    container: ContainerOptions,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
}

/// Makes a container and prints its id.
pub(crate) fn run(context: &Context, create: &Create, out: &mut impl Write) -> Outcome {
    let as_docker = |failure: Failure| Failure { code: 1, ..failure };
    let mut creation = container_options::creation(&create.container)?;
    creation.stdin_once = create.container.interactive;
    check_cidfile(create.cidfile.as_ref()).map_err(as_docker)?;
    let engine = context.engine_for_new()?;
    super::pull::ensure(&engine, &create.container).map_err(as_docker)?;
    let container = engine.create(&creation).map_err(explain).map_err(as_docker)?;
    write_cidfile(create.cidfile.as_ref(), &container.config.id)?;
    writeln!(out, "{}", container.config.id)?;
    Ok(0)
}
