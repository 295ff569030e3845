//! `strata system prune`

use std::io::Write;

use clap::Args;
use strata_engine::{Leftovers, Unused};

use super::super::filter::{self, Filter};
use super::super::{Context, Outcome};
use super::{Conditions, confirm, containers, images, write_images};
use crate::output::human;

/// Remove all that is not used: stopped containers, images without a tag, what interrupted commands left
#[derive(Debug, Args)]
pub(crate) struct PruneSystem {
    /// Remove all images that no container uses, not only those without a tag
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes that no container uses, too
    #[arg(long)]
    volumes: bool,
    /// Remove only what fits: label=, label!=, until=
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
}

/// Removes, prints what, and what was won.
pub(crate) fn run(context: &Context, prune: &PruneSystem, out: &mut impl Write) -> Outcome {
    let conditions = Conditions::of(&prune.filter, &["label", "label!", "until"])?;
    if !prune.force && !confirm(&warning(prune), out)? {
        return Ok(0);
    }
    let engine = context.engine()?;
    let (removed, mut bytes) = engine.prune_containers(|container| containers::fits(container, &conditions))?;
    containers::write_containers(&removed, out)?;
    let unused = if prune.all { Unused::All } else { Unused::Untagged };
    let pruned = engine.prune_images(unused, |image| images::fits(image, &conditions))?;
    write_images(&pruned.removed, out)?;
    bytes += pruned.bytes + engine.images().gc_with(Leftovers::All)?.bytes;
    writeln!(out, "Total reclaimed space: {}", human::space(bytes))?;
    Ok(0)
}

fn warning(prune: &PruneSystem) -> String {
    let mut lines = vec!["all stopped containers", "all networks not used by at least one container"];
    if prune.volumes {
        lines.push("all anonymous volumes not used by at least one container");
    }
    lines.extend(match prune.all {
        true => ["all images without at least one container associated to them", "all build cache"],
        false => ["all dangling images", "unused build cache"],
    });
    let mut text = "This will remove:\n".to_owned();
    for line in lines {
        text.push_str(&format!("  - {line}\n"));
    }
    if !prune.filter.is_empty() {
        text.push_str("\n  Items to be pruned will be filtered with:\n");
        for filter in &prune.filter {
            text.push_str(&format!("  - {}={}\n", filter.key, filter.value));
        }
    }
    text
}
