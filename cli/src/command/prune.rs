//! `strata container prune`

use std::io::{self, BufRead, Write};

use clap::Args;
use strata_engine::Container;

use super::filter::{self, Filter};
use super::logs::moment;
use super::{Context, Outcome};
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

type Condition = Box<dyn Fn(&Container) -> bool>;

/// Removes containers, prints their ids and what was won.
pub(crate) fn run(context: &Context, prune: &PruneContainers, out: &mut impl Write) -> Outcome {
    filter::check(&prune.filter, &["label", "label!", "until"])?;
    let mut conditions: Vec<Condition> = Vec::new();
    for filter in &prune.filter {
        let filter = filter.clone();
        match filter.key.as_str() {
            "until" => {
                let until = moment(&filter.value)?;
                conditions.push(Box::new(move |container| container.config.created <= until));
            }
            "label" => conditions.push(Box::new(move |container| filter.fits_label(&container.config.labels))),
            _ => conditions.push(Box::new(move |container| !filter.fits_label(&container.config.labels))),
        }
    }
    if !prune.force && !confirm()? {
        return Ok(0);
    }
    let engine = context.engine()?;
    let (removed, bytes) = engine.prune_containers(|container| conditions.iter().all(|fits| fits(container)))?;
    if !removed.is_empty() {
        writeln!(out, "Deleted Containers:")?;
        for container in removed {
            writeln!(out, "{}", container.config.id)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", human::size(bytes))?;
    Ok(0)
}

/// Asks whether it is meant.
fn confirm() -> io::Result<bool> {
    eprint!("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
