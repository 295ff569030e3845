//! `strata attach`

use anyhow::anyhow;
use clap::Args;
use strata_engine::Attach;

use super::{Context, Outcome};
use crate::detach_keys::DetachKeys;
use crate::relay::{Relay, Signals};
use crate::terminal;

/// Attach to the streams of a running container
#[derive(Debug, Args)]
pub(crate) struct AttachTo {
    /// Leave the container alone with this key sequence [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Do not attach standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Attaches to a container and returns its exit code.
pub(crate) fn run(context: &Context, verb: &AttachTo) -> Outcome {
    let engine = context.engine()?;
    let config = engine.container(&verb.container)?.config;
    if config.tty && config.open_stdin && !verb.no_stdin && !terminal::stdin_is_terminal() {
        return Err(anyhow!("the input device is not a TTY").into());
    }
    let signals = Signals::collect(verb.sig_proxy)?;
    let attach = Attach { input: config.open_stdin && !verb.no_stdin, output: true, error: true };
    let (container, mut session) = engine.attach(&verb.container, attach)?;
    if let Some((rows, columns)) = terminal::size().filter(|_| config.tty) {
        session.resize(rows, columns)?;
    }
    let relay = Relay { attach, tty: config.tty, detach_keys: verb.detach_keys.clone().unwrap_or_default() };
    super::follow(&engine, &container.config.id, session, &relay, &signals)
}
