//! `strata kill`

use std::io::Write;

use clap::Args;

use super::{Context, Outcome, for_each};

/// Kill one or more running containers
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Send this signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Sends the signal and prints the containers' names.
pub(crate) fn run(context: &Context, kill: &Kill, out: &mut impl Write) -> Outcome {
    let signal = super::stop::signal(&kill.signal)?;
    let engine = context.engine()?;
    for_each(&kill.containers, |name| {
        engine.kill(name, signal)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}
