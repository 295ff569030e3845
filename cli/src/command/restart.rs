//! `strata restart`

use std::io::Write;

use clap::Args;

use super::stop::How;
use super::{Context, Outcome, for_each};

/// Stop one or more containers and start them again
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    how: How,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

/// Restarts containers and prints their names.
pub(crate) fn run(context: &Context, restart: &Restart, out: &mut impl Write) -> Outcome {
    let options = restart.how.options()?;
    let engine = context.engine()?;
    for_each(&restart.containers, |name| {
        engine.restart(name, options)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}
