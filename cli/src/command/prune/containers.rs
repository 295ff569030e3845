//! `strata container prune`

use std::io::Write;

use clap::Args;
use strata_engine::Container;

use super::super::filter::{self, Filter};
use super::super::{Context, Outcome};
use super::{Conditions, confirm};
use crate::output::human;

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub(crate) struct PruneContainers {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only what fits: label=, label!=, until=
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
}

/// Removes containers, prints their ids and what was won.
pub(crate) fn run(context: &Context, prune: &PruneContainers, out: &mut impl Write) -> Outcome {
    let conditions = Conditions::of(&prune.filter, &["label", "label!", "until"])?;
    if !prune.force && !confirm("This will remove all stopped containers.", out)? {
        return Ok(0);
    }
    let (removed, bytes) = context.engine()?.prune_containers(|container| fits(container, &conditions))?;
    write_containers(&removed, out)?;
    writeln!(out, "Total reclaimed space: {}", human::space(bytes))?;
    Ok(0)
}

/// Whether a container is to be removed.
pub(super) fn fits(container: &Container, conditions: &Conditions<'_>) -> bool {
    conditions.hold(&container.config.labels, Some(container.config.created))
}

/// Writes which containers were removed.
pub(super) fn write_containers(removed: &[Container], out: &mut impl Write) -> std::io::Result<()> {
    if removed.is_empty() {
        return Ok(());
    }
    writeln!(out, "Deleted Containers:")?;
    for container in removed {
        writeln!(out, "{}", container.config.id)?;
    }
    writeln!(out)
}
