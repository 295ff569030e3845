//! `strata start`

use std::io::Write;

use anyhow::anyhow;
use clap::Args;
use strata_engine::{Attach, StartOptions};

use super::run::explain;
use super::{Context, Outcome};
use crate::detach_keys::DetachKeys;
use crate::failure::Failure;
use crate::relay::{Relay, Signals};
use crate::terminal;

/// Start one or more containers
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Attach to what the container writes, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Attach the container's standard input
    #[arg(short, long)]
    interactive: bool,
    /// Leave the container alone with this key sequence [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
}

/// Starts containers.
pub(crate) fn run(context: &Context, start: &Start, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    if start.attach || start.interactive {
        let [name] = &start.containers[..] else {
            return Err(anyhow!("you cannot start and attach multiple containers at once").into());
        };
        return attached(&engine, start, name);
    }
    let mut code = 0;
    let mut failed = Vec::new();
    for name in &start.containers {
        match engine.start(name, StartOptions::default()) {
            Ok(started) => {
                for warning in started.iter().flat_map(|(_, warnings)| warnings) {
                    eprintln!("strata: warning: {warning}");
                }
                writeln!(out, "{name}")?;
            }
            Err(error) => {
                Failure { code: 1, ..explain(error) }.report();
                failed.push(name.as_str());
                code = 1;
            }
        }
    }
    if !failed.is_empty() {
        eprintln!("strata: failed to start containers: {}", failed.join(", "));
    }
    Ok(code)
}

fn attached(engine: &strata_engine::Engine, start: &Start, name: &str) -> Outcome {
    let container = engine.container(name)?;
    let config = &container.config;
    let attach = Attach { input: start.interactive && config.open_stdin, output: true, error: true };
    let signals = Signals::collect(true)?;
    let size = config.tty.then(terminal::size).flatten();
    let id = config.id.clone();
    let started = engine.start(id.as_str(), StartOptions { attach: Some(attach), size }).map_err(explain);
    let session = match started.map_err(|failure| Failure { code: 1, ..failure })? {
        Some((session, warnings)) => {
            for warning in warnings {
                eprintln!("strata: warning: {warning}");
            }
            session
        }
        // It runs already: as Docker, this is attaching then.
        None => engine.attach(id.as_str(), attach)?.1,
    };
    let relay = Relay { attach, tty: config.tty, detach_keys: start.detach_keys.clone().unwrap_or_default() };
    super::follow(engine, &id, session, &relay, &signals)
}
