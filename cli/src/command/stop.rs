//! `strata stop`

use std::io::Write;

use anyhow::anyhow;
use clap::Args;
use strata_engine::StopOptions;

use super::{Context, Outcome, for_each};

/// Stop one or more running containers
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    how: How,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// How a container is stopped.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Wait so many seconds before the container is killed; -1 for ever
    #[arg(short = 't', long, visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<i64>,
    /// Send this signal instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

impl How {
    pub(super) fn options(&self) -> anyhow::Result<StopOptions> {
        Ok(StopOptions { signal: self.signal.as_deref().map(signal).transpose()?, timeout: self.time })
    }
}

/// Reads a signal by name or number.
pub(super) fn signal(text: &str) -> anyhow::Result<i32> {
    strata_engine::signal::parse(text).ok_or_else(|| anyhow!("Invalid signal: {text}"))
}

/// Stops containers and prints their names.
pub(crate) fn run(context: &Context, stop: &Stop, out: &mut impl Write) -> Outcome {
    let options = stop.how.options()?;
    let engine = context.engine()?;
    for_each(&stop.containers, |name| {
        engine.stop(name, options)?;
        writeln!(out, "{name}")?;
        Ok(())
    })
}
