//! `strata image prune`

use std::io::Write;

use clap::Args;
use strata_engine::{ImageSummary, Unused};

use super::super::filter::{self, Filter};
use super::super::{Context, Outcome};
use super::{Conditions, confirm, write_images};
use crate::output::human;

/// Remove images that have no tag and that no container uses
#[derive(Debug, Args)]
pub(crate) struct PruneImages {
    /// Remove all images that no container uses, with their names
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only what fits: label=, label!=, until=; dangling=false is as --all
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
}

/// Removes images, prints the steps and what was won.
pub(crate) fn run(context: &Context, prune: &PruneImages, out: &mut impl Write) -> Outcome {
    let conditions = Conditions::of(&prune.filter, &["label", "label!", "until", "dangling"])?;
    let dangling: Vec<bool> =
        prune.filter.iter().filter(|filter| filter.key == "dangling").map(filter::truth).collect::<Result<_, _>>()?;
    let not_only_dangling = dangling.contains(&false);
    let unused = if prune.all || not_only_dangling { Unused::All } else { Unused::Untagged };
    let warning = match unused {
        Unused::All => "This will remove all images without at least one container associated to them.",
        Unused::Untagged => "This will remove all dangling images.",
    };
    if !prune.force && !confirm(warning, out)? {
        return Ok(0);
    }
    let pruned = context.engine()?.prune_images(unused, |image| fits(image, &conditions))?;
    write_images(&pruned.removed, out)?;
    writeln!(out, "Total reclaimed space: {}", human::space(pruned.bytes))?;
    Ok(0)
}

/// Whether an image is to be removed.
pub(super) fn fits(image: &ImageSummary, conditions: &Conditions<'_>) -> bool {
    conditions.hold(&image.labels, image.created)
}
