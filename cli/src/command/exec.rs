//! `strata exec`

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use strata_engine::{Attach, Execution};

use super::container_options::environment;
use super::{Context, Outcome};
use crate::detach_keys::DetachKeys;
use crate::failure::Failure;
use crate::relay::{Relay, Signals};
use crate::terminal;

/// Run a command in a running container
#[derive(Debug, Args)]
#[command(
    override_usage = "strata exec [OPTIONS] CONTAINER COMMAND [ARG...]",
    after_help = "Exit code: that of the command; 126 when it cannot be invoked, 127 when it is not found"
)]
pub(crate) struct Exec {
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Leave the command alone with this key sequence [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Set an environment variable; without a value, pass the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command every privilege
    #[arg(long)]
    privileged: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Start in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container, and the command
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = false, value_name = "CONTAINER")]
    container_and_command: Vec<String>,
}

/// Runs a command in a container and returns its exit code.
pub(crate) fn run(context: &Context, exec: &Exec) -> Outcome {
    if exec.tty && exec.interactive && !exec.detach && !terminal::stdin_is_terminal() {
        return Err(anyhow!("the input device is not a TTY").into());
    }
    let (name, command) = exec.container_and_command.split_first().expect("clap requires two values");
    let attach = Attach { input: exec.interactive, output: true, error: true };
    let execution = Execution {
        command: command.to_vec(),
        environment: environment(&exec.env_file, &exec.env).map_err(Failure::of_engine)?,
        user: exec.user.clone(),
        working_directory: exec.workdir.clone(),
        tty: exec.tty,
        open_stdin: exec.interactive,
        privileged: exec.privileged,
        size: exec.tty.then(terminal::size).flatten(),
        attach: (!exec.detach).then_some(attach),
    };
    let engine = context.engine()?;
    // Collected before the process exists: a signal between its start and the relay must reach it.
    let signals = match exec.detach {
        true => None,
        false => Some(Signals::collect(true)?),
    };
    let started = engine.exec(name, execution);
    let (session, warnings) = started.map_err(|error| Failure { code: error.exit_code(), ..Failure::from(error) })?;
    for warning in warnings {
        eprintln!("strata: warning: {warning}");
    }
    let Some(signals) = signals else { return Ok(0) };
    let id = session.container().clone();
    let relay = Relay { attach, tty: exec.tty, detach_keys: exec.detach_keys.clone().unwrap_or_default() };
    super::follow(&engine, &id, session, &relay, &signals)
}
