//! `strata pause` and `strata unpause`

use std::io::Write;

use clap::Args;

use super::{Context, Outcome, for_each};

/// Stop all processes of one or more containers where they are
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Let the processes of one or more paused containers go on
#[derive(Debug, Args)]
pub(crate) struct Unpause {
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Pauses containers and prints their names.
pub(crate) fn pause(context: &Context, pause: &Pause, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    for_each(&pause.containers, |name| {
        engine.pause(name)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}

/// Lets containers go on and prints their names.
pub(crate) fn unpause(context: &Context, unpause: &Unpause, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    for_each(&unpause.containers, |name| {
        engine.unpause(name)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}
