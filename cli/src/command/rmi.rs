//! `strata rmi`

use std::io::Write;

use clap::Args;
use strata_engine::Removed;

use super::{Context, Outcome, for_each};

/// Remove one or more images
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Remove even if stopped containers or several names use it
    #[arg(short, long)]
    force: bool,
    /// Accepted for compatibility: there are no untagged parents to keep
    #[arg(long)]
    no_prune: bool,
    /// The images, by name, id or the beginning of an id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Removes images, saying each step.
pub(crate) fn run(context: &Context, rmi: &Rmi, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    for_each(&rmi.images, |image| {
        let steps = match engine.remove_image(image, rmi.force) {
            // Nobody who insists minds that it is gone already; it is said all the same.
            Err(error) if rmi.force && error.is_not_found() => {
                eprintln!("strata: {error}");
                return Ok(());
            }
            steps => steps?,
        };
        for step in steps {
            match step {
                Removed::Untagged(name) => writeln!(out, "Untagged: {}", name.familiar())?,
                Removed::Deleted(id) => writeln!(out, "Deleted: {id}")?,
                Removed::DeletedLayer(chain) => writeln!(out, "Deleted: {chain}")?,
            }
        }
        Ok(())
    })
}
