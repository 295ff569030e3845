//! `strata update`

use std::io::Write;

use clap::Args;
use strata_engine::{RestartPolicy, Update};

use super::container_options::{LimitOptions, limits};
use super::{Context, Outcome, for_each};

/// Change the limits of one or more containers
#[derive(Debug, Args)]
pub(crate) struct UpdateVerb {
    #[command(flatten)]
    limits: LimitOptions,
    /// Start it again when it ends: no, always, unless-stopped or on-failure[:MAX]
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Changes containers and prints their names.
pub(crate) fn run(context: &Context, verb: &UpdateVerb, out: &mut impl Write) -> Outcome {
    let update = Update { limits: limits(&verb.limits)?, restart: verb.restart };
    let engine = context.engine()?;
    for_each(&verb.containers, |name| {
        for warning in engine.update(name, &update)? {
            eprintln!("strata: warning: {warning}");
        }
        writeln!(out, "{name}")?;
        Ok(())
    })
}
