//! `strata rm`

use std::io::Write;

use clap::Args;

use super::{Context, Outcome, for_each};

/// Remove one or more containers
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Kill the container first if it runs
    #[arg(short, long)]
    force: bool,
    /// Accepted for compatibility: anonymous volumes always go with their container
    #[arg(short, long)]
    volumes: bool,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Removes containers and prints their names.
pub(crate) fn run(context: &Context, rm: &Rm, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    for_each(&rm.containers, |name| {
        match engine.remove_container(name, rm.force) {
            // As Docker: with force, what is not there is a message and no failure.
            Err(error) if rm.force && error.is_not_found() => eprintln!("strata: {error}"),
            result => {
                result?;
                writeln!(out, "{name}")?;
            }
        }
        Ok(())
    })
}
